"""Tiny models, a data file, the program, and a marker that nothing may ever write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.cli_runs import squad
from tiny import model_for, tokenizer

from hf_distill.cli.main import main

TASK = "question-answering"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Checked after the test. Whoever asks on the terminal whether to run code is told yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists(), "what came with the files was run"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return saved(tmp_path / "teacher", seed=1)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return saved(tmp_path / "student", seed=0)


def saved(folder: Path, *, seed: int) -> Path:
    model_for(TASK, seed=seed, layers=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(squad()))
    return path


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``hf-distill`` in this process: its status, and what it said."""

    def call(*words: Any) -> tuple[int, str]:
        try:
            status = main([str(word) for word in words])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return status, "".join(capfd.readouterr())

    return call


@pytest.fixture
def train(program: Any, student: Path, teacher: Path, questions: Path, tmp_path: Path) -> Any:
    """``hf-distill train`` for two steps; options override these."""

    def run(*options: Any) -> tuple[int, str]:
        return program(
            *("train", "--task", TASK, "--student_model", student, "--teacher_model", teacher),
            *("--train_file", questions, "--validation_file", questions),
            *("--output_dir", tmp_path / "out", "--max_steps", 2, "--save_steps", 1),
            *("--max_length", 48, "--doc_stride", 8, "--use_cpu", "--disable_tqdm", "true"),
            *options,
        )

    return run
