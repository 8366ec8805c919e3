"""When a training ends early, from its log alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_distill.cli.early_stopping import EarlyStopping


def stops(values: list[float], patience: int, *, greater: bool = True, event: str) -> bool:
    args: Any = SimpleNamespace(metric_for_best_model="f1", greater_is_better=greater)
    log = [entry for value in values for entry in ({"loss": 1.0}, {"eval_f1": value})]
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
