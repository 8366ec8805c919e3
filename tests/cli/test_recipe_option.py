"""``hf-distill train --recipe``: what wins, and that every recipe runs on stand-ins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from cli_runs import Files, Result
from recipes.stand_ins import STAND_INS, save_models, write_data

from hf_distill.cli.train import build_parser
from hf_distill.recipes import Recipe, list_recipes, load_recipe
from hf_distill.tasks import tables

NAME = "roberta-base-squad2"


def parse(*words: str, config: str | None = None, folder: Path | None = None) -> dict[str, Any]:
    """All options by name."""
    argv = ["--output_dir", "o", "--use_cpu", *words]
    if config is not None and folder is not None:
        (folder / "run.yaml").write_text(config)
        argv += ["--config", str(folder / "run.yaml")]
    parts = build_parser().parse(argv)
    return {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}


def test_a_recipe_sets_all_of_its_options() -> None:
    options = parse("--recipe", NAME)
    assert options["recipe"] == NAME
    expected = load_recipe(NAME).options()
    expected["teacher_model"] = [expected["teacher_model"]]  # of one or several
    assert {name: options[name] for name in expected} == expected


def test_command_line_overrides_file_overrides_recipe(tmp_path: Path) -> None:
    config = "temperature: 7\nlearning_rate: 1e-4\n"
    words = ("--recipe", NAME, "--temperature", "9", "--student_model", "mine")
    options = parse(*words, config=config, folder=tmp_path)
    assert options["temperature"] == 9.0
    assert options["learning_rate"] == 1e-4
    assert options["student_model"] == "mine"
    assert options["distillation_loss_weight"] == 0.857
    # Where --recipe stands on the command line makes no difference.
    assert parse("--temperature", "9", "--recipe", NAME)["temperature"] == 9.0
    assert parse("--temperature", "9", f"--recipe={NAME}")["temperature"] == 9.0


def test_a_recipe_may_be_named_in_the_file(tmp_path: Path) -> None:
    options = parse(config=f"temperature: 7\nrecipe: {NAME}\n", folder=tmp_path)
    assert options["temperature"] == 7.0
    assert options["teacher_model"] == ["deepset/roberta-large-squad2"]
    other = parse("--recipe", "bert-medium-squad2", config=f"recipe: {NAME}", folder=tmp_path)
    assert other["recipe"] == "bert-medium-squad2"
    assert other["teacher_model"] == ["deepset/bert-large-uncased-whole-word-masking-squad2"]


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (["--train_file", "mine.json"], None),
        (["--train-file=mine.json"], None),
        ([], "train_file: mine.json"),
        ([], "train-file: mine.json"),
    ],
)
def test_a_file_replaces_the_data_set(words: list[str], config: str, tmp_path: Path) -> None:
    recipe = "gelectra-base-germanquad"
    options = parse("--recipe", recipe, *words, config=config or "seed: 1", folder=tmp_path)
    assert options["train_file"] == "mine.json"
    assert options["dataset_name"] is None
    assert options["dataset_revision"] is None
    assert options["validation_split"] == "validation"
    assert options["temperature"] == 2.0


def test_another_data_set_replaces_all_of_the_data_set() -> None:
    options = parse("--recipe", "gelectra-base-germanquad", "--dataset_name", "rajpurkar/squad")
    assert options["dataset_name"] == "rajpurkar/squad"
    assert options["dataset_revision"] is None
    assert options["validation_split"] == "validation"


def test_a_part_of_the_data_set_can_be_changed() -> None:
    options = parse("--recipe", NAME, "--validation_split", "none", "--max_train_samples", "9")
    assert options["dataset_name"] == "rajpurkar/squad_v2"
    assert options["validation_split"] == "none"


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--recipe", "bert-medum"], ["--recipe", "did you mean 'bert-medium-squad2'?"]),
        (["--recipe"], ["--recipe", "expected one argument"]),
        (["--recipe", NAME, "--validation_file", "VALIDATION"], ["either --dataset_name or"]),
        (["--recipe", NAME, "--temperature", "0"], ["temperature must be a finite number above 0"]),
        (["--recipe", NAME, "--train_file", "nowhere.json"], ["nowhere.json", "no such file"]),
    ],
)
def test_what_does_not_go_together(
    words: list[str], fragments: list[str], files: Files, program: Callable[..., Result]
) -> None:
    words = [files.validation if word == "VALIDATION" else word for word in words]
    result = program("train", "--output_dir", "out", "--use_cpu", *words)
    assert result.status == 2
    for fragment in fragments:
        assert fragment in result.stderr


def shorter(recipe: Recipe) -> list[str]:
    two_stages = "intermediate_epochs" in recipe.training
    return ["--intermediate_max_steps", "2"] if two_stages else []


def test_a_recipe_goes_by_its_full_name_in_reports(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    recipe = load_recipe("tinybert-6l")
    save_models(recipe, {role: tmp_path / role for role in ("student", "teacher")})
    file = write_data(recipe, tmp_path / "data.json")
    words = ["--recipe", "tinybert-6l", "--use_cpu", "--max_steps", "1", *shorter(recipe)]
    models = [f"--{role}_model={tmp_path / role}" for role in ("student", "teacher")]
    result = program(
        *("train", *words, *models, "--train_file", file, "--output_dir", tmp_path / "out"),
        *("--disable_tqdm", "true"),
    )
    assert result.status == 0, result.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["recipe"] == metrics["intermediate_stage"]["recipe"] == "tinybert-6l-squad2"


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_runs_on_stand_ins(
    name: str, tmp_path: Path, program: Callable[..., Result]
) -> None:
    recipe = load_recipe(name)
    models = {role: tmp_path / role for role in ("student", "teacher")}
    save_models(recipe, models)
    file = write_data(recipe, tmp_path / "data.json")
    result = program(
        *("train", "--recipe", name, "--output_dir", tmp_path / "out"),
        *("--student_model", models["student"], "--teacher_model", models["teacher"]),
        *("--train_file", file, "--validation_file", file),
        *(
            "--max_steps",
            "2",
            *shorter(recipe),
            "--logging_steps",
            "1",
            "--use_cpu",
            "--disable_tqdm",
            "true",
        ),
    )
    assert result.status == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert f"Recipe {name}: its settings, for other models and data" in said
    assert recipe.differs not in said
    yours = ["--train_file", "--student_model", "--teacher_model"]
    assert f"Yours instead of the recipe's: {', '.join(yours)}." in said
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["recipe"] == name
    assert metrics["steps"] == 2
    stage = metrics["intermediate_stage"]
    assert (stage is not None) == ("intermediate_epochs" in recipe.training)
    if stage is not None:
        assert stage["steps"] == 2
        first = json.loads((tmp_path / "out" / "intermediate" / "trainer_state.json").read_text())
        assert first["log_history"][0]["loss_attention"] > 0
    assert metrics["distillation"]["temperature"] == recipe.published.temperature
    assert (
        metrics["distillation"]["distillation_loss_weight"]
        == (recipe.training["distillation_loss_weight"])
    )
    assert 0 <= metrics["eval"]["f1"] <= 100
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss_prediction"] > 0
    stand_in = STAND_INS[name]
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == [stand_in.teacher.__name__]
    assert config.hidden_size == stand_in.widths[0]
    _, info = stand_in.teacher.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_baseline_of_a_recipe_needs_no_teacher(
    tmp_path: Path, program: Callable[..., Result]
) -> None:
    recipe = load_recipe(NAME)
    save_models(recipe, {role: tmp_path / role for role in ("student", "teacher")})
    file = write_data(recipe, tmp_path / "data.json")
    result = program(
        *("train", "--recipe", NAME, "--baseline", "--output_dir", tmp_path / "out"),
        *("--student_model", tmp_path / "student", "--train_file", file),
        *("--max_steps", "1", "--use_cpu", "--disable_tqdm", "true", "--learning_rate", "1e-3"),
    )
    assert result.status == 0, result.stderr
    said = " ".join(result.stderr.split())
    for part in (recipe.summary, recipe.translation, recipe.differs):
        assert part in said
    yours = "--train_file, --student_model, --learning_rate"
    assert f"Yours instead of the recipe's: {yours}." in said
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["teacher_model"] is None
    assert metrics["distillation"]["distillation_loss_weight"] == 0.0


def test_without_the_hub_a_file_is_asked_for(
    tmp_path: Path, program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach it on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(tables, "load_dataset", load)
    recipe = load_recipe(NAME)
    save_models(recipe, {role: tmp_path / role for role in ("student", "teacher")})
    models = [f"--{role}_model={tmp_path / role}" for role in ("student", "teacher")]
    result = program(
        "train", "--recipe", NAME, "--output_dir", tmp_path / "o", "--use_cpu", *models
    )
    assert result.status == 2
    assert "--dataset_name rajpurkar/squad_v2: Couldn't reach it" in result.stderr
    assert "pass a file with --train_file." in result.stderr
