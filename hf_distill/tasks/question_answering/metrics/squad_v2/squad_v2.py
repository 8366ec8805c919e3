"""Exact match and F1 of SQuAD v2.0 as an `evaluate` module."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import datasets
import evaluate

from hf_distill.tasks.question_answering.metrics.scoring import (
    best_threshold,
    exact_match,
    match_ids,
    metric_info,
    normalize,
    token_f1_v2,
)

_DESCRIPTION = """
Exact match and F1 for extractive question answering where some questions have no answer, as the
official scorer of SQuAD v2.0 defines them, called with --na-prob-file.
"""

_CITATION = """
@inproceedings{rajpurkar2018know,
  title = {Know What You Don't Know: Unanswerable Questions for SQuAD},
  author = {Rajpurkar, Pranav and Jia, Robin and Liang, Percy},
  booktitle = {ACL},
  year = {2018}
}
"""

_INPUTS = """
Args:
    predictions: list of {"id": str, "prediction_text": str, "no_answer_probability": float};
        any number that rises with the belief in "no answer" will do as a probability.
    references: list of {"id": str, "answers": {"text": list[str], "answer_start": list[int]}},
        one for each prediction; the order may differ. No text: the question has no answer.
    no_answer_threshold: a prediction counts as "no answer" if its no_answer_probability is above
        this. Default 1.0, with which probabilities change nothing.

Returns:
    "exact", "f1": percent, after the threshold; "total": number of questions;
    "HasAns_…", "NoAns_…": the same three over the questions with and without an answer (left out
    where there is none such);
    "best_exact", "best_f1": percent, with the thresholds "best_exact_thresh", "best_f1_thresh",
    the best ones in hindsight (0.0 stands for "no answer to anything").

Raises:
    ValueError: The ids of predictions and references differ.
"""


class SquadV2(evaluate.Metric):
    """The metric of SQuAD v2.0; see `load_metric`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            _DESCRIPTION,
            _CITATION,
            _INPUTS,
            no_answer_probability=datasets.Value("float64"),
        )

    def _compute(
        self,
        predictions: list[dict[str, Any]],
        references: list[dict[str, Any]],
        no_answer_threshold: float = 1.0,
    ) -> dict[str, float]:
        # the official sweep breaks ties by the order of the predictions
        by_id = {reference["id"]: reference for reference in references}
        match_ids(references, predictions)
        texts = [prediction["prediction_text"] for prediction in predictions]
        probabilities = [prediction["no_answer_probability"] for prediction in predictions]
        golds = [by_id[prediction["id"]]["answers"]["text"] for prediction in predictions]
        has_answer = [bool(gold) for gold in golds]
        accepted = [[text for text in gold if normalize(text)] or [""] for gold in golds]

        scores: dict[str, float] = {}
        best: dict[str, float] = {}
        for name, score in (("exact", exact_match), ("f1", token_f1_v2)):
            raw = [
                max(score(text, gold) for gold in options)
                for text, options in zip(texts, accepted, strict=True)
            ]
            kept = [
                float(not answerable) if probability > no_answer_threshold else value
                for value, answerable, probability in zip(
                    raw, has_answer, probabilities, strict=True
                )
            ]
            scores[name] = 100.0 * fmean(kept)
            for prefix, wanted in (("HasAns", True), ("NoAns", False)):
                part = [
                    value
                    for value, answerable in zip(kept, has_answer, strict=True)
                    if answerable is wanted
                ]
                if part:
                    scores[f"{prefix}_{name}"] = 100.0 * fmean(part)
                    scores[f"{prefix}_total"] = len(part)
            value, threshold = best_threshold(raw, texts, has_answer, probabilities)
            best[f"best_{name}"] = 100.0 * value
            best[f"best_{name}_thresh"] = threshold
        return {**scores, "total": len(texts), **best}
