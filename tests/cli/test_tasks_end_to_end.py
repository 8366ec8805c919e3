from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_runs import Result, assert_says_nothing_about_the_machine
from safetensors.torch import load_file
from task_runs import LABELS, LENGTH, OPTIONS, save_model, write_data

PRIMARY = {
    "text-classification": {"accuracy", "f1", "matthews"},
    "token-classification": {"f1", "precision", "recall", "accuracy"},
    "fill-mask": {"perplexity", "accuracy"},
    "text-generation": {"perplexity", "accuracy"},
    "summarization": {"rouge1", "rouge2", "rougeL"},
    "translation": {"bleu", "chrf"},
}


class Project(NamedTuple):
    task: str
    data: str
    teacher: str
    student: str
    options: list[str]


@pytest.fixture(params=list(PRIMARY))
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    task = request.param
    return Project(
        task,
        write_data(tmp_path, task),
        save_model(tmp_path / "teacher", task, seed=1, layers=2, **LABELS.get(task, {})),
        save_model(tmp_path / "student", task, seed=2),
        ["--task", task, "--use_cpu", *OPTIONS.get(task, [])],
    )


def train(program: Callable[..., Result], project: Project, out: Path, *argv: str) -> dict:
    result = program(
        "train", *project.options, "--student_model", project.student,
        "--teacher_model", project.teacher, "--train_file", project.data,
        "--validation_file", project.data, "--output_dir", out, "--max_steps", "3",
        "--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--save_strategy", "no",
        "--disable_tqdm", "true", "--teacher_check_samples", "0", *argv,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    return json.loads((out / "metrics.json").read_text())


def test_train_evaluate_compare(
    project: Project, tmp_path: Path, program: Callable[..., Result]
) -> None:
    distilled = train(program, project, tmp_path / "distilled", "--eval_strategy", "epoch")
    alone = train(program, project, tmp_path / "alone", "--baseline")
    assert distilled["teacher_model"] == "teacher" and alone["teacher_model"] is None
    assert distilled["eval"].keys() >= {*PRIMARY[project.task], "loss_prediction"}
    configs = [(tmp_path / name / "config.json").read_text() for name in ("distilled", "alone")]
    assert configs[0] == configs[1]
    weights = [load_file(tmp_path / n / "model.safetensors") for n in ("distilled", "alone")]
    assert weights[0].keys() == weights[1].keys()
    assert any(not weights[0][name].equal(weights[1][name]) for name in weights[0])

    result = program(
        "evaluate", *project.options, "--model", tmp_path / "distilled", "--file", project.data,
        "--output_dir", tmp_path / "scores",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    scores = json.loads((tmp_path / "scores" / "evaluation.json").read_text())["metrics"]
    for name in {*PRIMARY[project.task], "loss"}:
        assert scores[name] == pytest.approx(distilled["eval"][name], rel=1e-4), name
    files = [tmp_path / name / "predictions.json" for name in ("distilled", "scores")]
    if files[0].exists():
        assert files[0].read_text() == files[1].read_text()

    result = program(
        "compare", *project.options, "--teacher", project.teacher,
        "--student_alone", tmp_path / "alone", "--student_distilled", tmp_path / "distilled",
        "--file", project.data, "--output_dir", tmp_path / "comparison",
        "--latency_samples", "2", "--throughput_samples", "2",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert content["task"] == project.task
    for role, report in content["models"].items():
        assert report["quality"].keys() >= PRIMARY[project.task]
        assert report["throughput"] > 0 and report["latency"]["median"] > 0
        if role != "teacher":
            assert all(0 <= share <= 1 for share in report["agreement"].values())
    for name in PRIMARY[project.task]:
        quality = content["models"]["student_distilled"]["quality"]
        assert quality[name] == pytest.approx(scores[name], rel=1e-5)
    folders = [tmp_path / name for name in ("distilled", "scores", "comparison")]
    for folder in folders:
        assert_says_nothing_about_the_machine(folder, str(tmp_path))


def test_model_agrees_with_itself(
    project: Project, tmp_path: Path, program: Callable[..., Result]
) -> None:
    result = program(
        "compare", *project.options, "--teacher", project.teacher,
        "--student_distilled", project.teacher, "--file", project.data,
        "--output_dir", tmp_path / "out", "--latency_samples", "0", "--throughput_samples", "0",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    for share in content["models"]["student_distilled"]["agreement"].values():
        # A random summarizer may write no word at all.
        assert share == pytest.approx(1.0) or project.task in ("summarization", "translation")


def test_scores_do_not_depend_on_the_batch_size(
    project: Project, tmp_path: Path, program: Callable[..., Result]
) -> None:
    found = []
    for size in ("1", "3"):
        result = program(
            "evaluate", *project.options, "--model", project.teacher, "--file", project.data,
            "--output_dir", tmp_path / size, "--batch_size", size,
        )  # fmt: skip
        assert result.status == 0, result.stderr
        found.append(json.loads((tmp_path / size / "evaluation.json").read_text())["metrics"])
    for name in PRIMARY[project.task]:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5), name
        assert math.isfinite(found[0][name])


def test_too_long_inputs_are_refused(
    project: Project, tmp_path: Path, program: Callable[..., Result]
) -> None:
    language_model = project.task in ("fill-mask", "text-generation")
    option = "--block_size" if language_model else "--max_length"
    result = program(
        "evaluate", *project.options, "--model", project.teacher, "--file", project.data,
        option, "1000",
    )  # fmt: skip
    assert result.status == 2
    assert f"{option} 1000" in result.stderr and str(LENGTH) in result.stderr


@pytest.mark.parametrize(
    ("task", "package"),
    [("token-classification", "seqeval"), ("summarization", "rouge_score"),
     ("translation", "sacrebleu")],
)  # fmt: skip
def test_a_missing_package_of_the_metric_is_named_before_a_step(
    task: str,
    package: str,
    program: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, options = write_data(tmp_path, task), OPTIONS.get(task, [])
    student = save_model(tmp_path / "student", task, **LABELS.get(task, {}))
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    failed = program(
        *("train", "--task", task, "--student_model", student, "--baseline", "--use_cpu", *options),
        *("--train_file", data, "--validation_file", data, "--output_dir", out, "--max_steps", "1"),
    )
    assert failed.status == 2, failed.stderr
    assert f'{package} is not installed: pip install "hf-distill[metrics]"' in failed.stderr
    assert not list(out.glob("*.safetensors"))
