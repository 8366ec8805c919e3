"""``hf-distill demo`` runs to its end, does nothing twice, and gives both students one budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tiny import model_for, tokenizer

from hf_distill.cli import compare, demo, train
from hf_distill.cli.main import main
from hf_distill.shrinking.steps import MANIFEST, Steps, fingerprint

TRAININGS = ["teacher", "student_alone", "student_distilled"]


@pytest.fixture(autouse=True)
def one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured could differ between the runs of a test."""
    monkeypatch.setattr("hf_distill.cli.precision.bfloat16_pays", lambda: True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, layers in (("big", 2), ("small", 1)):
        model = model_for(
            "question-answering", seed=layers, layers=layers, max_position_embeddings=512
        )
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return folder / "big", folder / "small"


def options(folder: Path, models: tuple[Path, Path], *more: str) -> list[str]:
    return [
        *("--output_dir", str(folder), "--train_passages", "4", "--validation_passages", "3"),
        *("--teacher_epochs", "1", "--student_epochs", "2"),
        *("--teacher_model", str(models[0]), "--student_model", str(models[1]), *more),
    ]


def test_the_whole_demo_on_tiny_models(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    demo.run(options(folder, models))
    report = json.loads((folder / "comparison.json").read_text("utf-8"))
    assert list(report["models"]) == TRAININGS
    assert all(0 <= model["quality"]["f1"] <= 100 for model in report["models"].values())
    assert (folder / "comparison.md").stat().st_size and (folder / "comparison.png").stat().st_size
    runs = {
        name: json.loads((folder / name / "metrics.json").read_text("utf-8")) for name in TRAININGS
    }
    assert runs["student_alone"]["steps"] == runs["student_distilled"]["steps"] > 0
    assert runs["student_alone"]["teacher_model"] is None
    assert runs["student_distilled"]["teacher_model"] is not None
    assert runs["student_alone"]["train"]["loss"] != runs["student_distilled"]["train"]["loss"]
    said = capsys.readouterr().out
    assert "hf-distill answer --model" in said and "seconds" in said

    weights = [folder / name / "model.safetensors" for name in TRAININGS]
    made = [path.stat().st_mtime_ns for path in weights]
    demo.run(options(folder, models))
    assert [path.stat().st_mtime_ns for path in weights] == made
    assert capsys.readouterr().out.count("is finished") == 3


# ---- what is done, with trainings that only leave a file ---------------------------------------


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the trainings that were run, as they happen."""
    names: list[str] = []

    def fake_train(argv: list[str]) -> None:
        folder = Path(argv[argv.index("--output_dir") + 1])
        assert not folder.exists(), "a training that begins finds what another one left"
        folder.mkdir()
        names.append(folder.name)
        (folder / "model.safetensors").write_text(" ".join(argv))

    monkeypatch.setattr(train, "run", fake_train)
    monkeypatch.setattr(compare, "run", lambda argv: None)
    return names


@pytest.fixture
def again(tmp_path: Path, models: tuple[Path, Path], done: list[str]) -> Callable[..., list[str]]:
    def run(*more: str) -> list[str]:
        done.clear()
        demo.run(options(tmp_path, models, *more))
        return list(done)

    assert run() == TRAININGS
    return run


def test_finished_steps_are_reused(again: Callable[..., list[str]]) -> None:
    assert again() == []
    assert again("--fresh") == TRAININGS
    assert again() == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--temperature", "3"], ["student_distilled"]),
        (["--distillation_loss_weight", "0.5"], ["student_distilled"]),
        (["--student_epochs", "3"], ["student_alone", "student_distilled"]),
        (["--teacher_epochs", "3"], ["teacher", "student_distilled"]),
        (["--seed", "1"], TRAININGS),
        (["--train_passages", "5"], TRAININGS),
    ],
)
def test_a_changed_option_redoes_what_depends_on_it(
    again: Callable[..., list[str]], more: list[str], expected: list[str]
) -> None:
    assert again(*more) == expected


def test_a_changed_teacher_is_learnt_from_anew(
    again: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "teacher" / "model.safetensors").write_text("other weights")
    assert again() == ["student_distilled"]


def test_a_deleted_result_is_made_again(again: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "student_alone" / "model.safetensors").unlink()
    assert again() == ["student_alone"]


@pytest.mark.parametrize("epochs", ["9", "2"], ids=["same", "earlier"])
def test_what_was_stopped_is_done_anew(
    again: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, epochs: str
) -> None:
    """Whether the stopped call is repeated or the one that had finished before it."""
    working = train.run

    def stopped(argv: list[str]) -> None:
        working(argv)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        again("--student_epochs", "9")
    monkeypatch.setattr(train, "run", working)
    both = ["student_alone", "student_distilled"]
    assert again("--student_epochs", epochs) == (both if epochs == "9" else ["student_alone"])
    assert again("--student_epochs", epochs) == []


def test_a_broken_list_of_steps_says_what_to_do(
    again: Callable[..., list[str]], tmp_path: Path
) -> None:
    for content in ("{", "[]", "{}", '{"finished": 3}'):
        (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=r"demo\.json .*--fresh"):
            again()
    assert again("--fresh") == TRAININGS


def test_nothing_of_others_is_deleted(again: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    again("--fresh")
    assert (tmp_path / "thesis.tex").exists()


def test_a_fingerprint_sees_words_order_and_content(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text("1")
    seen = {
        fingerprint(["a", "b"]),
        fingerprint(["b", "a"]),
        fingerprint(["ab"]),
        fingerprint(["a", "b"], [file]),
    }
    file.write_text("2")
    seen.add(fingerprint(["a", "b"], [file]))
    assert len(seen) == 5


def test_an_unfinished_step_is_not_taken(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    steps.start("teacher").mkdir()
    assert not steps.is_finished("teacher", "f")
    (tmp_path / "teacher" / "model.safetensors").touch()
    steps.finish("teacher", "f")
    assert Steps(tmp_path).is_finished("teacher", "f")
    assert not Steps(tmp_path).is_finished("teacher", "g")
    steps.start("teacher")
    assert not Steps(tmp_path).is_finished("teacher", "f")
    assert not list(tmp_path.glob("*.tmp"))


# ---- the calls ---------------------------------------------------------------------------------


def parsed(training: demo.Training, folder: Path) -> tuple[Any, ...]:
    return train.build_parser().parse([*training.options, "--output_dir", str(folder)])


@pytest.mark.parametrize("hub", [False, True], ids=["offline", "hub"])
def test_both_students_have_the_same_budget(
    tmp_path: Path, models: tuple[Path, Path], hub: bool
) -> None:
    arguments, size = demo.build_parser().parse(options(tmp_path, models))
    plan = (demo.hub_plan if hub else demo.offline_plan)(arguments, size, tmp_path)
    alone, distilled = (parsed(training, tmp_path) for training in plan.trainings[-2:])
    free = {
        "eval_with_teacher",
        "teacher_model",
        "teacher_check_samples",
        "baseline",
        "temperature",
        "distillation_loss_weight",
    }
    for one, other in zip(alone, distilled, strict=True):
        differing = {k for k, v in vars(one).items() if str(v) != str(vars(other)[k])}
        assert differing <= free
    assert alone[0].baseline and not distilled[0].baseline
    assert distilled[0].teacher_model is not None and distilled[-1].bf16
    compare.build_parser().parse([*plan.comparison, "--output_dir", str(tmp_path)])
    assert len(plan.trainings) == (2 if hub else 3)


@pytest.mark.parametrize("name", ["train_passages", "validation_passages"])
def test_a_size_that_makes_no_sense_is_refused(
    tmp_path: Path, models: tuple[Path, Path], name: str
) -> None:
    with pytest.raises(ValueError, match=f"--{name} 0 must be at least 1"):
        demo.run(options(tmp_path, models, f"--{name}", "0"))


def test_without_the_packages_the_program_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_there(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", not_there)
    assert main(["demo", "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'pip install "hf-distill[demo]"' in error and "Traceback" not in error
