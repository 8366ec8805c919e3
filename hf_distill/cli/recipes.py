"""``hf-distill recipes``: pairs of models with published settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_distill.cli.output import print_json
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.recipes import Recipe, list_recipes, load_recipe
from hf_distill.tasks.options import option

EXAMPLES = """\
examples:
  hf-distill recipes
  hf-distill recipes roberta-base-squad2
  hf-distill train --recipe roberta-base-squad2 --output_dir distilled
"""
HEADER = ("recipe", "student ← teacher", "T", "weight", "published", "gap closed")
NOTES = """\
weight: --distillation_loss_weight. Where it was published in another convention, that value stands
in brackets; `hf-distill recipes NAME` explains it.
published: the student alone → distilled (its teacher).
* was reached with more steps than the recipe does; see `hf-distill recipes NAME`.
"""


@dataclass
class RecipesArguments:
    """The options of `recipes`."""

    json: bool = option(False, help="Print JSON.")


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    parser = CommandParser(
        [RecipesArguments],
        prog="hf-distill recipes",
        usage="hf-distill recipes [NAME] [--json]",
        description="List the recipes: teacher, student, data and settings that were published "
        "together with what came out. With a name, show all of one.",
        sections=[Section("recipe", ["name", "json"])],
        epilog=EXAMPLES,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="The recipe to show.")
    return parser


def run(argv: Sequence[str]) -> None:
    """List the recipes, or show one."""
    options, positional = build_parser().parse(argv)

    from hf_distill.reports.terminal import print_rows

    names = list_recipes() if positional.name is None else [positional.name]
    recipes = [load_recipe(name) for name in names]
    if options.json:
        content = [as_dict(recipe) for recipe in recipes]
        shown = content if positional.name is None else content[0]
        print_json(shown)
    elif positional.name is None:
        print_rows("", HEADER, list(map(row, recipes)), names=True, lines=True)
        sys.stdout.write(NOTES)
    else:
        sys.stdout.write(describe(recipes[0]))


def row(recipe: Recipe) -> tuple[str, ...]:
    """Return a row of the table, in the order of ``HEADER``."""
    published, weight = recipe.published, recipe.training["distillation_loss_weight"]
    theirs = published.distillation_loss_weight
    share = published.gap_closed
    return (
        f"{recipe.name}\n{recipe.task}",
        f"{recipe.student_model} ←\n{recipe.teacher_model}",
        f"{recipe.training['temperature']:g}",
        f"{weight:g}" if weight == theirs else f"{weight:g}\n({theirs:g})",
        f"{published.metric} on {published.data}\n{figures(recipe)}",
        "?" if share is None else f"{share:.0%}",
    )


def figures(recipe: Recipe) -> str:
    """Return what was published: the student alone → distilled (teacher)."""
    published = recipe.published
    alone, distilled, teacher = (
        "?" if value is None else f"{value:.1f}"
        for value in (published.alone, published.distilled, published.teacher)
    )
    mark = "" if published.whole_procedure else "*"
    return f"{alone} → {distilled}{mark} ({teacher})"


def describe(recipe: Recipe) -> str:
    """Return all of a recipe in words."""
    published = recipe.published
    share = published.gap_closed
    closed = "" if share is None else f", {share:.0%} of the gap"
    return f"""\
{recipe.in_words()}
published: {published.metric} on {published.data} {figures(recipe)}{closed}
    {published.source}
published settings: T {published.temperature:g}, weight {published.distillation_loss_weight:g}
    {published.settings_source}

run it:
hf-distill train --recipe {recipe.name} --output_dir FOLDER
or, the same in full:
{recipe.command("FOLDER")}
"""


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return all of a recipe as JSON can hold it."""
    extra = {"gap_closed": recipe.published.gap_closed, "translation": recipe.translation}
    return {**asdict(recipe), **extra, "options": recipe.options()}
