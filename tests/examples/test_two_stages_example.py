"""The example of two stages: both train, both can be resumed, the student stays plain."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from example_runs import EXAMPLES
from safetensors.torch import load_file
from test_more_examples import squad_file
from tiny import model_for, tokenizer

RunExample = Callable[..., Path]


@pytest.fixture
def run_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunExample:
    """Runs it in this process; returns the folder of the run."""
    for who, seed, options in (
        ("teacher", 1, {"layers": 4}),
        ("student", 0, {"layers": 2, "width": 8, "hidden_dropout_prob": 0.1}),
    ):
        model = model_for("question-answering", seed=seed, **options)
        (model.bert if who == "student" else model).save_pretrained(tmp_path / who)
        tokenizer().save_pretrained(tmp_path / who)

    def run(output: str, **options: Any) -> Path:
        options = {
            "student": tmp_path / "student",
            "teacher": tmp_path / "teacher",
            "train_file": squad_file(tmp_path / "train.json", 8),
            "validation_file": squad_file(tmp_path / "dev.json", 4),
            "output_dir": tmp_path / output,
            "max_length": 32,
            "doc_stride": 4,
            "first_epochs": 2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "first_learning_rate": 3e-3,
            "attention_loss": "scores",
            "learning_rate": 1e-3,
            "save_steps": 2,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            **options,
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", ["two_stages.py", *words])
        runpy.run_path(str(EXAMPLES / "two_stages.py"), run_name="__main__")
        return tmp_path / output

    return run


def log(folder: Path) -> list[dict[str, Any]]:
    state = folder / "checkpoint-4" / "trainer_state.json"
    history: list[dict[str, Any]] = json.loads(state.read_text())["log_history"]
    return history


def test_both_stages_train(run_example: RunExample) -> None:
    out = run_example("distilled")
    first = log(out / "intermediate")
    assert [entry["step"] for entry in first] == [1, 2, 3, 4]
    assert all(entry["loss_hidden_states"] > 0 < entry["loss_attention"] for entry in first)
    assert first[-1]["loss"] < first[0]["loss"]
    second = log(out)
    assert all("loss_task" in entry and "loss_hidden_states" not in entry for entry in second)
    weights = load_file(out / "model.safetensors")
    assert not any("projection" in name for name in weights)


def test_a_run_that_was_stopped_goes_on(run_example: RunExample, tmp_path: Path) -> None:
    whole = run_example("whole")
    expected = load_file(whole / "model.safetensors")
    stopped_in_second = tmp_path / "second"
    shutil.copytree(whole, stopped_in_second)
    shutil.rmtree(stopped_in_second / "checkpoint-4")
    between = tmp_path / "between"
    shutil.copytree(whole / "intermediate", between / "intermediate")
    stopped_in_first = tmp_path / "first"
    shutil.copytree(
        whole / "intermediate" / "checkpoint-2", stopped_in_first / "intermediate" / "checkpoint-2"
    )
    for folder in (stopped_in_second, between, stopped_in_first):
        found = load_file(run_example(folder.name) / "model.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in expected), folder.name
