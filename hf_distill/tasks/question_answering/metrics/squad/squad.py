"""Exact match and F1 of SQuAD v1.1 as an `evaluate` module."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import evaluate

from hf_distill.tasks.question_answering.metrics.scoring import (
    exact_match,
    match_ids,
    metric_info,
    token_f1,
)

_DESCRIPTION = """
Exact match and F1 for extractive question answering where every question has an answer, as the
official scorer of SQuAD v1.1 defines them.
"""

_CITATION = """
@inproceedings{rajpurkar2016squad,
  title = {SQuAD: 100,000+ Questions for Machine Comprehension of Text},
  author = {Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle = {EMNLP},
  year = {2016}
}
"""

_INPUTS = """
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


class Squad(evaluate.Metric):
    """The metric of SQuAD v1.1; see `load_metric`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(_DESCRIPTION, _CITATION, _INPUTS)

    def _compute(
        self, predictions: list[dict[str, Any]], references: list[dict[str, Any]]
    ) -> dict[str, float]:
        exact, f1 = [], []
        ordered = match_ids(predictions, references)
        for prediction, reference in zip(ordered, references, strict=True):
            text, golds = prediction["prediction_text"], reference["answers"]["text"]
            if not golds:
                raise ValueError(
                    f"the question {reference['id']!r} has no answer, which the metric 'squad' "
                    "cannot score; use 'squad_v2'"
                )
            exact.append(max(exact_match(text, gold) for gold in golds))
            f1.append(max(token_f1(text, gold) for gold in golds))
        return {"exact_match": 100.0 * fmean(exact), "f1": 100.0 * fmean(f1)}
