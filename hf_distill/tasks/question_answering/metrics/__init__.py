"""Exact match and F1 of SQuAD v1.1 and v2.0: pure functions, and `evaluate` modules over them.

The definitions are those of the official scorers, `evaluate-v1.1.py` and `evaluate-v2.0.py`
(Rajpurkar et al. 2016, 2018). Normalisation removes ASCII punctuation and the *English* articles
from every language: German "der" stays, and so do quotation marks like „ and “. That is part of
the definition, and figures for GermanQuAD are published with it.

`evaluate.load("squad")` fetches a script from the Hub; `load_metric("squad")` does not. The same
modules can be loaded by path: `evaluate.load(".../question_answering/metrics/squad_v2")`.
"""

from __future__ import annotations

import inspect
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import evaluate
from datasets import Features, List, Value

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower-case `text`, drop ASCII punctuation and English articles, join words by one space.

    In this order: "U.S.A" becomes "usa", and "a.n" the article "an", which is dropped.
    """
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1.0 if the two normalise to the same text, else 0.0."""
    return float(normalize(prediction) == normalize(gold))


def token_f1(prediction: str, gold: str) -> float:
    """Return the F1 of the two bags of normalised words, 0.0 without a common word.

    2·P·R / (P + R), P and R the shares of the prediction's and of the gold's words that the other
    also has, counted with repetition.
    """
    predicted, wanted = normalize(prediction).split(), normalize(gold).split()
    common = (Counter(predicted) & Counter(wanted)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def token_f1_v2(prediction: str, gold: str) -> float:
    """Like `token_f1`, but 1.0 for two texts that both normalise to nothing, as v2.0 has it."""
    if not normalize(prediction) and not normalize(gold):
        return 1.0
    return token_f1(prediction, gold)


def score_each(
    texts: Sequence[str], golds: Iterable[Sequence[str]], *, version_2: bool
) -> dict[str, list[float]]:
    """Return `exact_match` and `f1` of each text against the best of its accepted answers.

    In v2.0 an accepted answer that normalises to nothing does not count, and a question without
    any accepts "".
    """
    overlap = token_f1_v2 if version_2 else token_f1
    scores: dict[str, list[float]] = {"exact_match": [], "f1": []}
    for text, accepted in zip(texts, golds, strict=True):
        if version_2:
            accepted = [gold for gold in accepted if normalize(gold)] or [""]
        scores["exact_match"].append(max(exact_match(text, gold) for gold in accepted))
        scores["f1"].append(max(overlap(text, gold) for gold in accepted))
    return scores


def score_v2(
    texts: Sequence[str],
    golds: Sequence[Sequence[str]],
    no_answer_probabilities: Sequence[float],
    no_answer_threshold: float,
) -> dict[str, float]:
    """Return the scores that `SquadV2` describes; ties are broken by the order of the questions."""
    has_answer = [bool(gold) for gold in golds]
    scores: dict[str, float] = {}
    best: dict[str, float] = {}
    for name, raw in score_each(texts, golds, version_2=True).items():
        name = name.removesuffix("_match")
        kept = [
            float(not answerable) if probability > no_answer_threshold else value
            for value, answerable, probability in zip(
                raw, has_answer, no_answer_probabilities, strict=True
            )
        ]
        scores[name] = 100.0 * fmean(kept)
        for prefix, wanted in (("HasAns", True), ("NoAns", False)):
            part = [one for one, has in zip(kept, has_answer, strict=True) if has is wanted]
            if part:
                scores[f"{prefix}_{name}"] = 100.0 * fmean(part)
                scores[f"{prefix}_total"] = len(part)
        value, threshold = best_threshold(raw, texts, has_answer, no_answer_probabilities)
        best[f"best_{name}"] = 100.0 * value
        best[f"best_{name}_thresh"] = threshold
    return {**scores, "total": len(texts), **best}


def best_threshold(
    scores: Sequence[float],
    predictions: Sequence[str],
    has_answer: Sequence[bool],
    no_answer_probabilities: Sequence[float],
) -> tuple[float, float]:
    """Find the threshold that would have been best, given the gold answers (v2.0).

    The official sweep: begin with "no answer" for all, then take in question after question in
    the order of its no-answer probability. One with an answer adds its score; one without takes
    1 away, unless its prediction is empty. The best total on the way counts, the first of equals.
    Of questions with equal probability, the sweep may stop in between; their order is that of the
    arguments.

    Args:
        scores: The score of each prediction, "no answer" not yet considered.
        predictions: The predicted texts.
        has_answer: Whether the question has an answer.
        no_answer_probabilities: Any number that rises with the model's belief in "no answer";
            the official threshold for "no answer to anything" is 0.0, below all of them.

    Returns:
        The best mean score (between 0 and 1) and its threshold: a question gets "no answer" if
        its probability is above.
    """
    total = float(sum(not answerable for answerable in has_answer))
    best, threshold = total, 0.0
    order = sorted(range(len(scores)), key=lambda row: no_answer_probabilities[row])
    for row in order:
        if has_answer[row]:
            total += scores[row]
        elif predictions[row]:
            total -= 1.0
        if total > best:
            best, threshold = total, no_answer_probabilities[row]
    return best / len(scores), threshold


def check_ids(predicted: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `ValueError` unless there is one prediction for each reference.

    (The official scorers count a missing prediction as wrong in v1.1 and leave it out in v2.0.)
    """
    if len(set(predicted)) < len(predicted) or len(set(wanted)) < len(wanted):
        raise ValueError("predictions or references have an id twice; ids must be unique")
    if not wanted:
        raise ValueError("references is empty: there is nothing to score")
    odd = sorted({*predicted} ^ {*wanted})
    if odd:
        raise ValueError(
            f"predictions and references differ in {len(odd)} ids, for example {odd[0]!r}; give "
            "one prediction for each reference"
        )


class _SquadMetric(evaluate.Metric):
    """Shared by both metrics: features, and references in the order of predictions."""

    citation: ClassVar[str]
    prediction_features: ClassVar[dict[str, Value]] = {}

    def _info(self) -> evaluate.MetricInfo:
        description, _, inputs = (inspect.getdoc(type(self)) or "").partition("\n\nArgs:")
        text = Value("string")
        answers = {"text": List(text), "answer_start": List(Value("int32"))}
        predictions = {"id": text, "prediction_text": text, **self.prediction_features}
        return evaluate.MetricInfo(
            description=description,
            citation=self.citation,
            inputs_description=f"Args:{inputs}",
            features=Features(
                {"predictions": predictions, "references": {"id": text, "answers": answers}}
            ),
            reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/"],
        )

    def _compute(
        self,
        predictions: list[dict[str, Any]],
        references: list[dict[str, Any]],
        **options: float,
    ) -> dict[str, float]:
        wanted = {reference["id"]: reference["answers"]["text"] for reference in references}
        ids = [prediction["id"] for prediction in predictions]
        check_ids(ids, [reference["id"] for reference in references])
        golds = [wanted[name] for name in ids]
        texts = [prediction["prediction_text"] for prediction in predictions]
        return self._score(predictions, texts, golds, **options)

    def _score(
        self, predictions: list[dict[str, Any]], texts: list[str], golds: list[list[str]]
    ) -> dict[str, float]:
        raise NotImplementedError


class Squad(_SquadMetric):
    """Exact match and F1 of SQuAD v1.1, where every question has an answer.

    Args:
        predictions: list of {"id": str, "prediction_text": str}.
        references: list of {"id": str, "answers": {"text": list[str], "answer_start": list[int]}},
            one for each prediction; the order may differ.

    Returns:
        {"exact_match": percent, "f1": percent}: the mean over questions of the best score against
        any of the accepted answers.

    Raises:
        ValueError: The ids of predictions and references differ, or a reference has no answer.
    """

    citation = """
@inproceedings{rajpurkar2016squad,
  title = {SQuAD: 100,000+ Questions for Machine Comprehension of Text},
  author = {Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle = {EMNLP},
  year = {2016}
}
"""

    def _score(
        self, predictions: list[dict[str, Any]], texts: list[str], golds: list[list[str]]
    ) -> dict[str, float]:
        for prediction, accepted in zip(predictions, golds, strict=True):
            if not accepted:
                raise ValueError(
                    f"the question {prediction['id']!r} has no answer, which the metric 'squad' "
                    "cannot score; use 'squad_v2'"
                )
        each = score_each(texts, golds, version_2=False)
        return {name: 100.0 * fmean(values) for name, values in each.items()}


class SquadV2(_SquadMetric):
    """Exact match and F1 of SQuAD v2.0, where some questions have no answer.

    As the official scorer computes them when it is called with --na-prob-file.

    Args:
        predictions: list of {"id": str, "prediction_text": str, "no_answer_probability": float};
            any number that rises with the belief in "no answer" will do as a probability.
        references: list of {"id": str, "answers": {"text": list[str], "answer_start": list[int]}},
            one for each prediction; the order may differ. No text: the question has no answer.
        no_answer_threshold: a prediction counts as "no answer" if its no_answer_probability is
            above this. Default 1.0, with which probabilities change nothing.

    Returns:
        "exact", "f1": percent, after the threshold; "total": number of questions;
        "HasAns_…", "NoAns_…": the same three over the questions with and without an answer (left
        out where there is none such);
        "best_exact", "best_f1": percent, with the thresholds "best_exact_thresh",
        "best_f1_thresh", the best ones in hindsight (0.0 stands for "no answer to anything").

    Raises:
        ValueError: The ids of predictions and references differ.
    """

    citation = """
@inproceedings{rajpurkar2018know,
  title = {Know What You Don't Know: Unanswerable Questions for SQuAD},
  author = {Rajpurkar, Pranav and Jia, Robin and Liang, Percy},
  booktitle = {ACL},
  year = {2018}
}
"""
    prediction_features: ClassVar[dict[str, Value]] = {"no_answer_probability": Value("float64")}

    def _score(
        self,
        predictions: list[dict[str, Any]],
        texts: list[str],
        golds: list[list[str]],
        no_answer_threshold: float = 1.0,
    ) -> dict[str, float]:
        probabilities = [prediction["no_answer_probability"] for prediction in predictions]
        return score_v2(texts, golds, probabilities, no_answer_threshold)


METRICS: dict[str, type[_SquadMetric]] = {"squad": Squad, "squad_v2": SquadV2}


def load_metric(name: str) -> evaluate.Metric:
    """Make a question-answering metric.

    Args:
        name: `"squad"` (v1.1: every question has an answer) or `"squad_v2"`.

    Returns:
        A fresh metric that keeps what it is given in memory.

    Raises:
        ValueError: No metric has that name.

    Example:
        >>> metric = load_metric("squad")
        >>> metric.compute(
        ...     predictions=[{"id": "1", "prediction_text": "the Alps"}],
        ...     references=[{"id": "1", "answers": {"text": ["Alps"], "answer_start": [3]}}],
        ... )
        {'exact_match': 100.0, 'f1': 100.0}
    """
    if name not in METRICS:
        raise ValueError(f"name={name!r} is not a metric; choose one of {', '.join(METRICS)}")
    # evaluate makes a folder for each metric, also for one that writes nothing; not in the cache of
    # the Hub, which containers may not be able to write to.
    with TemporaryDirectory() as unused:
        return METRICS[name](keep_in_memory=True, cache_dir=unused)
