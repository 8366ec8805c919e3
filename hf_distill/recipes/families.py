"""Which students go with which teachers, by the tokenizer that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Protocol

import yaml


class Tokenizer(Protocol):
    """The methods of a tokenizer that ``family_of`` calls."""

    def __len__(self) -> int:
        """The number of tokens, added ones included."""

    def get_vocab(self) -> dict[str, int]:
        """The ids by token."""


@dataclass(frozen=True)
class Student:
    """A pretrained model that is small enough to be a student.

    Args:
        id: its Hub id.
        layers: the number of its layers.
        width: the width of its hidden states.
        millions: its parameters with embeddings and without a task's head, in millions.
        remark: what else to know; may be empty.
    """

    id: str
    layers: int
    width: int
    millions: float
    remark: str = ""


@dataclass(frozen=True)
class Family:
    """Models that read the same ids.

    Args:
        name: its name.
        title: its name in words.
        vocabulary: its vocabulary in words.
        vocab_sizes: how many tokens its tokenizer or its embeddings have.
        model_types: the ``config.model_type`` of its models.
        students: pretrained students, the biggest first.
        teachers: pretrained models that are usually fine-tuned to be teachers.
        token_ids: ids by which its tokenizer is distinguished from others of the same size.
        shares_with: families with the same vocabulary.
        remarks: what else to know.
    """

    name: str
    title: str
    vocabulary: str
    vocab_sizes: tuple[int, ...]
    model_types: tuple[str, ...]
    students: tuple[Student, ...]
    teachers: tuple[str, ...]
    token_ids: Mapping[str, int]
    shares_with: tuple[str, ...]
    remarks: tuple[str, ...]

    def all_students(self) -> list[Student]:
        """Its students and those of the families that share its vocabulary, the biggest first."""
        shared = [one for name in self.shares_with for one in families()[name].students]
        return sorted([*self.students, *shared], key=lambda one: -one.millions)


@lru_cache(maxsize=1)
def families() -> Mapping[str, Family]:
    """All families, by name."""
    file = resources.files(__package__).joinpath("families.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: _family(name, entry) for name, entry in content.items()}


def family_of(
    tokenizer_or_vocab_size: Tokenizer | int, model_type: str | None = None
) -> Family | None:
    """The family that a model belongs to.

    A tokenizer is recognised by the ids of a few tokens. A number alone proves little: it finds
    the family whose models have as many tokens.

    Args:
        tokenizer_or_vocab_size: the model's tokenizer, or ``config.vocab_size``.
        model_type: the model's ``config.model_type``, which tells families apart that share a
            vocabulary.

    Returns:
        The family; None if it is none of those known here.
    """
    if isinstance(tokenizer_or_vocab_size, int):
        found = [f for f in families().values() if tokenizer_or_vocab_size in f.vocab_sizes]
    else:
        vocabulary = tokenizer_or_vocab_size.get_vocab()
        size = len(tokenizer_or_vocab_size)
        found = [
            family
            for family in families().values()
            if size in family.vocab_sizes
            and all(vocabulary.get(token) == i for token, i in family.token_ids.items())
        ]
    if model_type is not None:
        found = [family for family in found if model_type in family.model_types]
    return found[0] if found else None


def _family(name: str, entry: dict[str, Any]) -> Family:
    students = tuple(Student(**student) for student in entry.pop("students"))
    token_ids = entry.pop("token_ids", {})
    lists: dict[str, Any] = {
        key: tuple(entry.pop(key, ()))
        for key in ("vocab_sizes", "model_types", "teachers", "shares_with", "remarks")
    }
    return Family(name=name, students=students, token_ids=token_ids, **lists, **entry)
