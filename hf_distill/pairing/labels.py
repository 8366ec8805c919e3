"""Do the labels of two models mean the same? Names decide, never numbers."""

from __future__ import annotations

from typing import Any

from hf_distill.pairing.findings import Finding, note, refused, warning


def align_labels(student: Any, teacher: Any) -> tuple[list[int] | None, list[Finding]]:
    """Match the labels of two configurations by name.

    Args:
        student: the student's configuration.
        teacher: the teacher's.

    Returns:
        For each class of the student the class of the teacher that it is, or ``None`` if they are
        the same; and what there is to say.
    """
    if student.num_labels != teacher.num_labels:
        return None, [
            refused(
                "labels",
                f"The teacher has {teacher.num_labels} labels and the student "
                f"{student.num_labels}; load the student with num_labels={teacher.num_labels}, or "
                "choose a teacher of the same task.",
            )
        ]
    if student.num_labels == 1:
        return None, []
    ours, theirs = _names(student), _names(teacher)
    unnamed = [who for who, names in (("teacher", theirs), ("student", ours)) if _made_up(names)]
    if ours == theirs and not unnamed:
        return None, [note("labels", f"The same {len(ours)} labels in the same order.")]
    if unnamed:
        return None, [
            warning(
                "labels",
                f"The labels of the {' and '.join(unnamed)} have no names (LABEL_0, … or "
                "0, …), so nobody can check that class 0 of the teacher is class 0 of the student. "
                "Set id2label and label2id in both configurations.",
            )
        ]
    if len(set(theirs)) == len(theirs) and sorted(ours) == sorted(theirs):
        order = [theirs.index(name) for name in ours]
        return order, [
            note(
                "labels",
                f"The teacher has the student's labels in another order ({_shown(teacher)} "
                f"instead of {_shown(student)}); its logits are reordered by name.",
            )
        ]
    return None, [
        refused(
            "labels",
            f"The labels differ: the student's are {_shown(student)} and the teacher's "
            f"{_shown(teacher)}. A teacher whose labels have another meaning teaches the wrong "
            "classes; give the student the teacher's id2label and label2id, and number the labels "
            "of the data set accordingly.",
        )
    ]


def _made_up(names: list[str]) -> bool:
    """Whether they are numbers, or what transformers makes of them."""
    return all(name in (f"label_{i}", str(i)) for i, name in enumerate(names))


def _names(config: Any) -> list[str]:
    return [str(config.id2label[i]).strip().lower() for i in range(config.num_labels)]


def _shown(config: Any) -> str:
    names = [str(config.id2label[i]) for i in range(min(config.num_labels, 8))]
    return ", ".join(names) + (", …" if config.num_labels > 8 else "")
