"""Bootstrap intervals of scores, over the rows that these were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hf_distill.tasks.metrics import Metric

TIMINGS = ("runtime", "per_second", "epoch", "_time")
"""Suffixes of an evaluation's figures that describe the run, not its quality."""
REPLICATES = 1000
Replicates = npt.NDArray[np.float64]
Interval = tuple[float, float]


def bootstrap(metric: Metric) -> dict[str, Replicates]:
    """Score resamples of the rows, drawn with replacement (Efron and Tibshirani 1993, chapter 6).

    Replicate i of any two models with the same number of rows is about the same rows, so their
    difference, replicate by replicate, is the paired bootstrap (Koehn 2004).

    Args:
        metric: scores the model.

    Returns:
        ``REPLICATES`` values of each metric.
    """
    draws, rows = np.random.default_rng(0), metric.rows
    collected: dict[str, list[float]] = {}
    for _ in range(REPLICATES):
        weights = np.bincount(draws.integers(rows, size=rows), minlength=rows)
        for name, value in metric.weighted(weights).items():
            collected.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in collected.items()}


def pool_seeds(models: Sequence[npt.ArrayLike], *, stream: int) -> Replicates:
    """Join the replicates of one model that was trained with several seeds.

    Each replicate draws as many seeds as there are, with replacement, and is their mean, so that
    the chance of the training is in it as well as that of the data.

    Args:
        models: the replicates of a metric, by seed.
        stream: tells models apart whose seeds are drawn independently.
    """
    draws, seeds = np.random.default_rng([1, stream]), len(models)
    counts = [
        np.bincount(draws.integers(seeds, size=seeds), minlength=seeds) for _ in range(REPLICATES)
    ]
    values = np.asarray(models, dtype=np.float64)
    return (np.transpose(counts) * values).sum(0) / seeds


def interval(replicates: npt.ArrayLike) -> Interval | None:
    """Return the 95 % percentile interval; ``None`` if a metric is undefined in some resamples."""
    values = np.asarray(replicates, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def contains_zero(bounds: Interval | None) -> bool:
    """Return whether the interval of a difference contains 0, so the difference is noise."""
    return bounds is not None and bounds[0] <= 0 <= bounds[1]
