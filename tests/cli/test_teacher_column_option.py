"""A column of the data as the teacher of the commands."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import Result, assert_says_nothing_about_the_machine
from datasets import Dataset
from task_runs import SENTENCES, TEXTS, labelled, save_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_distill.hub.card import render

CELLS = [{"pos": 0.9, "neg": 0.1} if gold == "pos" else {"pos": 0.2, "neg": 0.8}
         for _, gold in TEXTS]  # fmt: skip
TOP = [[{"label": "pos", "score": cell["pos"]}] for cell in CELLS]
TAGS = ("B-loc", "B-per", "I-loc", "O")
WORDS = [[[0.7 if tag == gold else 0.1 for tag in TAGS] for gold in tags] for _, tags in SENTENCES]


def write(path: Path, cells: Sequence[Any], *, labels: int, tagged: bool = False) -> Path:
    if tagged:
        rows = [{"tokens": words, "ner_tags": tags} for words, tags in SENTENCES]
    else:
        scores = path.stem == "scores"
        rows = [{"text": text, "label": f"{len(text)}.5" if scores else label}
                for text, label in TEXTS]  # fmt: skip
    for row, cell in zip(rows, cells, strict=True):
        row["probabilities"] = cell
        if labels == -1:
            row["label"] = -1
        elif not labels:
            row.pop("ner_tags" if tagged else "label")
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            cells = [{**row, "probabilities": json.dumps(row["probabilities"])} for row in rows]
            writer.writerows(cells)
    return path


CASES: dict[str, tuple[str, Sequence[Any], int, list[str]]] = {
    "JSON lines": ("data.jsonl", CELLS, True, []),
    "CSV": ("data.csv", CELLS, True, []),
    "Parquet": ("data.parquet", CELLS, True, []),
    "top labels": ("data.jsonl", TOP, True, []),
    "lists": ("data.csv", [list(cell.values()) for cell in CELLS], True,
              ["--class_names", "pos", "neg"]),
    "no labels": ("data.csv", CELLS, False, ["--distillation_loss_weight", "1"]),
    "labels that stand for none": ("data.jsonl", CELLS, -1, ["--distillation_loss_weight", "1"]),
    "several labels": ("data.jsonl", CELLS, False, [
        "--distillation_loss_weight", "1", "--problem_type", "multi_label_classification"]),
    "numbers": ("data.csv", [2.5, -1, 0, 3, 4, 5.5], False, [
        "--distillation_loss_weight", "1", "--distillation_loss", "mse"]),
    "numbers and labels": ("scores.csv", [2.5, -1, 0, 3, 4, 5.5], True, [
        "--distillation_loss", "mse"]),
    "tags": ("data.jsonl", WORDS, True, ["--class_names", *TAGS]),
    "no tags": ("data.parquet", WORDS, False, [
        "--class_names", *TAGS, "--distillation_loss_weight", "1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_train(name: str, tmp_path: Path, program: Callable[..., Result]) -> None:
    file, cells, labels, options = CASES[name]
    task = "token-classification" if cells is WORDS else "text-classification"
    train = write(tmp_path / file, cells, labels=labels, tagged=cells is WORDS)
    student = save_model(tmp_path / "student", task, seed=2)
    out = tmp_path / "out"
    result = program(
        "train", "--task", task, "--student_model", student, "--teacher_column", "probabilities",
        "--train_file", train, "--output_dir", out, "--max_steps", "2", "--use_cpu",
        "--save_strategy", "no", "--disable_tqdm", "true", *options,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["teacher_model"] == "the column 'probabilities'"
    facts = json.loads((out / "distillation.json").read_text())
    (teacher,) = facts["stages"][0]["settings"]["teachers"]
    assert teacher["name"] == "the column 'probabilities'" and len(teacher["weights"]) == 64
    assert teacher["column"] == "probabilities"
    card = render(out, facts, "student")
    assert f"the column 'probabilities'` (SHA-256 of its numbers `{teacher['weights'][:16]}" in card
    config = json.loads((out / "config.json").read_text())
    if not name.startswith("numbers"):
        wanted = TAGS if cells is WORDS else ("neg", "pos")
        if name == "lists":
            wanted = ("pos", "neg")  # the order of --class_names
        assert tuple(config["id2label"].values()) == wanted
    assert_says_nothing_about_the_machine(out, str(tmp_path))


def test_max_train_samples_keeps_rows_together_and_their_numbers(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    cells: list[Any] = [*CELLS[:4], {"pos": 0.9, "neg": 0.9}, CELLS[5]]
    train = write(tmp_path / "data.csv", cells, labels=False)
    student = save_model(tmp_path / "student", "text-classification", seed=2)
    result = program(
        "train", "--task", "text-classification", "--student_model", student,
        "--teacher_column", "probabilities", "--train_file", train, "--output_dir",
        tmp_path / "out", "--max_train_samples", "3", "--distillation_loss_weight", "1",
        "--use_cpu",
    )  # fmt: skip
    assert result.status == 2 and "Row 4 of the column 'probabilities'" in result.stderr
    assert "1.8" in result.stderr


def test_check_says_what_is_wrong(tmp_path: Path, program: Callable[..., Result]) -> None:
    student = save_model(tmp_path / "student", "text-classification", seed=2)
    options = ["--task", "text-classification", "--json"]
    for labels in (True, False):
        good = write(tmp_path / "good.jsonl", CELLS, labels=labels)
        result = program("check", "column:probabilities", student, "--file", good, *options)
        assert result.status == 0, result.stdout + result.stderr
        found = {one["about"]: one["message"] for one in json.loads(result.stdout)["findings"]}
        assert "6 rows" in found["column"] and ("100.0%" in found["quality"]) == labels
    bad = write(tmp_path / "bad.csv", [*CELLS[:5], {"pos": 1.0, "nag": 0.0}], labels=True)
    result = program("check", "column:probabilities", student, "--file", bad, *options)
    assert result.status == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert finding["status"] == "error"
    for part in ("Row 5", "'probabilities'", "'nag'", "neg, pos"):
        assert part in finding["message"]
    result = program("check", "column:probabilities:logits", student, *options)
    assert result.status == 2 and "--file" in result.stderr


@pytest.mark.parametrize(
    ("labels", "needs"),
    [
        (["pos", "neg", "Pos ", "neg", "pos", "neg"], ("'Pos '", "'pos'", "case")),
        (["pos", "neg", None, "neg", "pos", "neg"], ("Row 2", "None", "neg, pos")),
        (["pos", "neg", " ", "neg", "pos", "neg"], ("Row 2", "' '", "neg, pos")),
    ],
)
def test_labels_that_only_the_column_names_are_checked(
    labels: list[str | None],
    needs: tuple[str, ...],
    tmp_path: Path,
    program: Callable[..., Result],
) -> None:
    student = save_model(tmp_path / "student", "text-classification", seed=2)
    cells = [[{"label": label, "score": 0.9}] for label in labels]
    data = write(tmp_path / "data.jsonl", cells, labels=False)
    options = ["--task", "text-classification", "--json"]
    result = program("check", "column:probabilities", student, "--file", data, *options)
    assert result.status == 1, result.stdout
    (finding,) = json.loads(result.stdout)["findings"]
    for part in ("'probabilities'", *needs):
        assert part in finding["message"]


def test_what_a_zero_shot_pipeline_returns_names_the_labels(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    student = save_model(tmp_path / "student", "text-classification", seed=2)
    cells = [{"sequence": "x", "labels": ["pos", "neg"], "scores": [0.9, 0.1]}] * len(TEXTS)
    train = write(tmp_path / "data.jsonl", cells, labels=False)
    out = tmp_path / "out"
    result = program(
        "train", "--task", "text-classification", "--student_model", student, "--teacher_column",
        "probabilities", "--train_file", train, "--output_dir", out, "--max_steps", "1",
        "--use_cpu", "--save_strategy", "no", "--distillation_loss_weight", "1",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "pos"}


def test_evaluate_scores_the_column(tmp_path: Path, program: Callable[..., Result]) -> None:
    cells = [*CELLS[:5], {"pos": 0.7, "neg": 0.3}]  # one is wrong
    data = write(tmp_path / "data.jsonl", cells, labels=True)
    result = program(
        "evaluate", "--model", "column:probabilities", "--task", "text-classification",
        "--file", data, "--output_dir", tmp_path / "scores",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    found = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert found["model"] == "column:probabilities"
    assert found["metrics"]["accuracy"] == pytest.approx(100 * 5 / 6)
    predictions = json.loads((tmp_path / "scores" / "predictions.json").read_text())
    assert predictions == ["pos", "pos", "pos", "neg", "neg", "pos"]

    tags = write(tmp_path / "tags.jsonl", WORDS, labels=True, tagged=True)
    result = program(
        "evaluate", "--model", "column:probabilities", "--task", "token-classification",
        "--file", tags, "--output_dir", tmp_path / "tags", "--class_names", *TAGS,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    found = json.loads((tmp_path / "tags" / "evaluation.json").read_text())["metrics"]
    assert found["f1"] == found["accuracy"] == 100


@pytest.mark.parametrize("given", [["--teacher_column", "p"], ["--teacher", "column:p"]])
def test_compare_measures_students_against_the_column(
    given: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    names = ["pos", "neg"]  # the column has them in the other order
    student = save_model(
        tmp_path / "student", "text-classification", seed=2, initializer_range=2.0,
        **labelled(*names),
    )  # fmt: skip
    rows = [
        {"text": text, "label": gold, "p": cell}
        for (text, gold), cell in zip(TEXTS, [*CELLS[:5], {"pos": 1, "neg": 0}], strict=True)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = program(
        "compare", *given, "--student_alone", student, "--file", data, "--output_dir",
        tmp_path / "out", "--use_cpu", "--latency_samples", "2", "--throughput_samples", "2",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())["models"]
    assert found["teacher"]["name"] == "column 'p'"
    assert found["teacher"]["quality"]["accuracy"] == pytest.approx(100 * 5 / 6)
    assert {*found["teacher"]}.isdisjoint({"parameters", "latency", "throughput", "memory"})
    assert found["student_alone"]["parameters"] > 0 and found["student_alone"]["latency"]
    wrong = [abs(float(n < 5) - max(row["p"].values())) for n, row in enumerate(rows)]
    assert found["teacher"]["calibration"]["error"] == pytest.approx(sum(wrong) / 6)

    words = AutoTokenizer.from_pretrained(student)
    model: Any = AutoModelForSequenceClassification.from_pretrained(student)
    distances, same = [], 0
    for row in rows:
        with torch.no_grad():
            logs = model(**words(row["text"], return_tensors="pt")).logits[0].log_softmax(-1)
        pairs = [(row["p"][name], float(log)) for name, log in zip(names, logs, strict=True)]
        distances.append(sum(p * (math.log(p) - q) for p, q in pairs if p))
        same += names[int(logs.argmax())] == max(row["p"], key=row["p"].get)
    assert found["student_alone"]["divergence"] == pytest.approx(sum(distances) / 6, rel=1e-4)
    assert found["student_alone"]["agreement"]["identical"] == pytest.approx(same / 6)
    assert "column &#x27;p&#x27;" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        (["--teacher_column", "p", "--teacher", "m"], "--teacher_column"),
        (["--teacher_column_kind", "logits", "--models", "m", "n"], "--teacher_column_kind logits"),
        (["--teacher_column", "p"], "--teacher_column"),
        (["--teacher_column", "p", "--models", "{student}"], "'p'"),
        (["--teacher_column", "probabilities", "--models", "{student}", "--task", "fill-mask"],
         "fill-mask"),
    ],
)  # fmt: skip
def test_compare_refuses(
    options: list[str], needs: str, tmp_path: Path, program: Callable[..., Result]
) -> None:
    data = write(tmp_path / "data.csv", CELLS, labels=True)
    student = save_model(tmp_path / "student", "text-classification", seed=2)
    argv = [student if word == "{student}" else word for word in options]
    result = program("compare", "--file", data, "--output_dir", tmp_path / "out", *argv)
    assert result.status == 2 and needs in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        (["--teacher_column", "p", "--teacher_model", "m"], "--teacher_column"),
        (["--teacher_column", "p", "--teacher_outputs", "m"], "--teacher_outputs"),
        (["--teacher_column", "p", "--stage", "intermediate"], "--stage intermediate"),
        (["--teacher_column_kind", "logits"], "--teacher_column"),
        (["--teacher_column", "p", "--task", "fill-mask"], "fill-mask"),
        (["--teacher_column", "missing"], "probabilities"),
        (["--teacher_column", "probabilities"], "'no'"),
    ],
)
def test_refused(
    options: list[str], needs: str, tmp_path: Path, program: Callable[..., Result]
) -> None:
    train = write(tmp_path / "data.csv", CELLS, labels=True)
    student = save_model(
        tmp_path / "student", "text-classification", seed=2, **labelled("neg", "pos", "no")
    )
    result = program(
        "train", "--task", "text-classification", "--student_model", student, "--train_file",
        train, "--output_dir", tmp_path / "out", "--use_cpu", *options,
    )  # fmt: skip
    assert result.status == 2 and needs in result.stderr
