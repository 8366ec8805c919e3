"""``hf-distill create-student``: a teacher's folder in, a student's folder out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import WINDOWS, Files, Result, assert_says_nothing_about_the_machine
from safetensors.torch import load_file
from task_runs import LABELS, OPTIONS, save_model, write_data
from tiny import tokenizer
from transformers import (
    AutoFeatureExtractor,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    WhisperFeatureExtractor,
)
from zoo import zoo_model

Program = Callable[..., Result]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "student.json").read_text())


def test_a_student_is_made_and_can_be_trained(
    program: Program, files: Files, tmp_path: Path
) -> None:
    teacher, student = files.models["teacher"], tmp_path / "student"
    made = program(
        "create-student", teacher, "--hidden_size", "8", "--intermediate_size", "16",
        "--calibration_file", files.train, "--calibration_tokens", "300",
        "--output_dir", student, *WINDOWS,
    )  # fmt: skip
    assert made.status == 0, made.stderr
    record = record_of(student)
    assert f"{record['parameters']:,} parameters" in made.stdout
    assert record["sizes"]["hidden_size"] == 8 and record["initialization"] == "least_squares"
    assert 300 <= record["calibration_tokens"] < 1000
    assert_says_nothing_about_the_machine(student, str(tmp_path), str(files.folder))
    model = AutoModelForQuestionAnswering.from_pretrained(student)
    assert model.config.hidden_size == 8
    words = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (teacher, student)]
    assert words[0] == words[1]
    trained = program(
        "train", "--teacher_model", teacher, "--student_model", student, "--train_file",
        files.train, "--max_steps", "1", "--output_dir", tmp_path / "out", "--use_cpu", *WINDOWS,
    )  # fmt: skip
    assert trained.status == 0, trained.stderr


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "fill-mask"])
def test_data_of_every_task(task: str, program: Program, tmp_path: Path) -> None:
    teacher = save_model(tmp_path / "teacher", task, seed=1, layers=2, **LABELS.get(task, {}))
    data = write_data(tmp_path, task)
    if task == "fill-mask":
        data = str(Path(data).rename(tmp_path / "data.text.txt"))
    made = program(
        "create-student", teacher, "--hidden_size", "8", "--intermediate_size", "8", "--layers",
        "1", "--calibration_file", data, "--output_dir", tmp_path / "student",
        *OPTIONS.get(task, []),
    )  # fmt: skip
    assert made.status == 0, made.stderr
    assert record_of(tmp_path / "student")["layers"] == [1]


def test_layers_alone_need_no_data(program: Program, files: Files, tmp_path: Path) -> None:
    made = program(
        "create-student", files.models["teacher"], "--layers", "last", "--num_hidden_layers", "1",
        "--output_dir", tmp_path / "student",
    )  # fmt: skip
    assert made.status == 0, made.stderr
    assert record_of(tmp_path / "student")["initialization"] == "copy"


def test_a_student_that_hears_keeps_what_makes_its_features(
    program: Program, tmp_path: Path
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    zoo_model("automatic-speech-recognition", "whisper", seed=0, layers=2).save_pretrained(teacher)
    tokenizer().save_pretrained(teacher)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    extractor.save_pretrained(teacher)
    made = program(
        "create-student", teacher, "--num_hidden_layers", "1", "--output_dir", student
    )  # fmt: skip
    assert made.status == 0, made.stderr
    again = AutoFeatureExtractor.from_pretrained(student)
    assert again.to_dict() == extractor.to_dict()


def test_a_trimmed_student_learns_from_the_whole_teacher(
    program: Program, files: Files, tmp_path: Path
) -> None:
    teacher, student = files.models["teacher"], tmp_path / "student"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("word3 word4\nword5, who?\n")
    made = program(
        "create-student", teacher, "--num_hidden_layers", "1", "--trim_vocabulary", corpus,
        "--output_dir", student,
    )  # fmt: skip
    assert made.status == 0, made.stderr
    words = AutoTokenizer.from_pretrained(student)
    assert len(words) == record_of(student)["vocab_size"]
    assert {"word3", "word5"} <= words.get_vocab().keys()
    assert len(words) < len(AutoTokenizer.from_pretrained(teacher))
    assert_says_nothing_about_the_machine(student, str(tmp_path), str(files.folder))
    checked = program("check", teacher, student)
    assert "mapped" in checked.stdout, checked.stderr
    cached = program(
        "cache", "--teacher_model", teacher, "--tokenizer", student, "--train_file", files.train,
        "--output_dir", tmp_path / "cache", "--dtype", "float32", "--use_cpu", *WINDOWS,
    )  # fmt: skip
    assert cached.status == 0, cached.stderr
    weights = []
    for option, value in (("--teacher_model", teacher), ("--teacher_outputs", tmp_path / "cache")):
        out = tmp_path / option
        trained = program(
            "train", option, value, "--student_model", student, "--train_file", files.train,
            "--max_steps", "2", "--output_dir", out, "--use_cpu", "--distillation_loss_weight", "1",
            "--learning_rate", "1e-3", *WINDOWS,
        )  # fmt: skip
        assert trained.status == 0, trained.stderr
        weights.append(load_file(out / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trim_vocabulary", "none.txt"], "--trim_vocabulary none.txt"),
        (["--trim_vocabulary", "train.json"], "--trim_vocabulary train.json"),
        (["--hidden_size", "8"], "--calibration_file is needed"),
        (["--calibration_file", "none.txt"], "--calibration_file none.txt"),
        (["--calibration_file", "a", "--dataset_name", "b"], "--dataset_name"),
        (["--num_hidden_layers", "99"], "--num_hidden_layers 99"),
        (["--layers", "0,,1"], "--layers '0,,1'"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], message: str, program: Program, files: Files, tmp_path: Path
) -> None:
    made = program(
        "create-student", files.models["teacher"], "--output_dir", tmp_path / "student", *options
    )
    assert made.status == 2
    assert message in made.stderr


def test_a_teacher_is_named_as_it_was_typed(program: Program, tmp_path: Path) -> None:
    made = program("create-student", tmp_path / "none", "--output_dir", tmp_path / "student")
    assert made.status == 2
    assert f"TEACHER {tmp_path / 'none'}:" in made.stderr


def test_a_model_is_not_overwritten(program: Program, tmp_path: Path) -> None:
    teacher = Path(save_model(tmp_path / "teacher", "fill-mask", seed=1, layers=2))
    before = (teacher / "model.safetensors").read_bytes()
    made = program("create-student", teacher, "--layers", "0", "--output_dir", teacher)
    assert made.status == 2
    assert f"--output_dir {teacher}" in made.stderr
    assert (teacher / "model.safetensors").read_bytes() == before


def test_files_that_cannot_be_used_are_named(
    program: Program, files: Files, tmp_path: Path
) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\xa4")
    blank = tmp_path / "blank.txt"
    blank.write_text("\n  \n")
    for options, named in (
        (["--output_dir", binary], f"--output_dir {binary}"),
        (["--output_dir", tmp_path / "student", "--trim_vocabulary", binary], "--trim_vocabulary"),
        (["--output_dir", tmp_path / "student", "--trim_vocabulary", blank], "has no texts"),
    ):
        made = program("create-student", files.models["teacher"], "--layers", "0", *options)
        assert made.status == 2
        assert named in made.stderr


def test_a_name_before_the_teacher_is_not_suggested_again(
    program: Program, files: Files, tmp_path: Path
) -> None:
    made = program("create-student", "--teacher", files.models["teacher"], "--output_dir", tmp_path)
    assert made.status == 2
    assert "no option --teacher." in made.stderr and "mean --teacher?" not in made.stderr
