"""``hf-distill shrink``: one plan, followed to its end whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import WINDOWS, Files, Result, assert_says_nothing_about_the_machine
from forked import interpreter
from task_runs import LABELS, OPTIONS, save_model, tiny_model, write_data
from tiny import model_for, tokenizer
from two_stage_runs import same, weights

import hf_distill
from hf_distill import DistillationTrainer
from hf_distill.cli import sweep_trials
from hf_distill.cli.main import command_module
from hf_distill.cli.shrink_report import _shape_rows
from hf_distill.cli.shrink_run import ShrinkResult, _show
from hf_distill.exporting import ExportReport
from hf_distill.reports.comparison import Latency
from hf_distill.reports.sweep_report import SweepReport
from hf_distill.shrinking.plan import Plan
from hf_distill.shrinking.shapes import Shape, Timed
from hf_distill.shrinking.steps import Steps
from hf_distill.shrinking.workbench import StepTimes, Workbench

Program = Callable[..., Result]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    model_for("question-answering", seed=0, layers=3).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Latencies that depend on the shape alone, so that no test depends on the machine."""
    factor = {"speed": 1.0}

    def time_shapes(self: Workbench, shapes: Sequence[Shape]) -> Any:
        config: Any = self.teacher.config
        whole = 10.0 * config.num_hidden_layers * config.hidden_size
        return {
            s: (10.0 * s.num_hidden_layers * s.hidden_size / factor["speed"], whole) for s in shapes
        }

    monkeypatch.setattr(Workbench, "time_shapes", time_shapes)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr("hf_distill.cli.shrink_plan.bfloat16_pays", lambda: False)
    return factor


@pytest.fixture
def options(files: Files, teacher: str, tmp_path: Path) -> list[str]:
    return [
        *("shrink", "--teacher_model", teacher, "--train_file", files.train),
        *("--validation_file", files.validation, "--output_dir", str(tmp_path / "small")),
        *("--num_hidden_layers", "2", "--num_train_epochs", "8", "--use_cpu", "--no_export"),
        *("--hidden_states_share", "0.5"),
        *WINDOWS,
    ]


def plan_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "shrink.json").read_text())


def without(options: list[str], *names: str) -> list[str]:
    """The options without some of them and their values."""
    kept, skip = [], False
    for word in options:
        skip = word in names if word.startswith("--") else skip
        if not skip:
            kept.append(word)
    return kept


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_which_is_then_followed(
    program: Program, options: list[str], tmp_path: Path, clock: dict[str, float]
) -> None:
    folder = tmp_path / "small"
    options = [*without(options, "--num_hidden_layers"), "--speedup", "1.3"]
    shown = program(*options, "--dry_run")
    assert shown.status == 0, shown.stderr
    assert "hidden_states_steps" in shown.stdout and "1.50" in shown.stdout
    assert "same command without --dry_run follows it" in shown.stdout
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == [
        "shrink.json"
    ]
    before = plan_of(folder)
    # Latencies that are measured again cannot change what was decided.
    clock["speed"] = 3.0
    done = program(*options)
    assert done.status == 0, done.stderr
    content = plan_of(folder)
    assert content["plan"] == before["plan"] and content["settings"] == before["settings"]
    assert content["failures"] == {} and set(content["seconds"]) == {
        "created", "teacher_outputs", "student", "comparison"
    }  # fmt: skip
    assert_says_nothing_about_the_machine(folder, str(tmp_path), options[2])
    metrics = json.loads((folder / "student" / "metrics.json").read_text())
    assert metrics["intermediate_stage"]["steps"] == 4
    assert "times as fast" in done.stdout and "without --dry_run" not in done.stdout
    assert f"on one page: {folder / 'report.html'}" in done.stdout
    assert f"hf-distill evaluate --model {folder / 'student'} --task" in done.stdout
    page = (folder / "report.html").read_text()
    assert "chose the student among its checkpoints" in page
    for shown in ("hidden_states_steps", "hf-distill create-student", "nearest to the teacher"):
        assert shown in page
    assert_says_nothing_about_the_machine(folder / "comparison", str(tmp_path))
    # A second call does nothing again; another setting is refused.
    made = (folder / "student" / "model.safetensors").stat().st_mtime_ns
    assert program(*options).status == 0
    assert (folder / "student" / "model.safetensors").stat().st_mtime_ns == made
    other = program(*options, "--seed", "7")
    assert other.status == 2 and "seed was 42 and is now 7" in other.stderr
    # It makes again what was damaged or deleted since.
    page = (folder / "report.md").read_text()
    assert "1.3 were asked for" in page and "the student as it was" in page
    before = {
        name: {key: one.clone() for key, one in weights(folder / name).items()}
        for name in ("created", "student")
    }
    damaged = [folder / name / "model.safetensors" for name in before]
    damaged += sorted((folder / "teacher_outputs").rglob("*.arrow"))[:1]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:-8])
    (folder / "report.html").unlink()
    again = program(*options)
    assert again.status == 0, again.stderr
    assert all(same(weights(folder / name), tensors) for name, tensors in before.items())
    assert (folder / "report.html").is_file()


def test_a_target_that_was_missed_is_said(tmp_path: Path, capsys: Any) -> None:
    plan = Plan("text-classification", Shape(4, 8, 32, 2), Shape(2, 8, 32, 2), 1.8, {})
    models = {"teacher": {"latency": {"median": 6.0}}}
    models["student_distilled"] = {"latency": {"median": 5.0}}
    result = ShrinkResult(plan, tmp_path, comparison={"models": models})
    for asked, missed in ((1.5, True), (1.2, False), (None, False)):
        _show(result, asked)
        shown = capsys.readouterr().out
        assert "It is 1.20 times as fast" in shown and "predicted were 1.80" in shown
        assert ("less than the 1.5 times that were asked for" in shown) == missed


def test_shapes_are_shown_below_the_teacher() -> None:
    """Its time is the median of those in the turns of the shapes."""
    teacher, shape = Shape(4, 8, 32, 2), Shape(2, 8, 32, 2)
    table = [Timed(shape, 2.0, 6.0, 1_500_000), Timed(Shape(1, 8, 32, 2), 1.0, 6.4, 900_000)]
    plan = Plan("text-classification", teacher, shape, 3.0, {}, table, teacher_parameters=2_640_000)
    rows = _shape_rows(plan)
    assert rows[0] == (str(teacher), "6.2", "1.00", "2.6", "", "the teacher")
    assert [row[:2] for row in rows[1:]] == [
        (str(one.shape), f"{one.milliseconds:.1f}") for one in table
    ]
    older = {name: value for name, value in plan.to_json().items() if name != "teacher_parameters"}
    assert _shape_rows(Plan.from_json(json.loads(json.dumps(older))))[0][3] == ""


def test_a_plan_that_was_not_begun_is_made_again(
    program: Program, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second plan is made beside other work, and says so."""
    first = program(*options, "--dry_run")
    assert first.status == 0 and "is busy" not in first.stderr
    monkeypatch.setattr(os, "getloadavg", lambda: (9876.5, 0.0, 0.0), raising=False)
    again = program(*options, "--dry_run", "--temperature", "7")
    assert again.status == 0, again.stderr
    assert "load 9876.5" in again.stderr and "times that are predicted" in again.stderr
    assert "--num_hidden_layers" not in again.stderr  # which is given
    assert "load 9876.5" in plan_of(tmp_path / "small")["plan"]["busy"]
    by_time = program(*without(options, "--output_dir"), "--speedup", "1.2", "--dry_run",
                      "--output_dir", tmp_path / "fast")  # fmt: skip
    assert "name the shape as well (--hidden_size, " in by_time.stderr
    same_settings = [*options, "--dry_run", "--temperature", "7"]
    assert "is busy" not in program(*same_settings).stderr
    assert "is busy" in program(*same_settings, "--overwrite_output_dir").stderr
    decisions = plan_of(tmp_path / "small")["plan"]["decisions"]
    assert decisions["temperature"] == {
        "name": "temperature", "value": 7.0, "reason": "set by --temperature"
    }  # fmt: skip
    assert program(*options, "--temperature", "7").status == 0
    pages = [(tmp_path / "small" / name).read_text() for name in ("report.md", "report.html")]
    assert all("timed on a busy machine (load 9876.5 on" in page for page in pages)
    assert all("timed on a busy machine: load 9876.5 on" in page for page in pages)


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_list_of_steps(
    content: str, program: Program, options: list[str], tmp_path: Path
) -> None:
    assert program(*options, "--dry_run").status == 0
    (tmp_path / "small" / "steps.json").write_text(content)
    result = program(*options)
    assert result.status == 2
    assert "steps.json" in result.stderr and "--overwrite_output_dir" in result.stderr
    assert "--fresh" not in result.stderr


@pytest.mark.slow
def test_from_python_without_labels_and_validation_data(
    files: Files, teacher: str, tmp_path: Path
) -> None:
    content = json.loads(Path(files.train).read_text())
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for row in paragraph["qas"]:
                del row["answers"]
    unlabelled = tmp_path / "unlabelled.json"
    unlabelled.write_text(json.dumps(content))
    result = hf_distill.shrink(
        teacher,
        unlabelled,
        tmp_path / "small",
        num_hidden_layers=2,
        num_train_epochs=2,
        export=False,
        use_cpu=True,
        max_length=48,
        doc_stride=8,
    )
    assert result.plan["distillation_loss_weight"] == 1.0
    assert result.speedup is None and result.comparison == {}
    assert (result.student / "model.safetensors").is_file()
    assert "prediction_steps" in (tmp_path / "small" / "report.html").read_text()
    with pytest.raises(ValueError, match="num_hidden_layers"):
        hf_distill.shrink(
            teacher,
            unlabelled,
            tmp_path / "other",
            num_hidden_layers=9,
            max_length=48,
            doc_stride=8,
        )


@pytest.mark.parametrize(
    "task", ["text-classification", "token-classification", "fill-mask", "summarization"]
)
def test_every_task_has_a_plan(task: str, program: Program, tmp_path: Path) -> None:
    teacher = save_model(tmp_path / "teacher", task, seed=1, layers=2, **LABELS.get(task, {}))
    data = write_data(tmp_path, task)
    shown = program(
        "shrink", "--teacher_model", teacher, "--task", task, "--train_file", data,
        "--validation_file", data, "--speedup", "1.5", "--output_dir", tmp_path / "small",
        "--num_train_epochs", "2", "--use_cpu", "--dry_run", *OPTIONS.get(task, []),
    )  # fmt: skip
    assert shown.status == 0, shown.stderr
    plan = plan_of(tmp_path / "small")["plan"]
    assert plan["shape"] != plan["teacher"] and plan["speedup"] == 2.0


def test_the_task_is_said_first_and_then_how_far_it_is(program: Program, tmp_path: Path) -> None:
    teacher = save_model(tmp_path / "teacher", "fill-mask", seed=1, layers=2)
    architecture = type(tiny_model("fill-mask")).__name__
    shown = program(
        "shrink", "--teacher_model", teacher, "--train_file", write_data(tmp_path, "fill-mask"),
        "--speedup", "1.5", "--output_dir", tmp_path / "small", "--use_cpu", "--dry_run",
        *OPTIONS["fill-mask"],
    )  # fmt: skip
    assert shown.status == 0, shown.stderr
    assert shown.stderr.startswith(f"Task: fill-mask, as the teacher is a {architecture} (--task")
    for words in (" of a student …", "Making a student of 1 layer", "12/12"):
        assert words in shown.stderr


def test_labels_without_names_are_doubted_where_the_student_is_another_model(
    program: Program, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, data = "text-classification", write_data(tmp_path, "text-classification")
    data = Path(data)
    data.write_text(data.read_text().replace(",pos", ",0").replace(",neg", ",1"))
    teacher = save_model(tmp_path / "teacher", task, seed=1, layers=3)
    shared = ["--teacher_model", teacher, "--train_file", data, "--use_cpu"]
    small = ["--num_hidden_layers", "1", "--num_train_epochs", "1", "--no_export"]
    shrunk = program("shrink", *shared, *small, "--teacher_check_samples", "0", "--output_dir",
                     tmp_path / "small", "--hidden_states_share", "0.5")  # fmt: skip
    assert shrunk.status == 0, shrunk.stderr
    assert "have no names" not in caplog.text + shrunk.stderr
    other = save_model(tmp_path / "other", task, seed=2, layers=1)
    stages = ["--intermediate_max_steps", "1", "--max_steps", "1", "--report_to", "none"]
    trained = program("train", *shared, *stages, "--teacher_check_samples", "0",
                      "--student_model", other, "--output_dir", tmp_path / "out")  # fmt: skip
    assert trained.status == 0, trained.stderr
    assert (caplog.text + trained.stderr).count("have no names") == 1
    assert "--class_names" in caplog.text + trained.stderr


def test_a_teacher_of_numbers(program: Program, tmp_path: Path) -> None:
    one = {"num_labels": 1, "id2label": {0: "stars"}, "label2id": {"stars": 0}}
    teacher = save_model(tmp_path / "teacher", "text-classification", seed=1, layers=3, **one)
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"film {i},{i / 2}\n" for i in range(24)))
    options = [
        "shrink", "--teacher_model", teacher, "--train_file", data, "--validation_file", data,
        "--max_parameters", "9000", "--output_dir", tmp_path / "small", "--use_cpu", "--dry_run",
    ]  # fmt: skip
    shown = program(*options)
    assert shown.status == 0, shown.stderr
    assert "squared error untrained" in shown.stdout and "KL" not in shown.stdout
    plan = plan_of(tmp_path / "small")["plan"]
    assert plan["decisions"]["distillation_loss"]["value"] == "mse"
    assert any(row["divergence"] > 0 for row in plan["table"])


@pytest.mark.parametrize("labelled", ["training", "validation"])
def test_a_teacher_that_is_worse_than_none_is_refused_before_anything_is_timed(
    labelled: str, program: Program, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    model = tiny_model("text-classification", layers=2, **LABELS["text-classification"])
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([100.0, 0.0]))  # always "pos"
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    rows = [{"text": f"film {i}", "label": "pos" if i % 10 == 0 else "neg"} for i in range(50)]
    good, bare = tmp_path / "labelled.jsonl", tmp_path / "bare.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    files = ["--train_file", good]
    if labelled == "validation":
        files = ["--train_file", bare, "--validation_file", good]
    options = [
        "shrink", "--teacher_model", folder, *files, "--num_hidden_layers", "1",
        "--output_dir", tmp_path / "small", "--use_cpu", "--dry_run",
    ]  # fmt: skip
    refused = program(*options)
    assert refused.status == 2 and "10.0%" in refused.stderr and "90.0%" in refused.stderr
    assert "Timing" not in refused.stderr and not (tmp_path / "small" / "shrink.json").exists()
    assert program(*options, "--teacher_check_samples", "0").status == 0


def test_labels_that_are_needed_and_not_there(program: Program, tmp_path: Path) -> None:
    teacher = save_model(
        tmp_path / "teacher", "text-classification", layers=2, **LABELS["text-classification"]
    )
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"text": f"film {i}"}) + "\n" for i in range(8)))
    options = [
        "shrink", "--teacher_model", teacher, "--train_file", bare, "--num_hidden_layers", "1",
        "--output_dir", tmp_path / "small", "--use_cpu", "--dry_run",
    ]  # fmt: skip
    for more, named in (
        (["--baseline"], "--baseline"), (["--validation_file", bare], "--validation_file")
    ):  # fmt: skip
        failed = program(*options, *more)
        assert failed.status == 2 and named in failed.stderr, failed.stderr


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ("odd", "pos", "--train_file: Row 0 has the label 'odd'"),
        ("pos", "odd", "--validation_file: Row 0 has the label 'odd'"),
        ("neg", "pos", "--train_file: The label column has no labels to tell apart, only 'neg'"),
    ],
)
def test_labels_that_no_step_can_use_are_refused_by_the_plan(
    train: str, validation: str, message: str, program: Program, tmp_path: Path
) -> None:
    teacher = save_model(
        tmp_path / "teacher", "text-classification", layers=2, **LABELS["text-classification"]
    )
    files: dict[str, Path] = {}
    for option, label in (("--train_file", train), ("--validation_file", validation)):
        files[option] = tmp_path / f"{option[2:]}.csv"
        files[option].write_text(f"text,label\na,{label}\n" + "b,neg\n" * 9)
    failed = program(
        "shrink", "--teacher_model", teacher, *(w for pair in files.items() for w in pair),
        "--num_hidden_layers", "1", "--output_dir", tmp_path / "small", "--use_cpu",
        "--teacher_check_samples", "0",
    )  # fmt: skip
    assert failed.status == 2 and message in failed.stderr, failed.stderr
    assert "Timing" not in failed.stderr and not list((tmp_path / "small").glob("[!.]*"))


@pytest.mark.parametrize("more", [[], ["--max_parameters", "9000"]])
def test_too_few_rows_for_a_narrower_student(
    more: list[str], program: Program, tmp_path: Path
) -> None:
    teacher = save_model(
        tmp_path / "teacher", "text-classification", layers=2, **LABELS["text-classification"]
    )
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"text": "a"}\n' * 8)
    failed = program(
        "shrink", "--teacher_model", teacher, "--train_file", bare, "--hidden_size", "8",
        "--output_dir", tmp_path / "small", "--use_cpu", "--dry_run", *more,
    )  # fmt: skip
    assert failed.status == 2, failed.stderr
    assert "at least 32 tokens of training data, and here are 12; pass more" in failed.stderr
    assert "num_hidden_layers" in failed.stderr and "calibration" not in failed.stderr
    assert ("target" in failed.stderr) == bool(more)


def test_a_missing_package_of_the_export_is_named_before_anything_is_timed(
    program: Program, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    failed = program(*without(options, "--no_export"), "--dry_run")
    assert failed.status == 2 and len(failed.stderr.splitlines()) == 1
    assert "hf-distill[export]" in failed.stderr and "--no_export" in failed.stderr
    # What cannot be exported needs no package, and no time.
    teacher = save_model(tmp_path / "writer", "text-generation", seed=1, layers=2)
    shown = program(
        "shrink", "--teacher_model", teacher, "--train_file",
        write_data(tmp_path, "text-generation"), "--block_size", "16", "--num_hidden_layers", "1",
        "--output_dir", tmp_path / "other", "--use_cpu", "--dry_run",
    )  # fmt: skip
    assert shown.status == 0, shown.stderr
    assert set(plan_of(tmp_path / "other")["plan"]["seconds"]) == {"created", "student"}


def test_only_what_a_plan_has_left_is_deleted(
    program: Program,
    options: list[str],
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "small"
    mine = folder / "student" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    refused = program(*options, "--overwrite_output_dir")
    assert refused.status == 2 and "holds other files (student)" in refused.stderr
    # Not even from a folder with a plan, if it is what the new one is to be made of.
    shutil.copytree(options[2], folder / "student", dirs_exist_ok=True)
    (folder / "shrink.json").write_text("{}")
    for words, named in (
        (["--teacher_model", str(folder / "student")], "--teacher_model"),
        (["--dry_run"], "--dry_run"),
    ):
        refused = program(*options, "--overwrite_output_dir", *words)
        assert refused.status == 2 and named in refused.stderr, refused.stderr
        assert mine.exists() and (folder / "shrink.json").exists()
    # Nor before it is known that there is a new plan.
    refused = program(*options, "--overwrite_output_dir", "--num_hidden_layers", "99")
    assert refused.status == 2 and "num_hidden_layers" in refused.stderr
    assert mine.exists() and (folder / "shrink.json").read_text() == "{}"

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr("hf_distill.students.create_student", fail)
        assert "stop here" in program(*options, "--overwrite_output_dir").stderr
    assert not mine.exists() and plan_of(folder)["plan"]["shape"]["num_hidden_layers"] == 2


def test_the_time_that_is_left_is_that_of_all_steps_to_come(
    program: Program, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program(*options, "--dry_run").status == 0
    file = tmp_path / "small" / "shrink.json"
    content = json.loads(file.read_text())
    content["plan"]["seconds"] = {"created": 60, "student": 7200, "comparison": 3540}
    file.write_text(json.dumps(content))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("stop here")

    monkeypatch.setattr("hf_distill.students.create_student", fail)
    failed = program(*options)
    assert "3 h" in failed.stderr and "stop here" in failed.stderr


def test_a_target_that_no_shape_reaches(program: Program, options: list[str]) -> None:
    failed = program(*without(options, "--num_hidden_layers"), "--speedup", "99")
    assert failed.status == 2 and "speedup=99" in failed.stderr
    assert "1 layers of 8" in failed.stderr and "6.00" in failed.stderr


def copy_as_export(model: str, output_dir: str, **options: Any) -> ExportReport:
    """Stand in for an exporter: the model itself takes its export's place."""
    shutil.copytree(model, output_dir, ignore=shutil.ignore_patterns("checkpoint-*"))
    (Path(output_dir) / "export.json").write_text("{}")
    times = {role: Latency(1.0, (1.0, 1.0), 1) for role in ("original", "exported")}
    sizes = {"original": 1, "exported": 1}
    machine = {"processor": "a processor", "threads": "1"}
    return ExportReport("", "float32", None, 0.0, {}, None, {}, [], {"all": times}, sizes, machine)


def speedup_of(models: dict[str, Any]) -> float:
    teacher, student = (
        models[role]["latency"]["median"] for role in ("teacher", "student_distilled")
    )
    return teacher / student


@pytest.mark.slow
def test_the_student_alone_and_a_failing_export(
    program: Program,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def fail(*args: Any, int8: bool, **kwargs: Any) -> None:
        asked.append(int8)
        raise RuntimeError(f"no exporter for this architecture ({tmp_path}/x.onnx)")

    monkeypatch.setattr("hf_distill.exporting.export", fail)
    folder = tmp_path / "small"
    done = program(*without(options, "--no_export"), "--baseline")
    assert done.status == 0, done.stderr
    assert done.stdout.count("no exporter for this architecture") == 1
    assert asked == [False]  # nor would it be quantized
    assert set(plan_of(folder)["failures"]) == {"onnx", "int8"}
    assert "not tried, because onnx failed" in plan_of(folder)["failures"]["int8"]
    assert "no exporter for this architecture (x.onnx)" in (folder / "report.md").read_text()
    compared = json.loads((folder / "comparison" / "comparison.json").read_text())["models"]
    assert list(compared) == ["teacher", "student_alone", "student_distilled"]
    alone = json.loads((folder / "student_alone" / "metrics.json").read_text())
    assert 4 <= alone["steps"] <= 8 and alone["teacher_model"] is None
    content = plan_of(folder)
    assert {"onnx", "int8"} < set(content["seconds"])
    assert "--models" not in content["commands"][-1]
    assert program(*without(options, "--no_export"), "--baseline").status == 0
    assert plan_of(folder)["commands"] == content["commands"]
    for line in content["commands"]:
        _, name, *words = shlex.split(line)
        command_module(name).build_parser().parse(words)
    # Once it works the exports are made, and everything that names them is made again.
    monkeypatch.setattr("hf_distill.exporting.export", copy_as_export)
    done = program(*without(options, "--no_export"), "--baseline")
    assert done.status == 0, done.stderr
    assert plan_of(folder)["failures"] == {}
    compared = json.loads((folder / "comparison" / "comparison.json").read_text())["models"]
    assert [one["name"] for one in compared.values()][-2:] == ["onnx", "int8"]
    page = (folder / "report.md").read_text()
    assert "no exporter" not in page and "--models small/onnx small/int8" in page
    assert json.loads((folder / "student_alone" / "metrics.json").read_text()) == alone
    speedups = [plan_of(folder)["plan"]["speedup"], speedup_of(compared)]
    shown = " | ".join(["times as fast as the teacher", *(f"{one:.2f}" for one in speedups)])
    assert shown in page


@pytest.mark.slow
@pytest.mark.thorough
def test_a_search_where_a_budget_has_room(
    program: Program,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Workbench, "step_times", lambda *args: StepTimes(0.02, 0.01))
    quick = (0.1, 0.2)
    monkeypatch.setattr(Workbench, "time_shapes", lambda _, shapes: dict.fromkeys(shapes, quick))
    options = [*without(options, "--num_train_epochs", "--hidden_states_share"), "--budget", "8s"]
    options.append("--baseline")
    folder, trials = tmp_path / "small", tmp_path / "small" / "search"
    # The disk is full where the third of four trainings begins; then there is space again.
    real, calls = sweep_trials.run_request, []

    def full_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    finish = Steps.finish

    def killed(self: Steps, name: str) -> None:
        finish(self, name)
        if name == "search":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # The settings of the first training win, and not those that were planned.
    monkeypatch.setattr(SweepReport, "best", lambda self: next(iter(self.complete()), None))
    monkeypatch.setattr(SweepReport, "equals", lambda self: [])
    monkeypatch.setattr(sweep_trials, "run_request", full_once)
    failed = program(*options)
    assert failed.status != 0 and os.strerror(errno.ENOSPC) in failed.stderr
    decided = plan_of(folder)["plan"]["decisions"]
    assert decided["temperature"]["value"] == 4.0 and decided["search"]["value"]
    with monkeypatch.context() as patches:
        patches.setattr(Steps, "finish", killed)
        assert program(*options).status != 0
    assert len(calls) == 5
    done = program(*options)
    assert done.status == 0, done.stderr
    assert len(calls) == 5
    sweep = json.loads((trials / "sweep.json").read_text())
    assert len(sweep["trials"]) == 4 and all(one["value"] is not None for one in sweep["trials"])
    expected = {"temperature": 1.0, "distillation_loss_weight": 0.5}
    decided = plan_of(folder)["plan"]["decisions"]
    assert {name: decided[name]["value"] for name in expected} == expected
    assert "search" in decided["temperature"]["reason"]
    commands = [shlex.split(one) for one in plan_of(folder)["commands"]]
    (command,) = [one for one in commands if "small/student" in one and one[1] == "train"]
    for name, value in expected.items():
        assert command[command.index(f"--{name}") + 1] == str(value)
    page = (folder / "report.html").read_text()
    assert "hf-distill sweep" in page and "--search_space" in page
    assert_says_nothing_about_the_machine(folder, str(tmp_path), options[2])


@pytest.mark.parametrize("moment", ["plan", "training"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, None], ids=["Ctrl-C", "SIGTERM"])
def test_stopped_it_says_how_to_go_on(
    moment: str,
    error: Any,
    program: Program,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if moment == "training":
        assert program(*options, "--dry_run").status == 0
    forward = DistillationTrainer.training_step

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if error is not None:
            raise error
        signal.raise_signal(signal.SIGTERM)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", stopped)
    again = ["--overwrite_output_dir"] if moment == "plan" else []
    result = program(*options, *again)
    assert result.status == (143 if error is None else 130)
    said = result.stderr + caplog.text
    assert "--resume" not in said and "resume_from_checkpoint" not in said
    assert said.count("To continue, repeat the command") == 1
    assert ("without --overwrite_output_dir" in said) == bool(again)
    assert ("nothing was to be saved yet" in said) == (moment == "plan" and error is None)


@pytest.mark.slow
def test_full_disk(
    program: Program, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = without(options, "--validation_file")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("hf_distill.students.save_student", full)
        failed = program(*options)
    assert failed.status != 0 and os.strerror(errno.ENOSPC) in failed.stderr
    assert program(*options).status == 0
    assert (tmp_path / "small" / "student" / "model.safetensors").is_file()


def start(options: list[str], folder: Path) -> subprocess.Popen[bytes]:
    words = [*options, "--output_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([interpreter(), "-m", "hf_distill", *words], env=environment)


def killed_at(options: list[str], folder: Path, moments: Sequence[str]) -> None:
    """Kill when each of these appears, and continue; then let it come to its end."""
    codes = []
    for moment in moments:
        process = start(options, folder)
        while process.poll() is None and not (folder / moment).exists():
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        codes.append(process.wait(300))
    assert codes.count(-signal.SIGKILL) >= len(moments) - 1, codes
    assert start(options, folder).wait(300) == 0


@pytest.mark.slow
def test_killed_at_many_moments_the_same_student(options: list[str], tmp_path: Path) -> None:
    # One plan for both: which latencies a busy machine has is not the question here.
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(options, whole).wait(300) == 0
    killed.mkdir()
    shutil.copy(whole / "shrink.json", killed)
    moments = (
        "created",
        "created/student.json",
        "teacher_outputs",
        "teacher_outputs/manifest.json",
        "student/intermediate/checkpoint-2",
        "student/intermediate/metrics.json",
        "student/checkpoint-1",
        "student/checkpoint-3",
        "student/metrics.json",
        "comparison/comparison.json",
    )
    killed_at(options, killed, moments)
    assert same(weights(whole / "student"), weights(killed / "student"))
    names = ("created", "teacher_outputs", "student", "comparison")
    assert set(json.loads((killed / "steps.json").read_text())["finished"]) == set(names)


@pytest.mark.slow
@pytest.mark.thorough
def test_killed_in_a_search_the_same_student(options: list[str], tmp_path: Path) -> None:
    options = [*without(options, "--num_train_epochs", "--hidden_states_share"), "--budget", "5m"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start([*options, "--dry_run"], whole).wait(300) == 0
    content = plan_of(whole)  # the search is of its usual length; the training need not be
    for name, steps in (("prediction_steps", 6), ("save_steps", 2)):
        content["plan"]["decisions"][name]["value"] = steps
    killed.mkdir()
    for folder in (whole, killed):
        (folder / "shrink.json").write_text(json.dumps(content))
    assert start(options, whole).wait(300) == 0
    moments = (
        "search/trial-0000",
        "search/sweep.json",
        "search/trial-0001/options.yaml",
        "search/trial-0003/metrics.json",
        "student",
    )
    killed_at(options, killed, moments)
    assert same(weights(whole / "student"), weights(killed / "student"))
    sweeps = [json.loads((one / "search" / "sweep.json").read_text()) for one in (whole, killed)]
    trials = [[one["value"] for one in sweep["trials"]] for sweep in sweeps]
    assert trials[0] == trials[1] and len(trials[0]) == 4
    plans = [plan_of(one)["plan"]["decisions"] for one in (whole, killed)]
    assert plans[0] == plans[1]


def test_a_validation_file_is_not_for_a_data_set_of_the_hub(
    program: Program, options: list[str], tmp_path: Path
) -> None:
    failed = program(*without(options, "--train_file"), "--dataset_name", "squad")
    assert failed.status == 2 and "--validation_split" in failed.stderr
    assert not (tmp_path / "small").exists()


def test_options_that_contradict(program: Program, options: list[str]) -> None:
    for words, named in (
        (["--budget", "2h"], "num_train_epochs"),
        (["--budget", "soon"], "budget"),
        (["--speedup", "0.5"], "--speedup 0.5"),
        (["--max_parameters", "0"], "--max_parameters 0"),
        (["--push_to_hub"], "--hub_model_id"),
        (["--augment", "1"], "--augment 1"),
        (["--augment_model", "mlm"], "--augment_model"),
        (["--augment", "3", "--max_train_samples", "5"], "--max_train_samples"),
        (["--augment", "3"], "--augment_model='bert-base-uncased' cannot be loaded"),
        (["--augment", "3", "--augment_model", "no/such/model"], "--augment_model no/such/model"),
        (["--private"], "--private is for --push_to_hub"),
        (["--tolerance", "3"], "--tolerance 3 is for the export"),
        (["--validation_split", "foo"], "--validation_split foo is for"),
        (["--train_split", "foo"], "--train_split foo is for"),
        (["--dataset_revision", "main"], "--dataset_revision is for --dataset_name"),
        (["--preprocessing_num_workers", "0"], "--preprocessing_num_workers 0 must"),
        (["--validation_file", ""], "--validation_file is empty"),
        (["--output_dir", ""], "--output_dir is empty"),
        (["--teacher_model", ""], "--teacher_model is empty"),
        (["--tolerance", "-1"], "--tolerance -1"),
        (["--train_file", "missing.json"], "missing.json"),
        (["--distillation_loss_weight", "0"], "distillation_loss_weight=0"),
    ):
        failed = program(*options, *words)
        assert failed.status == 2 and named in failed.stderr, failed.stderr
    unscored = without(options, "--validation_file")
    for words in (["--max_eval_samples", "5"], ["--validation_split", "foo"]):
        failed = program(*unscored, *words)
        assert failed.status == 2 and " ".join(words) in failed.stderr, failed.stderr
