"""Writes the tables of the documentation that come from the code: ``python docs/generate.py``.

A table stands between two comments, ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from transformers import TrainingArguments

from hf_distill import DistillationTrainingArguments
from hf_distill.recipes import families, list_recipes, load_recipe

DOCS = Path(__file__).parent
HUB = "https://huggingface.co/"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def arguments() -> str:
    """What ``DistillationTrainingArguments`` adds to ``TrainingArguments``."""
    inherited = {field.name for field in fields(TrainingArguments)}
    # `field.type` is no longer as written once a parser has been made of the dataclass.
    types = DistillationTrainingArguments.__annotations__
    rows = []
    for field in fields(DistillationTrainingArguments):
        if field.name in inherited or not field.init:
            continue
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        text = str(field.metadata["help"])
        rows.append((f"`{field.name}`", f"`{types[field.name]}`", f"`{default!r}`", text))
    return table(("argument", "type", "default", "what it does"), rows)


def recipes() -> str:
    """All recipes."""
    rows = []
    for name in list_recipes():
        recipe = load_recipe(name)
        published, training = recipe.published, recipe.training
        share = published.gap_closed
        alone, distilled, teacher = (
            "not published" if value is None else f"{value:.1f}"
            for value in (published.alone, published.distilled, published.teacher)
        )
        rows.append(
            (
                f"`{name}`",
                link(recipe.student_model),
                link(recipe.teacher_model),
                link(recipe.data["dataset_name"], "datasets/"),
                f"{training['temperature']:g}",
                f"{published.distillation_loss_weight:g}",
                f"{training['distillation_loss_weight']:g}",
                f"[{alone}]({published.source})",
                distilled if published.whole_procedure else f"{distilled} \\*",
                teacher,
                "?" if share is None else f"{share:.0%}",
                f"[settings]({published.settings_source})",
            )
        )
    header = (
        *("recipe", "student", "teacher", "data", "T", "w as published", "w here"),
        *("alone, F1", "distilled, F1", "teacher, F1", "gap closed", "source"),
    )
    return table(header, rows)


def recipe_remarks() -> str:
    """What each recipe does otherwise than its source."""
    return "\n".join(f"- `{name}`: {load_recipe(name).differs}" for name in list_recipes())


def students() -> str:
    """All families with their students."""
    return "\n\n".join(_family_parts())


def _family_parts() -> Iterator[str]:
    for family in families().values():
        yield f"### {family.title}"
        ids = ", ".join(f"`{token}` {i}" for token, i in family.token_ids.items())
        known = f" Recognised by {ids}." if ids else ""
        types = ", ".join(f"`{one}`" for one in family.model_types)
        teachers = ", ".join(map(link, family.teachers))
        yield (
            f"Vocabulary: {family.vocabulary}.{known} Model types: {types}.\n"
            f"Usual teachers: {teachers}, fine-tuned."
        )
        rows = [
            (link(one.id), str(one.layers), str(one.width), f"{one.millions:.1f}", one.remark)
            for one in family.students
        ]
        yield table(("student", "layers", "width", "parameters, millions", "remark"), rows)
        remarks = list(family.remarks)
        if family.shares_with:
            others = " and ".join(families()[name].title for name in family.shares_with)
            remarks.append(f"Same vocabulary as {others}: their students will do, too.")
        if remarks:
            yield "\n".join(f"- {remark}" for remark in remarks)


def link(name: str, kind: str = "") -> str:
    """A link to a repository of the Hub."""
    return f"[{name}]({HUB}{kind}{name})"


PARTS: dict[str, Callable[[], str]] = {
    "arguments": arguments,
    "recipes": recipes,
    "recipe-remarks": recipe_remarks,
    "students": students,
}


def regenerate(text: str) -> str:
    """A page with its generated parts as they should be.

    Raises:
        KeyError: the page asks for a part that does not exist.
    """
    return re.sub(
        r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end: \2 -->)",
        lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for page in sorted(DOCS.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = regenerate(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(page.name)
