"""Do the labels of two models mean the same? Names decide, never numbers."""

from __future__ import annotations

from typing import Any

from hf_distill.compatibility.findings import Finding, error, info, warning


def align_labels(
    student: Any, teacher: Any, *, made_of_it: bool = False
) -> tuple[list[int] | None, list[Finding]]:
    """Match the labels of two configurations by name.

    Args:
        student: the student's configuration.
        teacher: the teacher's.
        made_of_it: the student was made of this teacher, so labels without names are its own.

    Returns:
        For each class of the student the class of the teacher that it is, or ``None`` if they are
        the same; and what there is to say.
    """
    silent = [
        who
        for who, config in (("teacher", teacher), ("student", student))
        if not hasattr(config, "num_labels")
    ]
    if silent:
        return None, [
            warning(
                "labels",
                f"The {' and '.join(silent)} has no configuration that names its labels, so nobody "
                "can check that class 0 of the teacher is class 0 of the student. Give it one: "
                "model.config = PreTrainedConfig(id2label={0: …, 1: …}).",
            )
        ]
    if student.num_labels != teacher.num_labels:
        return None, [
            error(
                "labels",
                f"The teacher has {teacher.num_labels} labels and the student "
                f"{student.num_labels}; load the student with num_labels={teacher.num_labels}, or "
                "choose a teacher of the same task.",
            )
        ]
    if student.num_labels == 1:
        return None, []
    shown: list[str] = []
    for who, config in (("student", student), ("teacher", teacher)):
        try:
            shown.append(_shown(_names(config)))
        except (AttributeError, KeyError, ValueError):
            return None, [
                error(
                    "labels",
                    f"The {who}'s id2label={getattr(config, 'id2label', None)} does not name the "
                    f"labels 0 to {config.num_labels - 1}; set it to {{0: …, 1: …}}, and label2id.",
                )
            ]
    ours, theirs = ([n.strip().lower() for n in _names(c)] for c in (student, teacher))
    if len(set(ours)) < len(ours) or len(set(theirs)) < len(theirs):
        ours, theirs = _names(student), _names(teacher)  # their case tells them apart
    unnamed = [who for who, names in (("teacher", theirs), ("student", ours)) if _made_up(names)]
    if ours == theirs and not unnamed:
        return None, [info("labels", f"The same {len(ours)} labels in the same order.")]
    if unnamed and made_of_it and ours == theirs:
        return None, [info("labels", f"The {len(ours)} labels of the teacher that it is made of.")]
    if unnamed:
        return None, [
            warning(
                "labels",
                f"The labels of the {' and '.join(unnamed)} have no names (LABEL_0, … or "
                "0, …), so nobody can check that class 0 of the teacher is class 0 of the student. "
                "Set id2label and label2id in both configurations, or name the labels of a "
                "teacher of texts when it is trained (hf-distill train --class_names).",
            )
        ]
    if len(set(theirs)) == len(theirs) and sorted(ours) == sorted(theirs):
        order = [theirs.index(name) for name in ours]
        return order, [
            info(
                "labels",
                f"The teacher has the student's labels in another order ({shown[1]} "
                f"instead of {shown[0]}); its logits are reordered by name.",
            )
        ]
    return None, [
        error(
            "labels",
            f"The labels differ: the student's are {shown[0]} and the teacher's "
            f"{shown[1]}. A teacher whose labels have another meaning teaches the wrong "
            "classes; give the student the teacher's id2label and label2id, and number the labels "
            "of the data set accordingly.",
        )
    ]


def _made_up(names: list[str]) -> bool:
    """Whether they are numbers, or what transformers makes of them."""
    return all(name in (f"label_{i}", str(i)) for i, name in enumerate(names))


def _names(config: Any) -> list[str]:
    """Return the labels by number, whose keys JSON makes text."""
    names = {int(number): str(name) for number, name in config.id2label.items()}
    return [names[i] for i in range(config.num_labels)]


def _shown(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
