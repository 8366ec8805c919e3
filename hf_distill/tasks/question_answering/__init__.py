"""Extractive question answering: data, windows, answers, scores."""

from __future__ import annotations

from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.question_answering.answering import QuestionAnswerer
from hf_distill.tasks.question_answering.data import (
    is_v2,
    load_question_answering_dataset,
    validate_answers,
)
from hf_distill.tasks.question_answering.evaluation import QuestionAnsweringEvaluator
from hf_distill.tasks.question_answering.features import (
    prepare_eval_features,
    prepare_train_features,
)
from hf_distill.tasks.question_answering.metrics import load_metric
from hf_distill.tasks.question_answering.postprocessing import Answer, Prediction, postprocess

QuestionAnsweringDataError = TaskDataError

__all__ = [
    "Answer",
    "Prediction",
    "QuestionAnswerer",
    "QuestionAnsweringDataError",
    "QuestionAnsweringEvaluator",
    "is_v2",
    "load_metric",
    "load_question_answering_dataset",
    "postprocess",
    "prepare_eval_features",
    "prepare_train_features",
    "validate_answers",
]
