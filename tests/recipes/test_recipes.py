"""Every option exists, every figure has a source, the weights are translated."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from hf_distill.cli.train import build_parser
from hf_distill.losses import get_logits_loss
from hf_distill.recipes import Recipe, list_recipes, load_recipe
from hf_distill.recipes.recipe import CONVENTIONS
from hf_distill.tasks import TASKS

RECIPES = [load_recipe(name) for name in list_recipes()]
EACH = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
# Issue 3: student, teacher, published temperature and weight.
PAIRS = {
    ("google/bert_uncased_L-8_H-512_A-8", "deepset/bert-large-uncased-whole-word-masking-squad2"): (
        5.0, 1.0,
    ),
    ("FacebookAI/roberta-base", "deepset/roberta-large-squad2"): (1.5, 0.75),
    ("FacebookAI/xlm-roberta-base", "deepset/xlm-roberta-large-squad2"): (3.0, 0.75),
    ("deepset/gelectra-base", "deepset/gelectra-large-germanquad"): (2.0, 0.75),
    ("huawei-noah/TinyBERT_General_6L_768D", "deepset/bert-base-uncased-squad2"): (1.0, 1.0),
    ("huawei-noah/TinyBERT_General_4L_312D", "deepset/bert-base-uncased-squad2"): (1.0, 1.0),
}  # fmt: skip


def test_the_pairs_are_those_that_were_asked_for() -> None:
    found = {
        (recipe.student_model, recipe.teacher_model): (
            recipe.published.temperature,
            recipe.published.distillation_loss_weight,
        )
        for recipe in RECIPES
    }
    assert found == PAIRS


@EACH
def test_every_key_is_an_option_of_train(recipe: Recipe) -> None:
    options = recipe.options()
    words = [f"--{name}={value}" for name, value in options.items()]
    parts = build_parser().parse([*words, "--output_dir", "out", "--use_cpu"])
    read = {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}
    expected = {**options, "teacher_model": [options["teacher_model"]]}  # of one or several
    assert {name: read[name] for name in options} == expected
    assert recipe.task in TASKS
    own = [set(part) for part in (recipe.data, recipe.training)]
    assert not own[0] & own[1]
    assert all(name.startswith("dataset_") or name.endswith("_split") for name in recipe.data)


@EACH
def test_ids_and_sources_are_in_full(recipe: Recipe) -> None:
    for name in (recipe.student_model, recipe.teacher_model, recipe.data["dataset_name"]):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    for source in (recipe.published.source, recipe.published.settings_source):
        assert re.fullmatch(r"https://(github\.com|huggingface\.co|arxiv\.org)/\S+", source)
    assert recipe.summary.endswith(".")
    assert recipe.differs.endswith(".")


@EACH
def test_published_weights_are_translated(recipe: Recipe) -> None:
    theirs, ours = recipe.published.distillation_loss_weight, recipe.training
    assert ours["distillation_loss_weight"] == pytest.approx(2 * theirs / (1 + theirs), abs=5e-4)
    assert ours["temperature"] == recipe.published.temperature
    assert f"w = {theirs:g}" in recipe.translation
    assert f"{ours['distillation_loss_weight']:g} here" in recipe.translation


@EACH
def test_published_figures_are_in_order(recipe: Recipe) -> None:
    published = recipe.published
    assert published.metric == "F1"
    assert published.distilled is not None and published.teacher is not None
    assert published.distilled < published.teacher
    if published.alone is None:
        assert published.gap_closed is None
    else:
        gap = (published.distilled - published.alone) / (published.teacher - published.alone)
        assert published.gap_closed == pytest.approx(gap)
        assert 0 < gap < 1


def test_what_is_not_all_of_the_published_procedure_says_so() -> None:
    partial = [recipe for recipe in RECIPES if not recipe.published.whole_procedure]
    assert {recipe.name for recipe in partial} == {"tinybert-4l-squad2", "tinybert-6l-squad2"}
    for recipe in partial:
        assert "hf-distill augment" in recipe.differs
        assert "--intermediate_train_file" in recipe.differs
        assert recipe.training["intermediate_epochs"] == 5
        assert recipe.training["intermediate_learning_rate"] == 5e-5
        assert recipe.training["learning_rate"] == 3e-5


@EACH
def test_the_name_of_the_data_may_be_left_out(recipe: Recipe) -> None:
    short = recipe.name.rpartition("-")[0]
    assert load_recipe(short) == recipe
    assert "-" in short


def test_a_short_name_that_two_recipes_have_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["pair-squad2", "pair-germanquad"]
    monkeypatch.setattr("hf_distill.recipes.recipe.list_recipes", lambda: names)
    with pytest.raises(ValueError, match="There is no recipe 'pair'"):
        load_recipe("pair")


@pytest.mark.parametrize("temperature", [1.0, 1.5, 5.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.75, 1.0])
def test_the_translation_is_that_of_the_losses(temperature: float, weight: float) -> None:
    """Haystack 1.26.4, written anew: logits (rows, positions, 2), softmax over the positions."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 9, (4, 2), generator=generator)
    label_loss = sum(functional.cross_entropy(student[..., i], labels[:, i]) for i in (0, 1)) / 2
    haystack = (
        weight
        * temperature**2
        * functional.kl_div(
            functional.log_softmax(student / temperature, dim=-2),
            functional.softmax(teacher / temperature, dim=-2),
            reduction="batchmean",
        )
        + (1 - weight) * label_loss
    )
    kl_div = get_logits_loss("kl_div")
    start, end = (
        kl_div(student[..., i], teacher[..., i], temperature=temperature).mean() for i in (0, 1)
    )
    convention = CONVENTIONS["haystack"]
    ours = convention.weight(weight)
    here = ours * (start + end) / 2 + (1 - ours) * label_loss
    torch.testing.assert_close(haystack, convention.scale(weight) * here)


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("bert-medum", ["'bert-medum'", "did you mean 'bert-medium-squad2'?"]),
        ("roberta", ["did you mean"]),
        ("zzz", ["no recipe 'zzz'", *list_recipes()]),
        ("families", ["no recipe 'families'"]),
        ("../recipes/bert-medium-squad2", ["no recipe"]),
        ("", ["no recipe ''"]),
    ],
)
def test_unknown_recipe(name: str, fragments: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        load_recipe(name)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_a_recipe_does_not_change() -> None:
    recipe: Any = RECIPES[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.task = "translation"


def test_recipes_are_in_the_package() -> None:
    root = Path(__file__).parents[2]
    assert "hf_distill.recipes = *.yaml" in (root / "setup.cfg").read_text()
