"""What `train` and `cache` say about data, and data without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import FACTS, WINDOWS, Files, Result, squad
from task_runs import LABELS, OPTIONS, PAIRS, SENTENCES, TEXTS, save_model, write_data
from transformers import AutoConfig

Program = Callable[..., Result]
FAST = ["--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no", "--max_steps", "1",
        "--per_device_train_batch_size", "2", "--teacher_check_samples", "0"]  # fmt: skip
CLASSES = "text-classification"


def table_of(stderr: str) -> dict[str, list[str]]:
    """The figures of the table by row, by a look at where the columns begin."""
    lines = stderr.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.split() in (["train"],
                 ["train", "validation"]))  # fmt: skip
    count = len(lines[begin].split())
    rows = {}
    for line in lines[begin + 1 :]:
        *name, figures = line.rsplit(maxsplit=count)[0], line.split()[-count:]
        rows[name[0].strip()] = figures
        if name[0].startswith("cut off"):
            return rows
    raise AssertionError(stderr)


def test_data_is_shown_before_training(tmp_path: Path, program: Program) -> None:
    data = tmp_path / "d.csv"
    data.write_text("text,label\n" + "a b c d e f g h i,neg\n" + '" ", pos\n' + "a,pos\nb,neg \n")
    dev = tmp_path / "dev.csv"
    dev.write_text("text,label\na,pos\n")
    student = save_model(tmp_path / "student", CLASSES)
    result = program("train", "--task", CLASSES, "--baseline", "--student_model", student, *FAST,
                     "--train_file", data, "--validation_file", dev, "--max_length", "8",
                     "--output_dir", tmp_path / "out")  # fmt: skip
    assert result.status == 0, result.stderr
    assert table_of(result.stderr) == {
        "rows": ["4", "1"], "label neg": ["2", "0"], "label pos": ["2", "1"],
        "blank text": ["1", "0"], "cut off (--max_length)": ["1", "0"],
    }  # fmt: skip
    assert "blank text in train: rows 1\n" in result.stderr


def test_regression_is_announced_and_the_teacher_decides(tmp_path: Path, program: Program) -> None:
    data = tmp_path / "d.csv"
    data.write_text("text,label\na,1.0\nb,0.0\nc,1.0\nd,4.0\n")
    decimals = tmp_path / "decimals.csv"
    decimals.write_text("text,label\na,1.5\nb,0.5\n")
    student = save_model(tmp_path / "student", CLASSES)
    options = ["train", "--task", CLASSES, "--student_model", student, *FAST]
    result = program(*options, "--baseline", "--train_file", data, "--output_dir", tmp_path / "a")
    assert result.status == 0 and "(regression)" not in result.stderr
    config = AutoConfig.from_pretrained(tmp_path / "a")
    assert list(config.id2label.values()) == ["0", "1", "4"]
    result = program(*options, "--baseline", "--train_file", decimals,
                     "--output_dir", tmp_path / "b")  # fmt: skip
    assert result.status == 0 and "numbers to predict (regression)" in result.stderr
    assert table_of(result.stderr)["highest"] == ["1.5"]
    result = program(*options, "--teacher_model", tmp_path / "b", "--train_file", data,
                     "--distillation_loss", "mse", "--output_dir", tmp_path / "c")  # fmt: skip
    assert result.status == 0 and "numbers to predict (regression)" in result.stderr
    assert AutoConfig.from_pretrained(tmp_path / "c").problem_type == "regression"
    assert table_of(result.stderr)["mean"] == ["1.5"]


def test_vectors_of_labels_have_the_teachers_names(tmp_path: Path, program: Program) -> None:
    data = tmp_path / "d.jsonl"
    rows = [([1, 0, 1], "a"), ([0, 0, 0], "b"), ([0, 1, 1], "c")]
    data.write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for v, t in rows))
    student = save_model(tmp_path / "student", CLASSES)
    options = ["train", "--task", CLASSES, "--student_model", student, *FAST,
               "--train_file", data]  # fmt: skip
    result = program(*options, "--baseline", "--class_names", "x", "y", "z",
                     "--output_dir", tmp_path / "teacher")  # fmt: skip
    assert result.status == 0, result.stderr
    result = program(*options, "--teacher_model", tmp_path / "teacher",
                     "--validation_file", data, "--output_dir", tmp_path / "out")  # fmt: skip
    assert result.status == 0, result.stderr
    assert {name: row for name, row in table_of(result.stderr).items() if "label" in name} == {
        "label x (0)": ["1", "1"], "label y (1)": ["1", "1"], "label z (2)": ["2", "2"],
        "no label": ["1", "1"],
    }  # fmt: skip
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.problem_type == "multi_label_classification"
    assert list(config.id2label.values()) == ["x", "y", "z"]


def unlabelled(folder: Path, task: str) -> Path:
    """The data of ``write_data`` without what is to be predicted."""
    path = folder / "unlabelled.jsonl"
    rows: list[dict[str, Any]] = {
        CLASSES: [{"text": text} for text, _ in TEXTS],
        "token-classification": [{"tokens": words} for words, _ in SENTENCES],
        "summarization": [{"document": text} for text, _ in PAIRS],
        "translation": [{"translation": {"en": text}} for text, _ in PAIRS],
    }.get(task, [{"text": "the cat sat on the mat."}] * 4)
    if task == "translation":
        rows = [{"en": text} for text, _ in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("task", [CLASSES, "token-classification", "fill-mask", "text-generation",
                                  "summarization", "translation"])  # fmt: skip
def test_distillation_alone_needs_no_labels(task: str, tmp_path: Path, program: Program) -> None:
    teacher = save_model(tmp_path / "teacher", task, seed=1, layers=2, **LABELS.get(task, {}))
    student = save_model(tmp_path / "student", task, seed=2)
    options = ["train", "--task", task, "--student_model", student, "--teacher_model", teacher,
               "--train_file", unlabelled(tmp_path, task), *FAST,
               *OPTIONS.get(task, [])]  # fmt: skip
    labelled = write_data(tmp_path, task)
    result = program(*options, "--distillation_loss_weight", "1", "--validation_file", labelled,
                     "--output_dir", tmp_path / "out")  # fmt: skip
    assert result.status == 0, result.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["steps"] == 1 and metrics["train"]["loss"] > 0
    if task in LABELS:
        names = AutoConfig.from_pretrained(tmp_path / "out").id2label
        assert names == AutoConfig.from_pretrained(teacher).id2label
    if task in ("fill-mask", "text-generation"):
        return
    what = "writes the targets" if task in ("summarization", "translation") else "without labels"
    assert what in result.stderr and "column of the data is" not in result.stderr
    result = program(*options, "--distillation_loss_weight", "0.5", "--output_dir", tmp_path / "no")
    assert result.status == 2
    assert ("--target_column" if "targets" in what else "--label_column") in result.stderr
    assert "without labels: --distillation_loss_weight 1." in result.stderr


def test_rows_without_labels_among_others(tmp_path: Path, program: Program) -> None:
    data = tmp_path / "d.csv"
    data.write_text("text,label\na,pos\nb,\nc,neg\n")
    teacher = save_model(tmp_path / "teacher", CLASSES, seed=1, **LABELS[CLASSES])
    student = save_model(tmp_path / "student", CLASSES, seed=2)
    options = ["--student_model", student, "--train_file", data, *FAST,
               "--distillation_loss_weight", "1"]  # fmt: skip
    result = program("train", *options, "--teacher_model", teacher, "--output_dir", tmp_path / "a")
    assert result.status == 0, result.stderr
    assert "without labels" in result.stderr and "Row 1 has nothing" in result.stderr
    cache = ["--teacher_model", teacher, "--train_file", data, "--use_cpu"]
    result = program("cache", *cache, "--output_dir", tmp_path / "stored")
    assert result.status == 0 and table_of(result.stderr)["rows"] == ["3"]
    result = program("train", *options, "--teacher_outputs", tmp_path / "stored",
                     "--output_dir", tmp_path / "b")  # fmt: skip
    assert result.status == 0, result.stderr
    losses = [json.loads((tmp_path / name / "metrics.json").read_text())["train"]["loss"]
              for name in "ab"]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # stored in float16


def test_questions_without_answers(files: Files, tmp_path: Path, program: Program) -> None:
    content = squad(FACTS[:3])
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                del question["answers"]
    data = tmp_path / "d.json"
    data.write_text(json.dumps(content))
    options = ["train", "--student_model", files.models["student_alone"], "--teacher_model",
               files.models["teacher"], "--train_file", data, *FAST, *WINDOWS]  # fmt: skip
    result = program(*options, "--distillation_loss_weight", "1", "--output_dir", tmp_path / "out")
    assert result.status == 0, result.stderr
    assert "without labels" in result.stderr and "'answers'" in result.stderr
    result = program(*options, "--distillation_loss_weight", "0.5", "--output_dir", tmp_path / "no")
    assert result.status == 2 and "'answers'" in result.stderr
