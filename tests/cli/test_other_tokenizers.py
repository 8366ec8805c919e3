"""``--teacher_model`` alone, with a teacher of another tokenizer: live, cached, checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vocabularies
from cli_runs import WINDOWS, Files, Result, assert_says_nothing_about_the_machine
from task_runs import LABELS, save_model, write_data
from tiny import model_for
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

Program = Callable[..., Result]
AUTO: dict[str, Any] = {
    "question-answering": AutoModelForQuestionAnswering,
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}
REPORTS = {
    "question-answering": "Different tokenizers: aligned by characters.",
    "text-classification": "Different tokenizers: each reads its own encoding.",
    "token-classification": "Different tokenizers: aligned by words.",
}


def with_other_tokenizer(task: str, source: str, folder: Path) -> str:
    """The model with the vocabulary of a byte-level tokenizer."""
    words = vocabularies.byte_level()
    model = AUTO[task].from_pretrained(source)
    model.resize_token_embeddings(len(words))
    model.config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    words.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    words.save_pretrained(folder)
    return str(folder)


def test_teachers_with_different_tokenizers_are_refused(
    program: Program, files: Files, tmp_path: Path
) -> None:
    same = files.models["teacher"]
    other = with_other_tokenizer("question-answering", same, tmp_path / "other")
    data = ["--train_file", files.train, "--task", "question-answering", "--use_cpu", *WINDOWS]
    for pair in ((same, other), (other, same)):
        for command in (["train", "--student_model", same], ["cache", "--tokenizer", same]):
            out = tmp_path / "out"
            result = program(*command, *data, "--teacher_model", *pair, "--output_dir", out)
            assert result.status == 2 and not (out / "metrics.json").exists()
            for part in ("--teacher_model", "teacher", "other", "different tokenizers"):
                assert part in result.stderr


def test_two_stages_are_refused_by_the_options_of_the_first(
    program: Program, files: Files, tmp_path: Path
) -> None:
    other = with_other_tokenizer("question-answering", files.models["teacher"], tmp_path / "other")
    out = tmp_path / "out"
    for option in ("--intermediate_epochs", "--intermediate_max_steps", "--record_steps"):
        result = program(
            "train", "--train_file", files.train, "--task", "question-answering", "--use_cpu",
            *WINDOWS, "--student_model", files.models["student_alone"], "--teacher_model", other,
            "--output_dir", out, "--overwrite_output_dir", "--max_steps", "1",
            "--teacher_check_samples", "0", option, "1",
        )  # fmt: skip
        assert result.status == 2 and option in result.stderr
        assert "different tokenizers" in result.stderr
        assert not list(out.rglob("model.safetensors"))


def test_teachers_read_what_all_of_them_can_take(
    program: Program, files: Files, tmp_path: Path
) -> None:
    """Live as cached, and the windows are the student's, however little a teacher takes."""
    short = model_for("question-answering", seed=7, layers=1, max_position_embeddings=30)
    short.save_pretrained(tmp_path / "base")
    student = files.models["student_alone"]
    teachers = [with_other_tokenizer("question-answering", source, tmp_path / name)
                for name, source in (("long", files.models["teacher"]),
                                     ("short", str(tmp_path / "base")))]  # fmt: skip
    data = ["--train_file", files.train, "--task", "question-answering", "--use_cpu", *WINDOWS]
    for number, order in enumerate((teachers, teachers[::-1], teachers[1:])):
        stored, found = tmp_path / f"outputs{number}", []
        result = program(
            "cache", *data, "--teacher_model", *order, "--tokenizer", student,
            "--output_dir", stored, "--dtype", "float32",
        )  # fmt: skip
        assert result.status == 0, result.stderr
        for teaching in (["--teacher_model", *order], ["--teacher_outputs", stored]):
            out = tmp_path / f"{number}{teaching[0]}"
            result = program(
                "train", *data, "--student_model", student, *teaching, "--output_dir", out,
                "--max_steps", "1", "--save_strategy", "no", "--disable_tqdm", "true",
                "--distillation_loss_weight", "1", "--teacher_check_samples", "0",
            )  # fmt: skip
            assert result.status == 0, result.stderr
            found.append(json.loads((out / "metrics.json").read_text())["train"]["loss"])
        assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", AUTO)
def test_a_teacher_with_another_tokenizer(
    task: str, program: Program, files: Files, tmp_path: Path
) -> None:
    if task == "question-answering":
        student, file, options = files.models["student_alone"], files.train, WINDOWS
        source = files.models["teacher"]
    else:
        labels = LABELS.get(task, {})
        source = save_model(tmp_path / "base", task, seed=1, layers=2, **labels)
        student = save_model(tmp_path / "student", task, seed=2)
        file, options = write_data(tmp_path, task), []
    teacher = with_other_tokenizer(task, source, tmp_path / "teacher")
    data = ["--task", task, "--train_file", file, "--use_cpu", *options]
    result = program(
        "cache", *data, "--teacher_model", teacher, "--output_dir", tmp_path / "outputs",
        "--tokenizer", student, "--dtype", "float32",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    found = []
    for teaching in (["--teacher_model", teacher], ["--teacher_outputs", tmp_path / "outputs"]):
        out = tmp_path / teaching[0].strip("-")
        result = program(
            "train", *data, "--student_model", student, *teaching, "--output_dir", out,
            "--validation_file", file, "--max_steps", "3", "--per_device_train_batch_size", "2",
            "--learning_rate", "1e-2", "--save_strategy", "no", "--disable_tqdm", "true",
            "--teacher_check_samples", "0", "--distillation_loss_weight", "0.5",
        )  # fmt: skip
        assert result.status == 0, result.stderr
        found.append(json.loads((out / "metrics.json").read_text()))
    assert found[1]["train"]["loss"] == pytest.approx(found[0]["train"]["loss"], rel=1e-4)
    assert found[0]["eval"]["loss_prediction"] > 0
    assert_says_nothing_about_the_machine(tmp_path / "outputs", str(tmp_path))
    result = program("check", teacher, student, "--task", task, "--json")
    findings = {f["about"]: f["message"] for f in json.loads(result.stdout)["findings"]}
    assert findings["tokenizer"] == REPORTS[task]
    result = program("evaluate", "--task", task, "--model", teacher, "--file", file, "--use_cpu",
                     *options)  # fmt: skip
    assert result.status == 0, result.stderr
