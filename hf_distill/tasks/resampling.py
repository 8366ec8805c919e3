"""Metrics of resampled rows: what a score would be if row i were there ``weights[i]`` times.

Each function takes what was scored once and returns a ``Resampler``, which costs a few array
operations per call, so that a thousand resamples of ten thousand rows take about a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_distill.tasks.metrics import entity_counts, entity_scheme

Weights = npt.NDArray[Any]
"""``(rows,)``, whole numbers from 0."""

Resampler = Callable[[Weights], dict[str, float]]


def resample_means(scores: Mapping[str, npt.ArrayLike]) -> Resampler:
    """Resample metrics that are the mean of a score per row, between 0 and 1; in percent."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    return lambda w: {name: 100 * float(w @ row / w.sum()) for name, row in arrays.items()}


def resample_classification(
    predicted: npt.ArrayLike, gold: npt.ArrayLike, *, labels: int, positive: int | None = None
) -> Resampler:
    """Resample ``classification_scores``; see there for the arguments."""
    cells = np.asarray(gold) * labels + np.asarray(predicted)

    def resampled(weights: Weights) -> dict[str, float]:
        confusion = np.bincount(cells, weights, labels * labels).reshape(labels, labels)
        golden, guessed, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
        total = confusion.sum()
        occurs = golden + guessed > 0
        f1 = 2 * right / np.maximum(golden + guessed, 1)
        spread = (total**2 - (guessed**2).sum()) * (total**2 - (golden**2).sum())
        covariance = right.sum() * total - golden @ guessed
        scores = {
            "accuracy": 100 * right.sum() / total,
            "f1_macro": 100 * f1[occurs].mean(),
            "matthews": 100 * covariance / math.sqrt(spread) if spread > 0 else 0.0,
        }
        if labels == 2 and positive is not None:
            scores["f1"] = 100 * f1[positive]
        return {name: float(value) for name, value in scores.items()}

    return resampled


def resample_multi_label(predicted: npt.ArrayLike, gold: npt.ArrayLike) -> Resampler:
    """Resample ``multi_label_scores``; see there for the arguments."""
    guessed, golden = (np.asarray(side, dtype=bool) for side in (predicted, gold))
    hits = (guessed & golden).astype(np.float64)
    sides = guessed.astype(np.float64) + golden
    same = (guessed == golden).all(axis=1).astype(np.float64)

    def resampled(weights: Weights) -> dict[str, float]:
        right, both = 2 * weights @ hits, weights @ sides
        return {
            "f1_micro": _percentage(right.sum(), both.sum()),
            "f1_macro": float(100 * np.mean(right / np.maximum(both, 1))),
            "exact_match": _percentage(weights @ same, weights.sum()),
        }

    return resampled


def resample_regression(predicted: npt.ArrayLike, gold: npt.ArrayLike) -> Resampler:
    """Resample ``regression_scores``; ranks are those of the resample, equal values share one."""
    left, right = (np.asarray(side, dtype=np.float64) for side in (predicted, gold))
    ties = [np.unique(side, return_inverse=True)[1] for side in (left, right)]

    def resampled(weights: Weights) -> dict[str, float]:
        ranks = []
        for places in ties:
            counts = np.bincount(places, weights)
            ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
        return {
            "pearson": 100 * _correlation(left, right, weights),
            "spearman": 100 * _correlation(ranks[0], ranks[1], weights),
            "mse": float(weights @ (left - right) ** 2 / weights.sum()),
        }

    return resampled


def resample_f1(right: Sequence[int], predicted: Sequence[int], gold: Sequence[int]) -> Resampler:
    """Resample precision, recall and F1 from counts per row: of hits, of guesses, of gold ones."""
    counts = np.array([right, predicted, gold], dtype=np.float64)

    def resampled(weights: Weights) -> dict[str, float]:
        hits, guesses, wanted = counts @ weights
        return {
            "f1": _percentage(2 * hits, guesses + wanted),
            "precision": _percentage(hits, guesses),
            "recall": _percentage(hits, wanted),
        }

    return resampled


def resample_tags(
    predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], *, tags: Sequence[str]
) -> Resampler:
    """Resample ``tagging_scores``, whole sentences at a time; see there for the arguments."""
    flat = [[tag for row in rows for tag in row] for rows in (predicted, gold)]
    numbers = {tag: number for number, tag in enumerate(dict.fromkeys([*tags, *flat[0], *flat[1]]))}
    words = [[numbers[tag] for tag in side] for side in flat]
    of_words = resample_classification(*words, labels=len(numbers))
    sentences = np.repeat(np.arange(len(gold)), [len(row) for row in gold])
    scheme = entity_scheme(flat[1], tags)
    entities = None if scheme is None else resample_f1(*entity_counts(predicted, gold, scheme))

    def resampled(weights: Weights) -> dict[str, float]:
        scores = of_words(weights[sentences])
        if entities is None:
            return {name: scores[name] for name in ("f1_macro", "accuracy")}
        return {**entities(weights), "accuracy": scores["accuracy"]}

    return resampled


def resample_perplexity(
    losses: npt.ArrayLike, right: npt.ArrayLike, tokens: npt.ArrayLike
) -> Resampler:
    """Resample ``perplexity_scores`` from sums per row: of losses, of right tokens, of tokens."""
    sums = np.array([losses, right, tokens], dtype=np.float64)

    def resampled(weights: Weights) -> dict[str, float]:
        loss, hits, number = sums @ weights
        mean = loss / number if number else math.nan
        return {
            "perplexity": math.inf if mean > 709 else math.exp(mean),
            "accuracy": _percentage(hits, number),
        }

    return resampled


def resample_bleu(written: Sequence[str], references: Sequence[str]) -> Resampler:
    """Resample the ``bleu`` of ``translation_scores``; see there for the arguments."""
    import sacrebleu

    each = [
        sacrebleu.sentence_bleu(text, [gold])
        for text, gold in zip(written, references, strict=True)
    ]
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in each])

    def resampled(weights: Weights) -> dict[str, float]:
        sums = [int(number) for number in weights @ counts]
        score = sacrebleu.BLEU.compute_bleu(
            sums[:4], sums[4:8], sums[8], sums[9], smooth_method="exp"
        )
        return {"bleu": float(score.score)}

    return resampled


def _percentage(part: float, whole: float) -> float:
    return float(100 * part / whole) if whole > 0 else 0.0


def _correlation(left: Weights, right: Weights, weights: Weights) -> float:
    total = weights.sum()
    left, right = left - weights @ left / total, right - weights @ right / total
    scale = math.sqrt((weights @ left**2) * (weights @ right**2))
    return float(weights @ (left * right)) / scale if scale > 0 else math.nan
