from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace

import pytest
from cli_runs import Result

from hf_distill.cli.train import build_parser
from hf_distill.recipes import list_recipes, load_recipe


def test_the_table_has_every_recipe(program: Callable[..., Result]) -> None:
    result = program("recipes")
    assert result.status == 0
    # Models and figures have cells of their own, and several lines each.
    text = " ".join(result.stdout.split())
    for name in list_recipes():
        recipe = load_recipe(name)
        for part in (name, recipe.task, recipe.student_model, recipe.teacher_model):
            assert part in text
    for figures in ("69.6 → 72.8 (83.2)", "78.0 → 79.0 (84.4)", "? → 71.8* (77.7)"):
        assert figures in text
    for share in ("24%", "25%", "16%", "35%", "76%"):
        assert share in text
    row = next(line for line in result.stdout.splitlines() if "roberta-large-squad2" in line)
    assert "(0.75)" in row
    assert "--distillation_loss_weight" in result.stdout
    assert "* was reached with more steps" in result.stdout


def test_a_narrow_terminal_does_not_cut_names(
    program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", program("recipes").stdout).splitlines()
    assert max(map(len, lines[:-4])) <= 80
    for name in list_recipes():
        assert any(f"│ {name} " in line for line in lines)


@pytest.mark.parametrize("name", list_recipes())
def test_one_recipe_is_shown_in_full(name: str, program: Callable[..., Result]) -> None:
    result = program("recipes", name)
    assert result.status == 0
    text = " ".join(result.stdout.split())
    recipe = load_recipe(name)
    published = recipe.published
    for part in (recipe.summary, recipe.translation, recipe.differs):
        assert part in text
    for part in (published.source, published.settings_source, f"→ {published.distilled}"):
        assert part in text
    assert f"hf-distill train --recipe {name} --output_dir FOLDER" in result.stdout


@pytest.mark.parametrize("name", list_recipes())
def test_the_command_that_is_shown_is_the_recipe(name: str, program: Callable[..., Result]) -> None:
    shown = program("recipes", name).stdout.partition("or, the same in full:\n")[2]
    words = shlex.split(shown.replace("\\\n", " "))
    assert words[:2] == ["hf-distill", "train"]
    *in_full, full_arguments = build_parser().parse([*words[2:], "--use_cpu"])
    short, *rest, arguments = build_parser().parse(
        ["--recipe", name, "--output_dir", "FOLDER", "--use_cpu"]
    )
    assert [replace(short, recipe=None), *rest] == in_full
    assert arguments.to_dict() == full_arguments.to_dict()


def test_json(program: Callable[..., Result]) -> None:
    every = json.loads(program("recipes", "--json").stdout)
    assert [recipe["name"] for recipe in every] == list_recipes()
    one = json.loads(program("recipes", "roberta-base-squad2", "--json").stdout)
    assert one in every
    assert one["published"]["distillation_loss_weight"] == 0.75
    assert one["options"]["distillation_loss_weight"] == 0.857
    assert one["options"] == load_recipe("roberta-base-squad2").options()
    assert one["gap_closed"] == pytest.approx(0.245, abs=1e-3)


def test_unknown_recipe_names_the_nearest(program: Callable[..., Result]) -> None:
    result = program("recipes", "bert-medum-squad2")
    assert result.status == 2
    assert "did you mean 'bert-medium-squad2'?" in result.stderr


def test_help(program: Callable[..., Result]) -> None:
    result = program("recipes", "--help")
    assert result.status == 0
    assert "\n  NAME " in result.stdout
    assert "\n  --json " in result.stdout
