"""Each example runs, small, as its docstring says, and its figures are those of what it saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from datasets import ClassLabel, Dataset
from example_runs import (
    RunScript,
    reordered,
    saved_pair,
    soft_distance,
)
from seqeval.metrics import f1_score
from tiny import tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

# ---- text classification ---------------------------------------------------------------------

# Not the order of the alphabet, which the student has.
FEELINGS = ("good", "bad", "so-so")


def feelings(rows: int, shift: int = 0) -> list[dict[str, str]]:
    words = {"good": "fine nice", "bad": "ugly", "so-so": "well"}
    return [
        {"text": f"{words[label]} no {i + shift}, {'very ' * (i % 4)}", "label": label}
        for i in range(rows)
        for label in [FEELINGS[(i + i // 5) % 3]]
    ]


@pytest.fixture
def feeling_files(tmp_path: Path) -> dict[str, str]:
    for name, rows in (("train", feelings(24)), ("dev", feelings(31, shift=100))):
        Dataset.from_list(rows).to_csv(tmp_path / f"{name}.csv")
    return {
        "dataset": "csv",
        "train_file": str(tmp_path / "train.csv"),
        "validation_file": str(tmp_path / "dev.csv"),
    }


def feeling_logits(folder: Path) -> tuple[Any, Tensor]:
    """A model, and its logits for each text of the validation data, one by one."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    encode = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [
            model(**encode(row["text"], return_tensors="pt")).logits
            for row in feelings(31, shift=100)
        ]
    return model, torch.cat(rows)


def test_run_classification(
    tmp_path: Path, run_script: RunScript, feeling_files: dict[str, str]
) -> None:
    pair = saved_pair(tmp_path, "text-classification", "bert", FEELINGS)
    options = {**pair, **feeling_files}
    distilled = run_script("run_classification.py", output="distilled", **options)
    options["teacher"] = str(tmp_path / "is not looked for")
    alone = run_script("run_classification.py", "--baseline", output="alone", **options)

    teacher, taught = feeling_logits(tmp_path / "teacher")
    distances = {}
    for name, metrics in (("distilled", distilled), ("alone", alone)):
        student, logits = feeling_logits(tmp_path / name)
        assert student.config.label2id == {"bad": 0, "good": 1, "so-so": 2}
        gold = torch.tensor([student.config.label2id[r["label"]] for r in feelings(31, shift=100)])
        assert metrics["eval_accuracy"] == pytest.approx(
            float((logits.argmax(-1) == gold).double().mean())
        )
        loss = float(functional.cross_entropy(logits, gold))
        assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-4)
        distances[name] = soft_distance(logits, reordered(taught, teacher, student))
    assert distilled["eval_loss_prediction"] == pytest.approx(distances["distilled"], rel=1e-4)
    assert "eval_loss_prediction" not in alone
    assert distances["distilled"] < distances["alone"]
    assert distilled["eval_loss"] != alone["eval_loss"]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "named parquet"])
def test_classification_reads_every_kind_of_file(
    kind: str, tmp_path: Path, functions: Callable[[str], dict[str, Any]]
) -> None:
    example = functions("run_classification.py")
    ending = kind.rpartition(" ")[2]
    names = ["bad", "good", "so-so"]
    for name, rows in (("train", feelings(8)), ("dev", feelings(5))):
        table = Dataset.from_list(rows)
        if kind == "named parquet":
            table = table.cast_column("label", ClassLabel(names=list(FEELINGS)))
            names = list(FEELINGS)
        getattr(table, f"to_{ending}")(tmp_path / f"{name}.{ending}")
    script = example["ScriptArguments"](
        student="unused",
        dataset=ending,
        train_file=str(tmp_path / f"train.{ending}"),
        validation_file=str(tmp_path / f"dev.{ending}"),
        max_length=6,
    )
    train, validation, found = example["load_features"](script, tokenizer())
    assert found == names
    assert [names[number] for number in train["labels"]] == [r["label"] for r in feelings(8)]
    assert [names[number] for number in validation["labels"]] == [r["label"] for r in feelings(5)]
    assert set(train.column_names) == {
        "input_ids", "token_type_ids", "attention_mask", "labels",
    }  # fmt: skip
    assert max(map(len, train["input_ids"])) == 6


def test_hyperparameter_search(
    tmp_path: Path, run_script: RunScript, feeling_files: dict[str, str], monkeypatch: Any
) -> None:
    pair = saved_pair(tmp_path, "text-classification", "bert", FEELINGS)
    studies: list[Any] = []
    create_study = optuna.create_study

    def spy(*args: Any, **kwargs: Any) -> Any:
        studies.append(create_study(*args, **kwargs))
        return studies[-1]

    monkeypatch.setattr(optuna, "create_study", spy)
    run_script("hyperparameter_search.py", output="search", trials=3, **pair, **feeling_files)

    (study,) = studies
    assert len(study.trials) == 3
    for name, low, high in (("temperature", 1.0, 8.0), ("distillation_loss_weight", 0.1, 1.0)):
        tried = {trial.params[name] for trial in study.trials}
        assert len(tried) == 3 and low <= min(tried) and max(tried) <= high
    accuracies = {trial.value for trial in study.trials}
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    assert best.pop("accuracy") == study.best_value == max(accuracies)
    assert best == study.best_params
    # The values reached the training: with those of a trial it is the same training again.
    assert len(accuracies) > 1
    for trial in (study.best_trial, min(study.trials, key=lambda trial: trial.value)):
        options = {**pair, **feeling_files, **trial.params}
        again = run_script("run_classification.py", output=f"trial{trial.number}", **options)
        assert again["eval_accuracy"] == trial.value


# ---- token classification --------------------------------------------------------------------

TAGS = ("O", "B-place", "B-name", "I-name")


def sentences(rows: int, shift: int = 0) -> list[dict[str, list[str]]]:
    some = [
        (["Ann", "Lee", "met", "Bob"], ["B-name", "I-name", "O", "B-name"]),
        (["in", "Rome", ",", "too"], ["O", "B-place", "O", "O"]),
        (["Lee", "left", "Oslo"], ["B-name", "O", "B-place"]),
    ]
    made = []
    for row in range(rows):
        words, tags = some[(row + shift) % 3]
        extra = [f"{row + shift}"] * (row % 3)
        made.append({"tokens": [*extra, *words], "tags": [*["O"] * len(extra), *tags]})
    return made


def tag_logits(folder: Path, most: int) -> tuple[Any, list[Tensor]]:
    """For each sentence of the validation data the logits at the first piece of each word."""
    model = AutoModelForTokenClassification.from_pretrained(folder)
    encode = AutoTokenizer.from_pretrained(folder)
    found = []
    for sentence in sentences(10, shift=7):
        pieces = [encode.encode(word, add_special_tokens=False) for word in sentence["tokens"]]
        firsts = [1 + sum(map(len, pieces[:place])) for place in range(len(pieces))]
        ids = [2, *list(chain.from_iterable(pieces))[: most - 2], 3]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        found.append(logits[[place for place in firsts if place < len(ids) - 1]])
    return model, found


def test_run_token_classification(tmp_path: Path, run_script: RunScript) -> None:
    most = 14  # cuts off the end of the longest sentences
    pair = saved_pair(tmp_path, "token-classification", "bert", TAGS, num_labels=4)
    files = {"train_file": tmp_path / "train.jsonl", "validation_file": tmp_path / "dev.jsonl"}
    for path, rows in zip(files.values(), (sentences(12), sentences(10, shift=7)), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        **pair, **files, "dataset": "json", "max_length": most, "learning_rate": 1e-2,
        "max_steps": 60, "distillation_loss_weight": 0.3,
    }  # fmt: skip
    distilled = run_script("run_token_classification.py", output="distilled", **options)
    options["teacher"] = str(tmp_path / "is not looked for")
    alone = run_script("run_token_classification.py", "--baseline", output="alone", **options)

    teacher, taught = tag_logits(tmp_path / "teacher", most)
    distances = {}
    for name, metrics in (("distilled", distilled), ("alone", alone)):
        student, logits = tag_logits(tmp_path / name, most)
        names = student.config.id2label
        assert list(names.values()) == sorted(TAGS)
        found = [[names[int(i)] for i in rows.argmax(-1)] for rows in logits]
        gold = [
            sentence["tags"][: len(tags)]
            for sentence, tags in zip(sentences(10, shift=7), found, strict=True)
        ]
        assert sum(map(len, gold)) < sum(len(sentence["tags"]) for sentence in sentences(10, 7))
        assert metrics["eval_f1"] == pytest.approx(f1_score(gold, found))
        assert metrics["eval_f1"] > 0
        distances[name] = soft_distance(
            torch.cat(logits), reordered(torch.cat(taught), teacher, student)
        )
    assert distilled["eval_loss_prediction"] == pytest.approx(distances["distilled"], rel=1e-4)
    assert distances["distilled"] < distances["alone"]
    assert distilled["eval_loss"] != alone["eval_loss"]
