"""Teacher, student and data by Hub id, with the real client, from a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import forked
import pytest
from datasets import Dataset
from hub.server import hub
from tiny import model_for, tokenizer

SCRIPT = """
import sys
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.tasks.question_answering import (
    load_question_answering_dataset,
    prepare_train_features,
)

teacher, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained("acme/student")
data = load_question_answering_dataset("acme/questions", split="train")
trainer = DistillationTrainer(
    model=AutoModelForQuestionAnswering.from_pretrained("acme/student"),
    teacher_model=teacher,
    args=DistillationTrainingArguments(output, max_steps=2, use_cpu=True, logging_steps=1),
    train_dataset=prepare_train_features(data, tokenizer, max_length=32, doc_stride=4),
    processing_class=tokenizer,
)
trainer.train()
assert trainer.teacher_model.name_or_path == teacher
assert "loss_prediction" in trainer.state.log_history[0]
"""


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    root = tmp_path / "hub"
    for name, seed, words in (
        ("acme/teacher", 1, ()),
        ("acme/student", 0, ()),
        ("acme/stranger", 1, ("paris",)),
    ):
        model_for("question-answering", seed=seed).save_pretrained(root / "models" / name)
        tokenizer(words).save_pretrained(root / "models" / name)
    rows = [
        {
            "id": str(i),
            "title": "t",
            "context": "ann met bob in may.",
            "question": "who met bob?",
            "answers": {"text": ["ann"], "answer_start": [0]},
        }
        for i in range(8)
    ]
    data = root / "datasets" / "acme" / "questions" / "data"
    data.mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(data / "train-00000-of-00001.parquet")
    return root


def run(url: str, tmp_path: Path, teacher: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache")}
    return subprocess.run(
        [forked.interpreter(), "-c", SCRIPT, teacher, str(tmp_path / "out")],
        env={**environment, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )


def test_teacher_student_and_data_come_from_the_hub(repositories: Path, tmp_path: Path) -> None:
    with hub(repositories) as (url, requests):
        result = run(url, tmp_path, "acme/teacher")
    assert result.returncode == 0, result.stderr
    for repository, file in (
        ("/acme/teacher", "model.safetensors"),
        ("/acme/student", "model.safetensors"),
        ("/datasets/acme/questions", "train-00000-of-00001.parquet"),
    ):
        assert any(r.startswith(f"GET {repository}/") and r.endswith(file) for r in requests)
    config = json.loads((tmp_path / "out" / "checkpoint-2" / "config.json").read_text())
    assert config["architectures"] == ["BertForQuestionAnswering"]


def test_a_hub_teacher_with_another_tokenizer_is_refused(
    repositories: Path, tmp_path: Path
) -> None:
    with hub(repositories) as (url, _):
        result = run(url, tmp_path, "acme/stranger")
    assert result.returncode != 0
    assert "different tokenizers" in result.stderr


def test_a_teacher_that_the_hub_does_not_have(repositories: Path, tmp_path: Path) -> None:
    with hub(repositories) as (url, _):
        result = run(url, tmp_path, "acme/absent")
    assert result.returncode != 0
    assert "teacher_model='acme/absent' cannot be loaded" in result.stderr
