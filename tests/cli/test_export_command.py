from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import WINDOWS, Files, Result, assert_says_nothing_about_the_machine
from datasets import Dataset, DatasetDict
from task_runs import LABELS, save_model, write_data

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def cells(shown: str) -> set[tuple[str, ...]]:
    """Return the first two cells of each row of a table."""
    rows = [line.split("│")[1:3] for line in shown.splitlines() if "│" in line]
    return {tuple(cell.strip() for cell in row) for row in rows}


def test_export_evaluate_and_compare(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    """The exported folder stands wherever that of a model does, and scores the same."""
    data = ("--file", files.validation)
    served, teacher = tmp_path / "served", files.models["teacher"]
    result = program("export", teacher, "--output_dir", served, *WINDOWS, *data)
    assert result.status == 0, result.stderr
    assert "original" in result.stdout and "times as fast as teacher, which" in result.stdout
    exported = result.stdout
    report = json.loads((served / "export.json").read_text())
    assert report["quality"]["exported"]["f1"] == report["quality"]["original"]["f1"] > 0
    assert_says_nothing_about_the_machine(served, str(files.folder), str(tmp_path))
    for model in (teacher, served):
        options = ("--model", model, *data, *WINDOWS, "--output_dir", tmp_path / Path(model).name)
        result = program("evaluate", "--use_cpu", *options)
        assert result.status == 0, result.stderr
        assert set() < cells(result.stdout) <= cells(exported)
    scores = [
        json.loads((tmp_path / Path(model).name / "evaluation.json").read_text())["metrics"]
        for model in (teacher, served)
    ]
    assert scores[0]["f1"] == scores[1]["f1"] == report["quality"]["original"]["f1"]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-4)
    roles = ("--teacher", teacher, "--student_distilled", served)
    samples = ("--latency_samples", "2", "--throughput_samples", "2", "--use_cpu")
    folder = tmp_path / "comparison"
    result = program("compare", *roles, *data, *WINDOWS, *samples, "--output_dir", folder)
    assert result.status == 0, result.stderr
    models = json.loads((folder / "comparison.json").read_text())["models"]
    original, exported = models["teacher"], models["student_distilled"]
    assert exported["agreement"]["identical"] == 1
    assert exported["stored_as"] == "float32"
    assert exported["size_on_disk"] == (served / "onnx" / "model.onnx").stat().st_size
    assert exported["parameters"] == original["parameters"]


def test_int8_needs_data(files: Files, tmp_path: Path, program: Callable[..., Result]) -> None:
    result = program("export", files.models["teacher"], "--int8", "--output_dir", tmp_path / "a")
    assert result.status == 2
    assert "--int8 needs --file" in result.stderr
    calibration = ("--calibration_file", files.validation)
    result = program("export", files.models["teacher"], *calibration, "--output_dir", tmp_path)
    assert result.status == 2
    assert "--calibration_file is for --int8" in result.stderr


def test_few_rows_are_scored(
    files: Files, tmp_path: Path, program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are evenly spaced; without data there is nothing to cut."""
    given: list[list[str]] = []

    def export(*args: object, data: Dataset, **kwargs: object) -> None:
        given.append(data["id"])
        raise RuntimeError("enough")

    monkeypatch.setattr("hf_distill.exporting.export", export)
    words = ("export", files.models["teacher"], "--output_dir", tmp_path / "a", *WINDOWS)
    program(*words, "--file", files.validation, "--max_eval_samples", "2")
    assert given == [["paris-country?", "london-country?"]]
    result = program(*words, "--file", files.validation, "--max_eval_samples", "0")
    assert "max_eval_samples=0 must be at least 1" in result.stderr


def test_data_that_does_not_fit_is_named(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    model = save_model(tmp_path / "model", "text-classification", **LABELS["text-classification"])
    other = tmp_path / "other.csv"
    other.write_text("text,label\na,odd\nb,pos\n")
    unclear = tmp_path / "unclear.csv"
    unclear.write_text("body,title\na,b\n")
    words = ("export", model, "--output_dir", tmp_path / "a", "--int8")
    for data, message in (
        (("--file", files.validation), "--file: The data has no column with a usual name"),
        (("--file", other), "--file: Row 0 has the label 'odd'"),
        (
            ("--file", write_data(tmp_path, "text-classification"), "--calibration_file", unclear),
            "--calibration_file: The data has no column with a usual name",
        ),
    ):  # fmt: skip
        result = program(*words, *data)
        assert result.status == 2 and message in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("option", "value", "needed"),
    [
        ("max_eval_samples", "2", "file"),
        ("split", "test", "file"),
        ("batch_size", "3", "file"),
        ("label_column", "mood", "file"),
        ("doc_stride", "64", "file"),
        ("tolerance", "5", "int8"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(
    option: str, value: str, needed: str, files: Files, program: Callable[..., Result]
) -> None:
    words = ("export", files.models["teacher"], "--output_dir", files.folder / "refused")
    result = program(*words, f"--{option}", value)
    assert result.status == 2 and f"--{option} is for --{needed}" in result.stderr


def test_a_split_of_a_file_is_refused(files: Files, program: Callable[..., Result]) -> None:
    words = ("export", files.models["teacher"], "--output_dir", files.folder / "refused")
    result = program(*words, "--file", files.validation, "--split", "test")
    assert result.status == 2 and "--split test is for data of several splits" in result.stderr
    result = program(*words, "--file", "")
    assert result.status == 2 and "--file is empty" in result.stderr


def test_speed_is_measured_at_the_length_that_is_asked_for(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    """Without data as well."""
    words = ("export", files.models["teacher"], "--output_dir", tmp_path / "a")
    assert program(*words, "--max_length", "17").status == 0
    latencies = json.loads((tmp_path / "a" / "export.json").read_text())["latencies"]
    assert set(latencies) == {"batch 1 x 17 tokens", "batch 8 x 17 tokens"}


def test_folders_of_several_splits(
    files: Files, tmp_path: Path, program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(name: str) -> Dataset:
        answers = {"text": ["the seine"], "answer_start": [0]}
        context = "the seine runs through paris."
        question = "what runs through paris?"
        row = {"id": name, "context": context, "question": question, "answers": answers}
        return Dataset.from_list([row])

    splits = DatasetDict({name: rows(name) for name in ("train", "validation", "test")})
    splits.save_to_disk(tmp_path / "data")
    given: list[tuple[list[str], list[str]]] = []

    def export(*args: object, data: Dataset, calibration_data: Dataset, **kwargs: object) -> None:
        given.append((data["id"], calibration_data["id"]))
        raise RuntimeError("enough")

    monkeypatch.setattr("hf_distill.exporting.export", export)
    words = ["export", files.models["teacher"], "--output_dir", tmp_path / "a", *WINDOWS, "--int8"]
    words += ["--file", tmp_path / "data", "--calibration_file", tmp_path / "data"]
    program(*words)
    program(*words, "--split", "test")
    assert given == [(["validation"], ["train"]), (["test"], ["train"])]
