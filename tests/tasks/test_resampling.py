"""Metrics of resampled rows equal those of the rows written out, by the libraries that score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.tasks import metrics
from hf_distill.tasks.resampling import (
    Resampler,
    resample_bleu,
    resample_classification,
    resample_means,
    resample_multi_label,
    resample_perplexity,
    resample_regression,
    resample_tags,
)

ROWS = 12
WEIGHTS = st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS).filter(lambda w: sum(w) > 1)


def classes(rng: Any, labels: int) -> tuple[Resampler, Callable[[Any], dict[str, float]]]:
    predicted, gold = rng.integers(labels, size=(2, ROWS))
    options: Any = {"labels": labels, "positive": 1}
    return resample_classification(
        predicted, gold, **options
    ), lambda rows: metrics.classification_scores(predicted[rows], gold[rows], **options)


def several_labels(rng: Any) -> tuple[Resampler, Callable[[Any], dict[str, float]]]:
    predicted, gold = rng.random((2, ROWS, 3)) > 0.5
    return resample_multi_label(predicted, gold), lambda rows: metrics.multi_label_scores(
        predicted[rows], gold[rows]
    )


def numbers(rng: Any) -> tuple[Resampler, Callable[[Any], dict[str, float]]]:
    predicted, gold = rng.integers(4, size=(2, ROWS)) / 3  # with ties
    return resample_regression(predicted, gold), lambda rows: metrics.regression_scores(
        predicted[rows], gold[rows]
    )


def tokens(rng: Any) -> tuple[Resampler, Callable[[Any], dict[str, float]]]:
    losses, top = rng.random((ROWS, 5)), rng.integers(3, size=(ROWS, 5))
    labels = np.where(rng.random((ROWS, 5)) > 0.3, rng.integers(3, size=(ROWS, 5)), -100)
    labels[:, 0] = 1
    losses, counts = losses * (labels != -100), labels != -100
    right = ((top == labels) & counts).sum(1)
    resampled = resample_perplexity(losses.sum(1), right, counts.sum(1))

    def written_out(rows: Any) -> dict[str, float]:
        scores = metrics.perplexity_scores(losses[rows], top[rows], labels[rows])
        return {name: scores[name] for name in ("perplexity", "accuracy")}

    return resampled, written_out


SENTENCES = ["the cat sat on the mat", "a dog barks", "no", "the cat", "on a mat the dog sat down"]


def translations(rng: Any) -> tuple[Resampler, Callable[[Any], dict[str, float]]]:
    written, gold = (rng.choice(SENTENCES, size=ROWS) for _ in range(2))
    return resample_bleu(written, gold), lambda rows: {
        "bleu": metrics.translation_scores(written[rows], gold[rows])["bleu"]
    }


def summaries(rng: Any) -> tuple[Resampler, Callable[[Any], dict[str, float]]]:
    written, gold = (rng.choice(SENTENCES, size=ROWS) for _ in range(2))
    return resample_means(metrics.rouge_of_each(written, gold)), lambda rows: metrics.rouge_scores(
        written[rows], gold[rows]
    )


def tagged(rng: Any, tags: list[str]) -> tuple[Resampler, Callable[[Any], dict[str, float]]]:
    lengths = rng.integers(1, 6, size=ROWS)
    predicted, gold = ([list(rng.choice(tags, size=n)) for n in lengths] for _ in range(2))

    def written_out(rows: Any) -> dict[str, float]:
        return metrics.tagging_scores(
            [predicted[row] for row in rows], [gold[row] for row in rows], tags=tags
        )

    return resample_tags(predicted, gold, tags=tags), written_out


BILOU = ["O", "B-a", "I-a", "L-a", "U-a", "U-b"]


@pytest.mark.parametrize(
    "make",
    [lambda rng: classes(rng, 2), lambda rng: classes(rng, 4), several_labels, numbers, tokens,
     translations, summaries, lambda rng: tagged(rng, BILOU),
     lambda rng: tagged(rng, ["noun", "verb", "x"])],
    ids=["two classes", "four classes", "several labels", "numbers", "tokens", "translations",
         "summaries", "entities", "tags"],
)  # fmt: skip
@given(st.integers(0, 10**6), WEIGHTS)
@settings(max_examples=40, deadline=None)
def test_weighted_rows_score_like_repeated_rows(make: Any, seed: int, weights: list[int]) -> None:
    resampled, written_out = make(np.random.default_rng(seed))
    expected = written_out(np.repeat(np.arange(ROWS), weights))
    found = resampled(np.array(weights))
    assert found == pytest.approx({name: expected[name] for name in found}, nan_ok=True)
    assert found.keys() == expected.keys()
