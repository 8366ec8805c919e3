"""``hf-distill train --stage intermediate``: no labels, no scores, for every task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from cli_runs import FACTS, Result, squad
from safetensors.torch import load_file
from task_runs import LABELS, OPTIONS, SENTENCES, TEXTS, save_model, write_data
from tiny import model_for, tokenizer

Program = Callable[..., Result]
COMMON = (
    *("--stage", "intermediate", "--attention_loss", "scores"),
    *("--max_steps", "2", "--logging_steps", "1", "--use_cpu"),
    *("--disable_tqdm", "true", "--learning_rate", "1e-3", "--save_strategy", "no"),
)


def unlabelled(folder: Path, task: str) -> str:
    """Data of a task without its labels."""
    path = folder / "unlabelled.jsonl"
    if task == "question-answering":
        path = folder / "unlabelled.json"
        content = squad(FACTS)
        for paragraph in content["data"][0]["paragraphs"]:
            for question in paragraph["qas"]:
                del question["answers"]
        path.write_text(json.dumps(content))
        return str(path)
    if task == "text-classification":
        rows: list[dict[str, Any]] = [{"text": text} for text, _ in TEXTS]
    elif task == "token-classification":
        rows = [{"tokens": words} for words, _ in SENTENCES]
    else:
        return write_data(folder, task)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def models(folder: Path, task: str) -> list[str]:
    if task == "question-answering":
        for seed, (who, layers) in enumerate({"student": 1, "teacher": 2}.items()):
            model_for(task, seed=seed, layers=layers).save_pretrained(folder / who)
            tokenizer().save_pretrained(folder / who)
    else:
        save_model(folder / "teacher", task, seed=1, layers=2, **LABELS.get(task, {}))
        save_model(folder / "student", task, seed=0, layers=1)
    return [f"--{who}_model={folder / who}" for who in ("student", "teacher")]


@pytest.mark.parametrize(
    "task",
    ["question-answering", "text-classification", "token-classification", "fill-mask",
     "text-generation"],
)  # fmt: skip
def test_it_needs_no_labels_and_scores_nothing(task: str, tmp_path: Path, program: Program) -> None:
    data = unlabelled(tmp_path, task)
    options = [*models(tmp_path, task), *COMMON, *OPTIONS.get(task, ()), "--max_length", "48"]
    if task == "question-answering":
        options += ["--doc_stride", "8"]
    out = tmp_path / "out"
    result = program(
        *("train", "--task", task, *options, "--output_dir", out),
        *("--train_file", data, "--validation_file", data),
    )
    assert result.status == 0, result.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"loss", "loss_hidden_states", "loss_attention"} <= metrics["eval"].keys()
    assert not metrics["eval"].keys() & {"f1", "accuracy", "perplexity", "loss_task"}
    assert metrics["distillation"]["stage"] == "intermediate"
    assert not (out / "predictions.json").exists()
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "student", out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    heads = ("qa_outputs", "classifier", "cls.", "lm_head")
    assert changed and not any(name.startswith(heads) for name in changed)


@pytest.mark.parametrize(
    "task", ["question-answering", "text-classification", "token-classification"]
)
def test_labels_do_not_count_when_they_are_there(
    task: str, tmp_path: Path, program: Program
) -> None:
    if task == "question-answering":
        labelled = tmp_path / "labelled.json"
        labelled.write_text(json.dumps(squad(FACTS)))
    else:
        labelled = Path(write_data(tmp_path, task))
    pair = models(tmp_path, task)
    window = ["--doc_stride", "8"] if task == "question-answering" else []
    students = []
    for name, file in (("with", labelled), ("without", unlabelled(tmp_path, task))):
        result = program(
            *("train", "--task", task, *pair, *COMMON, *window, "--max_length", "48"),
            *("--output_dir", tmp_path / name, "--train_file", file),
        )
        assert result.status == 0, result.stderr
        students.append(load_file(tmp_path / name / "model.safetensors"))
    one, other = students
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ('{"other": 1}\n', "for the text"),
        ('{"text": 1}\n', "whole numbers"),
        ('{"text": ""}\n', "are empty"),
    ],
)
def test_data_without_texts_is_refused(
    content: str, fragment: str, tmp_path: Path, program: Program
) -> None:
    (tmp_path / "data.jsonl").write_text(content)
    task = "text-classification"
    result = program(
        *("train", "--task", task, *models(tmp_path, task), *COMMON),
        *("--output_dir", tmp_path / "out", "--train_file", tmp_path / "data.jsonl"),
    )
    assert result.status == 2
    assert fragment in result.stderr


def test_layers_chosen_by_their_similarity_are_shown(
    train_options: list[str], tmp_path: Path, program: Program
) -> None:
    out = tmp_path / "out"
    result = program(*train_options, *COMMON, "--layer_mapping", "auto")
    assert result.status == 0, result.stderr
    pairs = json.loads((out / "metrics.json").read_text())["layer_pairs"]
    assert pairs[0] == [0, 0] and len(pairs) == 2
    lines = result.stderr.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("student \\ teacher"))
    for student, teacher in pairs:
        cells = lines[start + 1 + student].split()
        assert cells[0] == str(student)
        assert cells[1 + teacher].endswith("*")
        assert sum(cell.endswith("*") for cell in cells) == 1
    picture = out / "pictures" / "layer_similarity.png"
    assert str(picture) in result.stderr
    assert matplotlib.image.imread(picture).shape[0] > 100
    other = program(*train_options, *COMMON, "--output_dir", tmp_path / "other")
    assert other.status == 0
    assert "student \\ teacher" not in other.stderr
    assert not (tmp_path / "other" / "pictures").exists()


def test_a_new_classifier_has_the_labels_of_the_second_stage(
    tmp_path: Path, program: Program
) -> None:
    """Its labels come from the second stage's data, and it begins as it would without a first."""
    task = "text-classification"
    words = [*models(tmp_path, task), *COMMON[2:], "--learning_rate", "0", "--seed", "3"]
    run = ["train", "--task", task, *words, "--train_file", write_data(tmp_path, task)]
    stages = ["--intermediate_max_steps", "2", "--intermediate_learning_rate", "1e-3"]
    stages += ["--intermediate_train_file", unlabelled(tmp_path, task)]
    for name, more in (("two", stages), ("one", [])):
        result = program(*run, *more, "--output_dir", tmp_path / name)
        assert result.status == 0, result.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert torch.equal(one["classifier.weight"], two["classifier.weight"])
    assert not torch.equal(*(w["bert.embeddings.word_embeddings.weight"] for w in (one, two)))
    for folder in ("one", "two", "two/intermediate"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert set(config["label2id"]) == {"pos", "neg"}
