"""Metrics of weighted rows equal those of the rows written out, by the usual libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score, recall_score
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from hf_distill.tasks.metrics import (
    Metric,
    classification_metric,
    mean_metric,
    multi_label_metric,
    perplexity_metric,
    regression_metric,
    rouge_metric,
    tagging_metric,
    translation_metric,
)

Case = tuple[Metric, Callable[[Any], dict[str, float]]]
ROWS = 12
WEIGHTS = st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS).filter(lambda w: sum(w) > 1)


def percent(scores: dict[str, Any]) -> dict[str, float]:
    return {name: 100 * float(value) for name, value in scores.items()}


def f1(gold: Any, predicted: Any, average: str) -> Any:
    return f1_score(gold, predicted, average=average, zero_division=0)


def means(rng: Any) -> Case:
    scores = rng.random(ROWS)
    return mean_metric({"m": scores}), lambda rows: percent({"m": scores[rows].mean()})


def classes(rng: Any, labels: int) -> Case:
    predicted, gold = rng.integers(labels, size=(2, ROWS))

    def library(rows: Any) -> dict[str, float]:
        sides = gold[rows], predicted[rows]
        scores = {
            "accuracy": accuracy_score(*sides),
            "f1_macro": f1(*sides, "macro"),
            "matthews": matthews_corrcoef(*sides),
        }
        return percent(scores | ({"f1": f1(*sides, "binary")} if labels == 2 else {}))

    return classification_metric(predicted, gold, labels=labels, positive=1), library


def several_labels(rng: Any) -> Case:
    predicted, gold = rng.random((2, ROWS, 3)) > 0.5

    def library(rows: Any) -> dict[str, float]:
        sides = gold[rows], predicted[rows]
        return percent(
            {
                "f1_micro": f1(*sides, "micro"),
                "f1_macro": f1(*sides, "macro"),
                "exact_match": accuracy_score(*sides),
            }
        )

    return multi_label_metric(predicted, gold), library


def numbers(rng: Any) -> Case:
    predicted, gold = rng.integers(4, size=(2, ROWS)) / 10  # with ties

    def library(rows: Any) -> dict[str, float]:
        sides = predicted[rows], gold[rows]
        constant = min(len(set(side)) for side in sides) == 1
        pearson, spearman = (
            (np.nan, np.nan) if constant else (pearsonr(*sides)[0], spearmanr(*sides)[0])
        )
        squares = (sides[0] - sides[1]) ** 2
        return {**percent({"pearson": pearson, "spearman": spearman}), "mse": squares.mean()}

    return regression_metric(predicted, gold), library


def tokens(rng: Any) -> Case:
    losses, top = rng.random((ROWS, 5)), rng.integers(3, size=(ROWS, 5))
    labels = np.where(rng.random((ROWS, 5)) > 0.3, rng.integers(3, size=(ROWS, 5)), -100)
    labels[:, 0] = 1
    counts = labels != -100
    losses[~counts] = -100  # as Trainer pads them

    def written_out(rows: Any) -> dict[str, float]:
        kept = counts[rows]
        return {
            "perplexity": np.exp(losses[rows][kept].mean()),
            "accuracy": 100 * (top == labels)[rows][kept].mean(),
        }

    return perplexity_metric(losses, top, labels), written_out


SENTENCES = ["the cat sat on the mat", "a dog barks", "no", "the cat", "on a mat the dog sat down"]


def translations(rng: Any) -> Case:
    written, gold = (rng.choice(SENTENCES, size=ROWS) for _ in range(2))
    return translation_metric(written, gold), lambda rows: {
        "bleu": corpus_bleu(list(written[rows]), [list(gold[rows])]).score
    }


def summaries(rng: Any) -> Case:
    written, gold = (rng.choice(SENTENCES, size=ROWS) for _ in range(2))
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    each = [scorer.score(*pair) for pair in zip(gold, written, strict=True)]
    return rouge_metric(written, gold), lambda rows: percent(
        {kind: np.mean([each[row][kind].fmeasure for row in rows]) for kind in each[0]}
    )


def tagged(rng: Any, tags: list[str]) -> Case:
    lengths = rng.integers(1, 6, size=ROWS)
    predicted, gold = ([list(rng.choice(tags, size=n)) for n in lengths] for _ in range(2))
    letters = str.maketrans({"L": "E", "U": "S"})

    def library(rows: Any) -> dict[str, float]:
        sides = [[side[row] for row in rows] for side in (gold, predicted)]
        flat = [[tag for row in side for tag in row] for side in sides]
        accuracy = accuracy_score(*flat)
        if "O" not in tags:
            return percent({"f1_macro": f1(*flat, "macro"), "accuracy": accuracy})
        gold_tags, found = ([[tag.translate(letters) for tag in row] for row in s] for s in sides)
        return percent(
            {
                name: function(gold_tags, found, zero_division=0)
                for name, function in (
                    ("f1", entity_f1), ("precision", precision_score), ("recall", recall_score),
                )
            }
            | {"accuracy": accuracy}
        )  # fmt: skip

    return tagging_metric(predicted, gold, tags=tags), library


BILOU = ["O", "B-a", "I-a", "L-a", "U-a", "U-b"]


@pytest.mark.parametrize(
    "make",
    [means, lambda rng: classes(rng, 2), lambda rng: classes(rng, 4), several_labels, numbers,
     tokens, translations, summaries, lambda rng: tagged(rng, BILOU),
     lambda rng: tagged(rng, ["noun", "verb", "x"])],
    ids=["means", "two classes", "four classes", "several labels", "numbers", "tokens",
         "translations", "summaries", "entities", "tags"],
)  # fmt: skip
@given(st.integers(0, 10**6), WEIGHTS)
@settings(max_examples=40, deadline=None)
def test_rows_score_as_the_libraries_score_them(make: Any, seed: int, weights: list[int]) -> None:
    metric, library = make(np.random.default_rng(seed))
    for found, rows in (
        (metric.weighted(np.array(weights)), np.repeat(np.arange(ROWS), weights)),
        (metric.scores(), np.arange(ROWS)),
    ):
        expected = library(rows)
        assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=True)
        assert found.keys() <= {*expected, *metric.of_all}


def test_constant_numbers_have_no_correlation() -> None:
    scores = regression_metric([0.1, 0.1, 0.1], [1.0, 2.0, 4.0]).scores()
    assert np.isnan(scores["pearson"]) and np.isnan(scores["spearman"])
