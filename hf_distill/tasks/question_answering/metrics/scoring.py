"""The definitions behind the SQuAD scores, as pure functions.

They are those of the official scorers, `evaluate-v1.1.py` and `evaluate-v2.0.py` (Rajpurkar et
al. 2016, 2018). Normalisation removes ASCII punctuation and the *English* articles from every
language: German "der" stays, and so do quotation marks like „ and “. That is part of the
definition, and figures for GermanQuAD are published with it.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import evaluate
from datasets import Features, List, Value

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower-case `text`, drop ASCII punctuation and English articles, join words by one space.

    In this order: "U.S.A" becomes "usa", and "a.n" the article "an", which goes too.

    Args:
        text: An answer.

    Returns:
        The normalised answer, possibly "".
    """
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1.0 if the two normalise to the same text, else 0.0."""
    return float(normalize(prediction) == normalize(gold))


def token_f1(prediction: str, gold: str) -> float:
    """Return the F1 of the two bags of normalised words.

    2·P·R / (P + R), P and R the shares of the prediction's and of the gold's words that the other
    has too, counted with repetition.

    Args:
        prediction: The answer to score.
        gold: An accepted answer.

    Returns:
        Between 0.0 and 1.0; 0.0 without a common word, two empty texts included.
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


def match_ids(predictions: Sequence[Mapping], references: Sequence[Mapping]) -> list[Mapping]:
    """Bring predictions into the order of the references.

    Args:
        predictions: Objects with `id`.
        references: Objects with `id`.

    Returns:
        The prediction for each reference.

    Raises:
        ValueError: The two have not the same ids, or one has an id twice. (The official scorers
            count a missing prediction as wrong in v1.1 and leave it out in v2.0.)
    """
    by_id = {prediction["id"]: prediction for prediction in predictions}
    wanted = {reference["id"] for reference in references}
    if len(by_id) < len(predictions) or len(wanted) < len(references):
        raise ValueError("predictions or references have an id twice; ids must be unique")
    if not wanted:
        raise ValueError("references is empty: there is nothing to score")
    if by_id.keys() != wanted:
        odd = sorted(by_id.keys() ^ wanted)
        raise ValueError(
            f"predictions and references differ in {len(odd)} ids, for example {odd[0]!r}; give "
            "one prediction for each reference"
        )
    return [by_id[reference["id"]] for reference in references]


def metric_info(
    description: str, citation: str, inputs: str, **prediction_features: Value
) -> evaluate.MetricInfo:
    """Describe a metric; predictions have the further features."""
    text = Value("string")
    answers = {"text": List(text), "answer_start": List(Value("int32"))}
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=Features(
            {
                "predictions": {"id": text, "prediction_text": text, **prediction_features},
                "references": {"id": text, "answers": answers},
            }
        ),
        reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/"],
    )
