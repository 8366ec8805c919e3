"""Recipes: a teacher, a student, data and settings that were published with their result."""

from __future__ import annotations

import difflib
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

NOT_RECIPES = ("families.yaml",)


@dataclass(frozen=True)
class Published:
    """Figures and settings of a pair, in the terms of those who published them.

    Args:
        metric: what the figures are.
        data: what they were measured on.
        temperature: the temperature, as published.
        distillation_loss_weight: the weight, in the convention of the source.
        source: where the figures are.
        settings_source: where the settings are.
        alone: the student without a teacher; None if it was not published.
        distilled: the student with the teacher.
        teacher: the teacher.
        whole_procedure: whether the recipe does all that was done for ``distilled``.
    """

    metric: str
    data: str
    temperature: float
    distillation_loss_weight: float
    source: str
    settings_source: str
    alone: float | None = None
    distilled: float | None = None
    teacher: float | None = None
    whole_procedure: bool = True

    @property
    def gap_closed(self) -> float | None:
        """The share of the distance between student and teacher that distilling closed."""
        if self.alone is None or self.distilled is None or self.teacher is None:
            return None
        return (self.distilled - self.alone) / (self.teacher - self.alone)


@dataclass(frozen=True)
class Convention:
    """The weights that another program gives the two losses.

    With ``s = scale(w)``, its loss for a weight ``w`` is ``s`` times ours for ``weight(w)``.

    Args:
        program: its name.
        reason: what it does otherwise.
    """

    program: str
    reason: str

    def scale(self, weight: float) -> float:
        """Its loss, divided by ours."""
        return 1 + weight

    def weight(self, weight: float) -> float:
        """The ``distillation_loss_weight`` that means the same here.

        Haystack's loss is ``2 w D + (1 - w) L`` for the mean ``D`` of the two distillation losses
        (start and end of the answer) and the mean ``L`` of the two label losses. Divided by
        ``1 + w``, that is ``w' D + (1 - w') L`` with ``w' = 2 w / (1 + w)``.
        """
        return 2 * weight / (1 + weight)


CONVENTIONS = {
    "haystack": Convention(
        "Haystack",
        "adds up the distillation losses of answer start and answer end, and averages their label "
        "losses",
    )
}


@dataclass(frozen=True)
class Recipe:
    """A pair with published settings and results.

    Args:
        name: its name.
        summary: what it does, in a sentence.
        task: the task, as ``--task`` calls it.
        student_model: the student's Hub id.
        teacher_model: the teacher's Hub id.
        data: the options of ``hf-distill train`` that name the data.
        training: its options for everything else, ours, not those of the source.
        published: figures and settings of the source.
        convention: a key of ``CONVENTIONS``: how the source weighs the losses.
        differs: what this recipe does otherwise than the source.
    """

    name: str
    summary: str
    task: str
    student_model: str
    teacher_model: str
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    published: Published
    convention: str
    differs: str

    def options(self) -> dict[str, Any]:
        """All options of ``hf-distill train`` that the recipe sets, by name."""
        models = {"student_model": self.student_model, "teacher_model": self.teacher_model}
        return {"task": self.task, **models, **self.data, **self.training}

    def command(self, output_dir: str) -> str:
        """Return the call of ``hf-distill train`` with all of it, over several lines."""
        words = [f"--{name} {shlex.quote(str(value))}" for name, value in self.options().items()]
        return " \\\n    ".join(["hf-distill train", *words, f"--output_dir {output_dir}"])

    def in_words(self) -> str:
        """Return its summary, the translation of its weight, and what differs from the source."""
        parts = (f"Recipe {self.name}: {self.summary}", self.translation, self.differs)
        return "\n".join(textwrap.fill(part, 100, break_on_hyphens=False) for part in parts) + "\n"

    @property
    def translation(self) -> str:
        """Return in words how the published weight became the one used here."""
        published, ours = self.published.distillation_loss_weight, self.training
        convention = CONVENTIONS[self.convention]
        scale = convention.scale(published)
        same = ours["distillation_loss_weight"] == published
        return (
            f"{convention.program} {convention.reason}; here both are averaged. So its weight "
            f"w = {published:g} {'stays' if same else 'is'} 2w / (1 + w) = "
            f"{ours['distillation_loss_weight']:g} here, and its loss is 1 + w = {scale:g} times "
            "as large. Adam divides by the size of the gradients, so that factor changes nothing "
            f"but where they are clipped (--max_grad_norm {1 / scale:.3g} is its limit of 1) and "
            "what Adam's epsilon amounts to."
        )


def list_recipes() -> list[str]:
    """The names of all recipes, in alphabetical order."""
    return sorted(name.removesuffix(".yaml") for name in _files() if name not in NOT_RECIPES)


def load_recipe(name: str) -> Recipe:
    """Load a recipe.

    Args:
        name: its name; the name of the data at its end may be left out (``tinybert-6l``).

    Raises:
        ValueError: there is none of that name; the message names the nearest, or all.
    """
    known = list_recipes()
    in_full = [one for one in known if one.rpartition("-")[0] == name]
    if name not in known and len(in_full) == 1:
        (name,) = in_full
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"There is no recipe {name!r}; {hint}The recipes are: {', '.join(known)}.")
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    published = Published(**content.pop("published"))
    return Recipe(name=name, published=published, **content)


def _files() -> Iterator[str]:
    for entry in resources.files(__package__).iterdir():
        if entry.name.endswith(".yaml"):
            yield entry.name
