"""Without ``--task``, the models say what they are for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Result
from task_runs import LABELS, OPTIONS, save_model, write_data

Program = Callable[..., Result]
SCORED = ("text-classification", "token-classification", "fill-mask", "text-generation")


@pytest.mark.parametrize("task", SCORED)
def test_models_know_their_task(task: str, program: Program, tmp_path: Path) -> None:
    data, labels = write_data(tmp_path, task), LABELS.get(task, {})
    teacher = save_model(tmp_path / "teacher", task, seed=1, layers=2, **labels)
    student = save_model(tmp_path / "student", task, seed=2, **labels)
    options = ["--use_cpu", *OPTIONS.get(task, [])]
    result = program("evaluate", "--model", teacher, "--file", data,
                     "--output_dir", tmp_path / "scores", *options)  # fmt: skip
    assert result.status == 0, result.stderr
    assert json.loads((tmp_path / "scores" / "evaluation.json").read_text())["task"] == task
    if task != "text-classification":
        return
    runs: dict[str, list[Any]] = {
        "compare": ["--teacher", teacher, "--student_alone", student, "--file", data,
                    "--latency_samples", "0", "--throughput_samples", "0"],
        "cache": ["--teacher_model", teacher, "--train_file", data],
        "train": ["--student_model", student, "--teacher_model", teacher, "--train_file", data,
                  "--max_steps", "1", "--save_strategy", "no", "--teacher_check_samples", "0"],
    }  # fmt: skip
    for command, words in runs.items():
        result = program(command, *words, *options, "--output_dir", tmp_path / command)
        assert result.status == 0, result.stderr
    cached = [
        "--student_model",
        student,
        "--teacher_outputs",
        tmp_path / "cache",
        *runs["train"][4:],
    ]
    result = program("train", *cached, *options, "--output_dir", tmp_path / "cached")
    assert result.status == 0, result.stderr
    files = ("compare/comparison.json", "train/metrics.json", "cached/metrics.json")
    found = [json.loads((tmp_path / name).read_text())["task"] for name in files]
    assert found == [task] * 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    tasks = ("summarization", "fill-mask", "text-generation")
    return {task: save_model(folder / task, task) for task in tasks}


def test_what_models_do_not_say_is_asked_for(
    models: dict[str, str], program: Program, tmp_path: Path
) -> None:
    data = write_data(tmp_path, "summarization")
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    tails = ["--file", data, "--output_dir", tmp_path / "out"]
    training = ["train", "--student_model", models["fill-mask"], "--train_file", data,
                "--validation_file", data, *tails[2:]]  # fmt: skip
    for words, fragments in (
        (["evaluate", "--model", models["summarization"], *tails],
         ["--model writes texts", "summarization or translation", "--task"]),
        (["compare", "--teacher", models["fill-mask"],
          "--student_alone", models["text-generation"], *tails],
         ["--teacher for fill-mask", "--student_alone for text-generation"]),
        (["evaluate", "--model", encoder, *tails], ["is a BertModel", "pass --task"]),
        ([*training, "--baseline"], ["--task is missing"]),
        (["sweep", *training[1:], "--teacher_model", models["fill-mask"], "--search_space", "x"],
         ["fill-mask", "--live_teacher"]),
    ):  # fmt: skip
        result = program(*words)
        assert result.status == 2
        for fragment in fragments:
            assert fragment in result.stderr
