"""Writes the tables of the documentation that come from the code: ``python docs/generate.py``.

A table stands between two comments, ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->``.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path

from transformers import TrainingArguments

from hf_distill import DistillationTrainingArguments
from hf_distill.markdown import markdown_table
from hf_distill.recipes import families, list_recipes, load_recipe

DOCS = Path(__file__).parent
HUB = "https://huggingface.co/"


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
    return markdown_table(("argument", "type", "default", "what it does"), rows)


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
    return markdown_table(header, rows)


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
        yield markdown_table(("student", "layers", "width", "parameters, millions", "remark"), rows)
        remarks = list(family.remarks)
        if family.shares_with:
            others = " and ".join(families()[name].title for name in family.shares_with)
            remarks.append(f"Same vocabulary as {others}: their students will do, too.")
        if remarks:
            yield "\n".join(f"- {remark}" for remark in remarks)


def api() -> str:
    """Every public name with its signature and docstring."""
    return "\n\n".join(part for home in API for part in _api_of(home))


def _api_of(home: str) -> Iterator[str]:
    module = importlib.import_module(home)
    yield f"## `{home}`"
    above = () if home == API[0] else importlib.import_module(API[0]).__all__
    for name in sorted(n for n in module.__all__ if not n.startswith("__") and n not in above):
        member = getattr(module, name)
        yield f"### `{name}`"
        if not (inspect.isclass(member) and issubclass(member, Exception)):
            yield _signature(name, member)
        yield markdown(inspect.getdoc(member) or "")
        if inspect.isclass(member):
            yield from _methods(member)


def _methods(member: type) -> Iterator[str]:
    """Those that the class adds to its bases; what it overrides is documented there."""
    inherited = {name for base in member.__mro__[1:] for name in vars(base)}
    for name, method in vars(member).items():
        if name in inherited or (name.startswith("_") and name != "__call__"):
            continue
        method = getattr(method, "__func__", method)
        if isinstance(method, property):
            yield f"#### `{member.__name__}.{name}`"
            yield markdown(inspect.getdoc(method) or "")
        elif inspect.isfunction(method):
            yield f"#### `{member.__name__}.{name}`" if name != "__call__" else "#### call"
            yield _signature(name, method)
            yield markdown(inspect.getdoc(method) or "")


def _signature(name: str, member: Callable[..., object]) -> str:
    signature = inspect.signature(member)
    own = [p for p in signature.parameters.values() if p.name != "self"]
    if len(own) > _MOST_PARAMETERS:  # those of TrainingArguments; its own are on another page
        return f"```py\n{name}(output_dir=None, …)\n```"
    shown = [re.sub(r"<function (\w+) at 0x\w+>", r"\1", str(p)) for p in own]
    shown = [re.sub(r"'([\w\[\], .|]+)'", r"\1", one) for one in shown]
    kinds = [p.kind for p in own]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    inside = "".join(f"    {one},\n" for one in shown)
    return f"```py\n{name}(\n{inside})\n```" if shown else f"```py\n{name}()\n```"


def markdown(docstring: str) -> str:
    """A docstring in Google's style as Markdown."""
    docstring = re.sub(r"``([^`]+)``", r"`\1`", docstring)
    out: list[str] = []
    for block in re.split(r"\n(?=\S)", docstring):
        first, _, rest = block.partition("\n")
        body = inspect.cleandoc(rest) if rest.strip() else ""
        if first.rstrip(":") in _SECTIONS and body:
            title = _SECTIONS[first.rstrip(":")]
            items = re.split(r"\n(?=\S)", body)
            if title in ("Returns", "Example"):
                shown = _code(body) if title == "Example" else body
                out.append(f"\n**{title}**\n\n{shown}")
            else:
                out.append(f"\n**{title}**\n\n" + "\n".join(map(_item, items)))
        elif first.startswith(".. math::"):
            out.append(f"\n$${first.removeprefix('.. math::').strip()}{body}$$\n")
        elif first.endswith("::") and body:
            out.append(f"{first[:-1]}\n\n{_code(body)}\n")
        else:
            out.append(block)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _item(text: str) -> str:
    name, colon, rest = text.partition(":")
    rest = " ".join(line.strip() for line in rest.splitlines())
    return (
        f"- `{name}`: {rest.strip()}"
        if colon and " " not in name
        else "- " + " ".join(text.split())
    )


def _code(text: str) -> str:
    return f"```py\n{text}\n```"


_MOST_PARAMETERS = 40
_SECTIONS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Raises": "Raises",
    "Yields": "Yields",
    "Example": "Example",
    "Example:": "Example",
    "Examples": "Example",
}
API = (
    "hf_distill",
    "hf_distill.augmentation",
    "hf_distill.labelling",
    "hf_distill.students",
    "hf_distill.tasks.question_answering",
)


def link(name: str, kind: str = "") -> str:
    """A link to a repository of the Hub."""
    return f"[{name}]({HUB}{kind}{name})"


PARTS: dict[str, Callable[[], str]] = {
    "api": api,
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
