"""The example of a student that is made from its teacher."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from example_runs import EXAMPLES, saved_pair
from test_more_examples import squad_file
from transformers import AutoModelForQuestionAnswering


@pytest.mark.parametrize("width", [None, 8])
def test_a_student_is_written(
    width: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = saved_pair(tmp_path, "question-answering", "bert")["teacher"]
    options = {
        "teacher": teacher,
        "train_file": squad_file(tmp_path / "train.json", 16),
        "output_dir": tmp_path / "made",
        "num_hidden_layers": 1,
        "max_length": 32,
        "doc_stride": 4,
        **({} if width is None else {"hidden_size": width}),
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["create_student.py", *words])
    runpy.run_path(str(EXAMPLES / "create_student.py"), run_name="__main__")
    student = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "made")
    assert student.config.num_hidden_layers == 1
    assert student.config.hidden_size == (width or 16)
