"""Each example runs, small, as its docstring says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny import model_for, tokenizer
from transformers import AutoModelForQuestionAnswering

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def squad_file(path: Path, questions: int) -> Path:
    """Who did what, over a handful of names."""
    names = ["ann", "bob", "cy", "dee"]
    paragraphs = [
        {
            "context": f"{name} met {other} in may.",
            "qas": [
                {
                    "id": f"{i}",
                    "question": f"who met {other}?",
                    "answers": [{"text": name, "answer_start": 0}],
                }
            ],
        }
        for i in range(questions)
        for name, other in [(names[i % 4], names[(i + 1 + i // 4) % 4])]
    ]
    data = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data))
    return path


def test_run_qa(tmp_path: Path) -> None:
    for name, seed in (("teacher", 1), ("student", 0)):
        model_for("question-answering", seed=seed).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    options = {
        "student": tmp_path / "student",
        "teacher": tmp_path / "teacher",
        "train_file": squad_file(tmp_path / "train.json", 8),
        "validation_file": squad_file(tmp_path / "dev.json", 4),
        "output_dir": tmp_path / "distilled",
        "max_length": 32,
        "doc_stride": 4,
        "max_steps": 2,
        "use_cpu": True,
    }
    command = [sys.executable, str(EXAMPLES / "run_qa.py")]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ}, timeout=120
    )
    assert "eval_exact_match" in result.stdout and "eval_loss_prediction" in result.stdout
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "distilled")
