"""``hf-distill demo`` runs to its end, continues where it was stopped, and does nothing twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model_for, tokenizer

from hf_distill.cli import compare, demo, export, shrink
from hf_distill.cli.main import main
from hf_distill.shrinking.shapes import Shape
from hf_distill.shrinking.steps import Steps
from hf_distill.shrinking.workbench import Workbench


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to answer nothing, which is more than shrink asks for."""
    folder = tmp_path_factory.mktemp("teacher")
    model = model_for("question-answering", seed=0, layers=3, max_position_embeddings=512)
    nothing = torch.zeros(16, dtype=torch.long)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    torch.manual_seed(0)
    for _ in range(60):
        ids = torch.randint(3, model.config.vocab_size, (16, 192))
        ids[:, 0] = tokenizer().cls_token_id
        types = torch.randint(2, ids.shape)
        labels = {"start_positions": nothing, "end_positions": nothing}
        model(input_ids=ids, token_type_ids=types, **labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def options(folder: Path, teacher: Path, *more: str) -> list[str]:
    return [
        *("--output_dir", str(folder), "--train_passages", "4", "--validation_passages", "3"),
        *("--teacher_model", str(teacher), *more),
    ]


def time_shapes(self: Workbench, shapes: Sequence[Shape]) -> dict[Shape, tuple[float, float]]:
    """Latencies that depend on the depth alone, not on the machine."""
    return {shape: (10.0 * shape.num_hidden_layers, 30.0) for shape in shapes}


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "small" / "comparison" / "comparison.json").read_text("utf-8"))


@pytest.mark.slow
def test_the_whole_demo_on_a_tiny_model(
    tmp_path: Path,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped after its trainings, continued, and called once more."""
    monkeypatch.setattr(Workbench, "time_shapes", time_shapes)
    monkeypatch.setattr("hf_distill.cli.shrink_plan.bfloat16_pays", lambda: False)
    working = export.run

    def stopped(argv: Sequence[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.run(options(tmp_path, teacher))
    said = capsys.readouterr()
    assert "--temperature 2.0, --distillation_loss_weight 0.5" in said.out
    assert "Predicted" in said.out and "left in all" in said.err
    small = tmp_path / "small"
    trained = [small / "student" / "model.safetensors"]
    made = [path.stat().st_mtime_ns for path in trained]
    monkeypatch.setattr(export, "run", working)
    demo.run(options(tmp_path, teacher))
    assert [path.stat().st_mtime_ns for path in trained] == made
    models = result_of(tmp_path)["models"]
    assert list(models)[:2] == ["teacher", "student_distilled"] and len(models) > 2
    assert all(0 <= model["quality"]["f1"] <= 100 for model in models.values())
    assert (small / "comparison" / "comparison.png").stat().st_size
    said = capsys.readouterr()
    assert str(small / "report.html") in said.out and "seconds" in said.out
    assert f"hf-distill answer --model {small / 'student'}" in said.out

    monkeypatch.setattr(compare, "run", stopped)
    files = {path: path.stat().st_mtime_ns for path in small.rglob("*.safetensors")}
    demo.run(options(tmp_path, teacher))
    assert files == {path: path.stat().st_mtime_ns for path in small.rglob("*.safetensors")}
    with pytest.raises(ValueError, match="seed.*--overwrite_output_dir"):
        demo.run(options(tmp_path, teacher, "--seed", "1"))


def shrinking(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> dict[str, Any]:
    """The options that the demo gives to ``shrink``."""
    words: list[str] = []
    monkeypatch.setattr(shrink, "run", words.extend)
    demo.run(argv)
    return {
        name: value
        for part in shrink.build_parser().parse(words)
        for name, value in vars(part).items()
    }


def test_options_reach_shrink(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = options(tmp_path, teacher, "--seed", "3", "--speedup", "4", "--num_train_epochs", "1.5")
    given = shrinking(monkeypatch, argv)
    assert (given["seed"], given["speedup"], given["num_train_epochs"]) == (3, 4.0, 1.5)
    assert given["export"] and not given["baseline"] and not given["overwrite_output_dir"]
    assert (given["temperature"], given["distillation_loss_weight"]) == (2.0, 0.5)
    assert given["teacher_model"] == str(teacher)
    questions = {
        name: json.loads(Path(given[f"{name}_file"]).read_text("utf-8"))["data"]
        for name in ("train", "validation")
    }
    assert len(questions["train"]) == 4 and len(questions["validation"]) == 3
    assert shrinking(monkeypatch, [*argv, "--overwrite_output_dir"])["overwrite_output_dir"]


def test_on_the_hub_nothing_is_written_or_loaded_before_shrink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = shrinking(monkeypatch, ["--output_dir", str(tmp_path), "--hub"])
    assert given["teacher_model"] == demo.HUB_TEACHER and given["dataset_name"] == demo.HUB_DATA
    assert given["train_file"] is None and given["validation_file"] is None
    assert given["temperature"] is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train_passages", "validation_passages"])
def test_a_size_that_makes_no_sense_is_refused(tmp_path: Path, teacher: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name} 0 must be at least 1"):
        demo.run(options(tmp_path, teacher, f"--{name}", "0"))


def test_without_the_package_the_program_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_there(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", not_there)
    assert main(["demo", "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'pip install "hf-distill[demo]"' in error and "Traceback" not in error


def test_an_unfinished_step_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> Steps:
        return Steps(tmp_path, "steps.json", again="--again")

    made = tmp_path / "student" / "metrics.json"
    steps().finish("student")
    assert not steps().is_finished("student", made.name)
    made.parent.mkdir()
    made.touch()
    assert steps().is_finished("student", made.name)
    assert not steps().is_finished("teacher", made.name)
    steps().start("student", made.name, resumes=True)
    assert made.exists() and not steps().is_finished("student", made.name)
    weights, later = (made.with_name(f"{one}.safetensors") for one in ("model", "later"))
    weights.write_bytes(b"weights")
    steps().finish("student")
    later.write_bytes(b"weights")
    assert steps().is_finished("student", made.name)
    # Weights that were cut short since are deleted with the result, and the rest is resumed from.
    weights.write_bytes(b"wei")
    assert not steps().is_finished("student", made.name)
    steps().start("student", made.name, resumes=True)
    assert not weights.exists() and not made.exists() and later.exists()
    made.touch()
    steps().finish("student")
    monkeypatch.setattr("hf_distill.shrinking.steps.__version__", "another")
    assert not steps().is_finished("student", made.name)
    steps().start("student", made.name)
    assert not made.exists()
