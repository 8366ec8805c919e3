"""Rows where a model and its teacher do not agree, right and wrong both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_distill.tasks.base import ScoredRow

OUTCOMES = {
    "teacher_right": "only the teacher is right",
    "model_right": "only the student is right",
    "both_wrong": "both are wrong",
    "both_right": "both are right",
}


@dataclass(frozen=True)
class Disagreement:
    """One row on which two models differ."""

    row: int
    """Its place in the data, from 0."""
    text: str
    gold: str
    teacher: str
    model: str


@dataclass(frozen=True)
class Disagreements:
    """Comparison of a model's predictions with the teacher's, row by row."""

    counts: dict[str, int]
    """Rows by ``OUTCOMES``."""
    differing: dict[str, list[Disagreement]]
    """All rows with different predictions, by ``OUTCOMES``, in the order of the data."""

    def examples(self, most: int) -> dict[str, list[Disagreement]]:
        """Return some rows of each outcome that has any, at even distances."""
        return {
            outcome: [rows[i * len(rows) // count] for i in range(count)]
            for outcome, rows in self.differing.items()
            if (count := min(most, len(rows)))
        }


def find_disagreements(
    model: Sequence[ScoredRow], teacher: Sequence[ScoredRow]
) -> Disagreements | None:
    """Compare predictions row by row; ``None`` if there are none or the rows are others."""
    if not model or [row.text for row in model] != [row.text for row in teacher]:
        return None
    counts = dict.fromkeys(OUTCOMES, 0)
    differing: dict[str, list[Disagreement]] = {outcome: [] for outcome in OUTCOMES}
    for place, (one, other) in enumerate(zip(model, teacher, strict=True)):
        outcome = _OUTCOME[one.right, other.right]
        counts[outcome] += 1
        if (one.meaning or one.predicted) != (other.meaning or other.predicted):
            differing[outcome].append(
                Disagreement(place, one.text, one.gold, other.predicted, one.predicted)
            )
    return Disagreements(counts, differing)


_OUTCOME = {
    (True, True): "both_right",
    (False, True): "teacher_right",
    (True, False): "model_right",
    (False, False): "both_wrong",
}
