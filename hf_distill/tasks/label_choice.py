"""The labels of a model to train: those of its data, its teacher or its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from hf_distill.console import log_rank_0
from hf_distill.tasks.cells import folded
from hf_distill.tasks.labels import (
    DataLabels,
    are_counted,
    are_made_up,
    data_labels,
    join_names,
    label_options,
    model_labels,
    numbered_differently,
)


class Choice(NamedTuple):
    """Labels for a model to train."""

    names: tuple[str, ...]
    why: str | None
    """Their source, if the user should know."""


def choose_labels(labels: DataLabels, student: Any = None, teacher: Any = None) -> Choice:
    """Choose the labels of a model to train.

    A student that has the labels of the data already keeps its own order of them, and so its
    head. Numbers without names get the teacher's names, if it has names, or the student's.

    Args:
        labels: the labels of the training data.
        student: the configuration of the model to train.
        teacher: the configuration of its teacher, if there is one.

    Raises:
        TaskDataError: the data has numbers, and teacher and student disagree what they mean.
    """
    own, taught = _named(student), _named(teacher)
    if labels.count is not None:
        return _choose_names(labels, labels.count, teacher, own, taught)
    if own is not None and _folded(labels.names) <= _folded(own):
        order = "" if own == labels.names else ", in its own order"
        return Choice(
            own, f"The student knows these labels and keeps them{order}: {join_names(own)}"
        )
    if taught is not None and _folded(labels.names) < _folded(taught):
        absent = _folded(taught) - _folded(labels.names)
        return Choice(taught, f"The data lacks labels that the teacher has: {join_names(absent)}")
    return Choice(labels.names, None)


def student_labels(
    student: Any, teacher: Any, examples: Dataset | None, column: str
) -> dict[str, Any]:
    """Return the labels of a model to train, as options of its configuration.

    Args:
        student: the configuration of the model to train.
        teacher: the configuration of its teacher, if there is one.
        examples: all training data; without labels (``None``) they are the teacher's.
        column: where the labels are.

    Raises:
        ValueError: there is neither data with labels nor a teacher that names its own.
    """
    if examples is None and not getattr(teacher, "id2label", None):
        raise ValueError(
            "The training data has no labels, and the teacher's configuration names none; give it "
            "id2label, or label the data."
        )
    found = DataLabels(model_labels(teacher)) if examples is None else data_labels(examples, column)
    names, why = choose_labels(found, student, teacher)
    if why is not None and examples is not None:
        log_rank_0(why)
    return label_options(names)


def _named(config: Any) -> tuple[str, ...] | None:
    """Return the label names of a configuration; ``None`` if it has none of its own."""
    if config is None or not getattr(config, "id2label", None):
        return None
    names = model_labels(config)
    return None if are_made_up(names) else names


def _choose_names(
    labels: DataLabels,
    count: int,
    teacher: Any,
    own: tuple[str, ...] | None,
    taught: tuple[str, ...] | None,
) -> Choice:
    """Choose names for labels that are bare numbers."""
    if taught is not None and _enough(taught, count, labels):
        if own is not None and own != taught and _folded(own) == _folded(taught):
            raise numbered_differently("student and teacher", own, taught)
        why = "The data has numbers for labels; their names are taken from the teacher: "
        return Choice(taught, why + join_names(taught))
    # A teacher of another size could not teach a student that keeps its own labels.
    teachable = teacher is None or getattr(teacher, "num_labels", None) in (None, len(own or ()))
    if own is not None and teachable and _enough(own, count, labels) and are_counted(own):
        why = "The data has numbers for labels; the student keeps its names for them: "
        return Choice(own, why + join_names(own))
    if taught is None and teacher is not None and getattr(teacher, "id2label", None):
        names = model_labels(teacher)
        if _enough(names, count, labels):
            return Choice(names, None)
    return Choice(labels.names, None)


def _enough(names: Sequence[str], count: int, labels: DataLabels) -> bool:
    return len(names) == count if labels.exact else len(names) >= count


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(folded, names))
