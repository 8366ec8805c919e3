"""When a training ends early, from its log alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_distill.cli.early_stopping import EarlyStopping


def stops(values: list[float], patience: int, *, greater: bool = True, event: str) -> bool:
    args: Any = SimpleNamespace(metric_for_best_model="f1", greater_is_better=greater)
    log = [
        {**entry, "step": step}
        for step, value in enumerate(values)
        for entry in ({"loss": 1.0}, {"eval_f1": value}, {"eval_f1": value})  # once resumed
    ]
    control = SimpleNamespace(should_training_stop=False)
    getattr(EarlyStopping(patience), event)(args, SimpleNamespace(log_history=log), control)
    return control.should_training_stop


@pytest.mark.parametrize("event", ["on_evaluate", "on_train_begin"])
@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([], 1, False),
        ([1.0], 1, False),
        ([1.0, 0.5], 1, True),
        ([1.0, 0.5], 2, False),
        ([1.0, 0.5, 0.7], 2, True),
        ([1.0, 0.5, 1.2, 1.1], 2, False),
        ([1.0, 1.0], 1, True),  # as good is not better
    ],
)
def test_a_patience_counts_evaluations_since_the_best(
    values: list[float], patience: int, expected: bool, event: str
) -> None:
    assert stops(values, patience, event=event) is expected
    assert stops([-value for value in values], patience, greater=False, event=event) is expected


def test_it_needs_the_best_model_to_be_kept(
    program: Callable[..., Any], train_options: list[str], tmp_path: Path
) -> None:
    failed = program(*train_options, "--early_stopping_patience", "2")
    assert failed.status == 2 and "--load_best_model_at_end" in failed.stderr
    failed = program(*train_options, "--early_stopping_patience", "0")
    assert failed.status == 2 and "--early_stopping_patience 0" in failed.stderr


def test_a_training_ends_early(
    program: Callable[..., Any], train_options: list[str], tmp_path: Path
) -> None:
    """A learning rate of nothing never improves: two evaluations after the first it is over."""
    done = program(
        *train_options, "--max_steps", "20", "--learning_rate", "1e-30", "--eval_strategy", "steps",
        "--eval_steps", "2", "--save_steps", "2", "--load_best_model_at_end",
        "--metric_for_best_model", "f1", "--early_stopping_patience", "2",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert (tmp_path / "out" / "checkpoint-6").is_dir()
    assert not (tmp_path / "out" / "checkpoint-8").exists()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "chose the student among its checkpoints" in report


@pytest.mark.parametrize(("rate", "kept"), [("10", True), ("1e-3", False)])
def test_a_start_that_training_does_not_better_is_kept(
    rate: str, kept: bool, program: Callable[..., Any], train_options: list[str], tmp_path: Path
) -> None:
    start = Path(train_options[train_options.index("--student_model") + 1])
    words = [
        *train_options, "--max_steps", "4", "--learning_rate", rate, "--eval_strategy", "steps",
        "--eval_steps", "2", "--save_steps", "2", "--save_total_limit", "2", "--eval_on_start",
        "--load_best_model_at_end", "--metric_for_best_model", "loss",
    ]  # fmt: skip
    done = program(*words)
    assert done.status == 0, done.stderr
    out = tmp_path / "out"
    assert (out / "checkpoint-0").exists() is kept
    before, after = (load_file(folder / "model.safetensors") for folder in (start, out))
    assert all(torch.equal(before[name], after[name]) for name in before) is kept
    logged = json.loads((out / "checkpoint-4/trainer_state.json").read_text())["log_history"]
    losses = {log["step"]: log["eval_loss"] for log in logged if "eval_loss" in log}
    assert (min(losses, key=lambda step: losses[step]) == 0) is kept
    assert ("before its first step" in done.stderr) is kept
    assert ("before the first step" in (out / "report.md").read_text()) is kept
    metrics = json.loads((out / "metrics.json").read_text())
    if kept:  # also by a run that was killed right after its start
        shutil.rmtree(out / "checkpoint-4")
        for name in ("metrics.json", "model.safetensors"):
            (out / name).unlink()
        again = program(*words, "--resume")
        assert again.status == 0, again.stderr
        after = load_file(out / "model.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics["kept_step"] == min(losses, key=lambda step: losses[step])
    assert metrics["eval"]["loss"] == pytest.approx(min(losses.values()), rel=1e-5)
