"""``hf-distill cache``, and training from what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import WINDOWS, Files, Result, assert_says_nothing_about_the_machine
from task_runs import LABELS, OPTIONS, save_model, write_data
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

Program = Callable[..., Result]


@pytest.fixture
def data(files: Files) -> list[str]:
    return ["--task", "question-answering", "--train_file", files.train, "--use_cpu", *WINDOWS]


@pytest.fixture
def outputs(program: Program, files: Files, data: list[str], tmp_path: Path) -> Path:
    """The outputs of the tiny teacher."""
    folder = tmp_path / "outputs"
    result = program(
        "cache", *data, "--teacher_model", files.models["teacher"], "--output_dir", folder,
        "--dtype", "float32",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    assert f"rows are in {folder}" in result.stdout
    return folder


@pytest.fixture
def train(program: Program, files: Files, data: list[str], tmp_path: Path) -> Callable[..., Any]:
    """A few steps, and metrics.json of them (or what went wrong)."""

    def call(*argv: Any, out: str = "out", status: int = 0) -> Any:
        result = program(
            "train", *data, "--student_model", files.models["student_alone"],
            "--validation_file", files.validation, "--output_dir", tmp_path / out,
            "--max_steps", "3", "--learning_rate", "1e-2", "--disable_tqdm", "true",
            "--save_strategy", "no", *argv,
        )  # fmt: skip
        assert result.status == status, result.stderr
        return json.loads((tmp_path / out / "metrics.json").read_text()) if not status else result

    return call


def test_a_run_from_the_cache_is_the_run_with_the_teacher(
    train: Callable[..., Any], outputs: Path, files: Files, tmp_path: Path
) -> None:
    live = train("--teacher_model", files.models["teacher"], out="live")
    cached = train("--teacher_outputs", outputs)
    assert cached["train"]["loss"] == pytest.approx(live["train"]["loss"], rel=1e-5)
    assert cached["teacher_model"] == live["teacher_model"] == "teacher"
    assert cached["eval"]["f1"] == live["eval"]["f1"]
    assert "loss_prediction" in live["eval"] and "loss_prediction" not in cached["eval"]
    for folder in (outputs, tmp_path / "out"):
        assert_says_nothing_about_the_machine(folder, str(tmp_path), str(files.folder))


@pytest.mark.parametrize(
    "task", ["text-classification", "token-classification", "text-generation", "translation"]
)
def test_every_task_that_can_be_cached(task: str, program: Program, tmp_path: Path) -> None:
    labels = LABELS.get(task, {})
    teacher = save_model(tmp_path / "teacher", task, seed=1, layers=2, **labels)
    student = save_model(tmp_path / "student", task, seed=2)
    data = ["--task", task, "--train_file", write_data(tmp_path, task), "--use_cpu"]
    data += OPTIONS.get(task, [])
    storing = ["--dtype", "float32", *(["--top_k", "261"] if task == "text-generation" else [])]
    result = program(
        "cache", *data, "--teacher_model", teacher, "--output_dir", tmp_path / "outputs", *storing
    )
    assert result.status == 0, result.stderr
    losses = []
    for teaching in (["--teacher_model", teacher], ["--teacher_outputs", tmp_path / "outputs"]):
        out = tmp_path / teaching[0].strip("-")
        result = program(
            "train", *data, "--student_model", student, *teaching, "--output_dir", out,
            "--max_steps", "3", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2",
            "--save_strategy", "no", "--disable_tqdm", "true", "--teacher_check_samples", "0",
        )  # fmt: skip
        assert result.status == 0, result.stderr
        losses.append(json.loads((out / "metrics.json").read_text())["train"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_tokens_masked_anew_each_time_cannot_be_cached(program: Program, tmp_path: Path) -> None:
    teacher = save_model(tmp_path / "teacher", "fill-mask", seed=1)
    result = program(
        "cache", "--task", "fill-mask", "--train_file", write_data(tmp_path, "fill-mask"),
        "--teacher_model", teacher, "--output_dir", tmp_path / "outputs", "--use_cpu",
        *OPTIONS["fill-mask"],
    )  # fmt: skip
    assert result.status == 2
    assert "masking or augmenting at random" in result.stderr


def test_the_same_call_again_computes_nothing(
    program: Program, data: list[str], outputs: Path, files: Files
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in outputs.iterdir()}
    again = ["--teacher_model", files.models["teacher"], "--output_dir", outputs]
    assert program("cache", *data, *again, "--dtype", "float32").status == 0
    assert {path.name: path.stat().st_mtime_ns for path in outputs.iterdir()} == before
    result = program("cache", *data, *again, "--dtype", "float16")
    assert result.status == 2 and 'signal.dtype was "float32" and is now "float16"' in result.stderr
    result = program("cache", *data, *again, "--dtype", "float32", "--doc_stride", "4",
                     "--max_length", "40")  # fmt: skip
    assert result.status == 2 and "preprocessing.doc_stride was 8 and is now 4" in result.stderr
    other = files.models["student_alone"]
    result = program("cache", *data, *again, "--dtype", "float32", "--teacher_model", other)
    assert result.status == 2 and "teachers.weights_sha256 was" in result.stderr


def test_training_with_other_data_than_was_cached(
    train: Callable[..., Any], outputs: Path, files: Files
) -> None:
    cached = ["--teacher_outputs", outputs]
    result = train(*cached, "--max_length", "40", status=2)
    assert "preprocessing.max_length was 48 and is now 40" in result.stderr
    result = train(*cached, "--max_train_samples", "4", status=2)
    assert "data.rows was 12 and is now 4" in result.stderr
    result = train(*cached, "--train_file", files.validation, status=2)
    assert "are of other data" in result.stderr
    part = next(outputs.glob("part-*"))
    content = part.read_bytes()
    part.write_bytes(content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:])
    result = train(*cached, status=2)
    assert f"{part.name} in outputs cannot be used: it is damaged" in result.stderr


def test_options_that_exclude_each_other(
    train: Callable[..., Any], outputs: Path, files: Files, tmp_path: Path
) -> None:
    cached = ["--teacher_outputs", outputs]
    teacher = ["--teacher_model", files.models["teacher"]]
    assert "either --teacher_model or" in train(*cached, *teacher, status=2).stderr
    layers = (
        ["--intermediate_epochs", "1"],
        ["--record_steps", "1"],
        ["--stage", "intermediate"],
    )
    for further in layers:
        result = train(*cached, *further, status=2)
        assert "needs the teacher itself: pass --teacher_model" in result.stderr
    result = train("--teacher_outputs", tmp_path / "nowhere", status=2)
    assert "there is no such file" in result.stderr
    (tmp_path / "empty").mkdir()
    result = train("--teacher_outputs", tmp_path / "empty", status=2)
    assert "empty holds no teacher outputs" in result.stderr


def test_the_baseline_does_not_look_at_them(train: Callable[..., Any], outputs: Path) -> None:
    for path in outputs.glob("part-*"):
        path.unlink()
    alone = train("--teacher_outputs", outputs, "--baseline")
    assert alone["teacher_model"] is None


def test_by_default_the_teacher_has_the_number_format_it_was_saved_in(
    program: Program, train: Callable[..., Any], data: list[str], files: Files, tmp_path: Path
) -> None:
    saved = AutoModelForQuestionAnswering.from_pretrained(
        files.models["teacher"], dtype=torch.bfloat16
    )
    saved.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(files.models["teacher"]).save_pretrained(tmp_path / "half")
    losses = {"live": train("--teacher_model", tmp_path / "half", out="live")["train"]["loss"]}
    for name, options in (("auto", []), ("wide", ["--teacher_dtype", "float32"])):
        result = program(
            "cache", *data, "--teacher_model", tmp_path / "half", "--output_dir", tmp_path / name,
            "--dtype", "float32", *options,
        )  # fmt: skip
        assert result.status == 0, result.stderr
        cached = train("--teacher_outputs", tmp_path / name, out=f"from_{name}")
        losses[name] = cached["train"]["loss"]
    assert losses["auto"] == pytest.approx(losses["live"], rel=1e-6)
    assert losses["wide"] != pytest.approx(losses["live"], rel=1e-6)


def test_several_teachers(
    program: Program, train: Callable[..., Any], data: list[str], files: Files, tmp_path: Path
) -> None:
    teachers = [
        "--teacher_model", files.models["teacher"], files.models["student_distilled"],
        "--teacher_weights", "2", "1", "--teacher_combination", "logits",
    ]  # fmt: skip
    folder = tmp_path / "both"
    result = program("cache", *data, *teachers, "--output_dir", folder, "--dtype", "float32")
    assert result.status == 0, result.stderr
    described = json.loads((folder / "manifest.json").read_text())["teachers"]
    assert [len(one) for one in described["weights_sha256"]] == [64, 64]
    assert described["shares"] == pytest.approx([2 / 3, 1 / 3])
    live = train(*teachers, out="live")
    cached = train("--teacher_outputs", folder)
    assert cached["train"]["loss"] == pytest.approx(live["train"]["loss"], rel=1e-5)
    assert cached["teacher_model"] == live["teacher_model"] == "teacher + student_distilled"
    one = train(*teachers[:2], out="one")
    assert one["train"]["loss"] != pytest.approx(live["train"]["loss"], rel=1e-3)
