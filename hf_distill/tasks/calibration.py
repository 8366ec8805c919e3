"""How sure a model is when it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Confidence and correctness of predictions, in ``BINS`` bins of equal width.

    Bin ``i`` holds the predictions whose probability is in ``(i / BINS, (i + 1) / BINS]``.
    """

    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    """Sum of the predictions' probabilities, by bin."""
    correct: tuple[int, ...]
    """Number of right predictions, by bin."""

    @classmethod
    def of(cls, confidences: npt.ArrayLike, correct: npt.ArrayLike) -> Calibration:
        """Sort predictions into bins.

        Args:
            confidences: the probability of each prediction, 0 to 1.
            correct: whether it is right.
        """
        sure = np.clip(np.asarray(confidences, dtype=np.float64).ravel(), 0.0, 1.0)
        right = np.asarray(correct, dtype=bool).ravel()
        bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
        return cls(
            tuple(np.bincount(bins, minlength=BINS).tolist()),
            tuple(np.bincount(bins, weights=sure, minlength=BINS).tolist()),
            tuple(np.bincount(bins[right], minlength=BINS).tolist()),
        )

    def __add__(self, other: Calibration) -> Calibration:
        """Pool the predictions of both."""
        pairs = zip(self._columns(), other._columns(), strict=True)
        return Calibration(*(tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs))

    def _columns(self) -> tuple[Sequence[Any], ...]:
        return self.counts, self.confidence, self.correct

    @property
    def total(self) -> int:
        """Return the number of predictions."""
        return sum(self.counts)

    def error(self) -> float:
        """Return the expected calibration error, 0 to 1.

        ``Σ_i n_i / n · |share of right ones in bin i − mean probability in bin i|`` (Guo et al.
        2017, *On Calibration of Modern Neural Networks*, section 2).
        """
        gaps = (abs(c - s) for c, s in zip(self.correct, self.confidence, strict=True))
        return sum(gaps) / self.total

    def points(self) -> list[tuple[float, float, int]]:
        """Return mean probability, share of right ones and count of each bin with predictions."""
        columns = zip(self.counts, self.confidence, self.correct, strict=True)
        return [(sure / n, right / n, n) for n, sure, right in columns if n]
