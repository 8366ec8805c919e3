"""Question answering as a task."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

from datasets import Dataset
from transformers import EvalPrediction

from hf_distill.alignment import TeacherReader
from hf_distill.alignment.characters import LABELS
from hf_distill.compatibility import input_limit
from hf_distill.heads import QuestionAnsweringHead
from hf_distill.tasks.base import (
    Encoded,
    Measures,
    Model,
    Rows,
    ScoredRow,
    Scorer,
    Task,
    Tokenizer,
)
from hf_distill.tasks.metrics import mean_metric
from hf_distill.tasks.question_answering import (
    Prediction,
    QuestionAnswerer,
    QuestionAnsweringEvaluator,
    load_question_answering_dataset,
    prepare_eval_features,
    prepare_train_features,
)
from hf_distill.tasks.question_answering.metrics import exact_match, token_f1_v2

DEFAULT_LENGTH = 384
_AROUND = 120
"""Characters of a context that are shown before an answer."""


class QuestionAnsweringTask(Task):
    """Windows of contexts in, start and end of answers out."""

    name = "question-answering"
    head = QuestionAnsweringHead
    timed = "text to answer"
    usage = (
        "from hf_distill.tasks.question_answering import QuestionAnswerer\n\n"
        'answerer = QuestionAnswerer.from_pretrained("{name}")\n'
        'print(answerer(question="Who wrote it?", context="It was written by Ada."))'
    )

    @property
    def max_length(self) -> int:
        """Most tokens in a window."""
        length: int | None = self.options.max_length
        return DEFAULT_LENGTH if length is None else length

    def length(self, tokenizer: Any, model: Any, *, pair: bool = True) -> int:
        """Return the most tokens of a window.

        Raises:
            ValueError: the model takes fewer.
        """
        most = input_limit(model)
        if most is not None and self.max_length > most:
            raise ValueError(
                f"--max_length {self.max_length} is more than the {most} tokens that "
                f"{type(model).__name__} takes; lower it."
            )
        return self.max_length

    def load_data(self, source: str, *, labelled: bool = True, **places: str | None) -> Dataset:
        """Load and check questions with their contexts, and with their answers if ``labelled``."""
        return load_question_answering_dataset(source, answers=labelled, **places)

    def label_counts(self, examples: Dataset, model: Model) -> dict[str, float]:
        without = sum(not answers["text"] for answers in examples["answers"])
        return {"with an answer": len(examples) - without, "without an answer": without}

    def features(
        self,
        examples: Dataset,
        tokenizer: Tokenizer,
        model: Model,
        *,
        training: bool,
        labelled: bool = True,
        num_proc: int | None = None,
        teacher: TeacherReader | None = None,
    ) -> Encoded:
        """Cut contexts into windows, one per row; nothing is cut off."""
        length = self.length(tokenizer, model)
        prepare = prepare_train_features if training else prepare_eval_features
        features = prepare(
            examples,
            tokenizer,
            max_length=length,
            doc_stride=self.options.doc_stride,
            num_proc=num_proc,
            teacher=teacher,
        )
        if not labelled:
            names = ["start_positions", "end_positions", *LABELS]
            features = features.remove_columns([n for n in names if n in features.column_names])
        return Encoded(features, 0)

    def scorer(
        self, examples: Dataset, features: Dataset, tokenizer: Tokenizer, model: Model
    ) -> QuestionAnsweringScorer:
        return QuestionAnsweringScorer(
            QuestionAnsweringEvaluator(
                examples,
                features,
                n_best=self.options.n_best,
                max_answer_length=self.options.max_answer_length,
                no_answer_threshold=self.options.no_answer_threshold,
            )
        )

    def predictor(
        self, model: Model, tokenizer: Tokenizer, batch_size: int
    ) -> Callable[[Rows], object]:
        """Answer questions from their contexts."""
        answerer = QuestionAnswerer(model, tokenizer, device=model.device)

        def predict(examples: Rows) -> object:
            return answerer.answer_all(
                [row["question"] for row in examples],
                [row["context"] for row in examples],
                top_k=1,
                batch_size=batch_size,
                max_length=self.max_length,
                doc_stride=self.options.doc_stride,
                max_answer_length=self.options.max_answer_length,
            )

        return predict


class QuestionAnsweringScorer(Scorer):
    """Keeps the answers that it scored.

    Args:
        evaluator: finds and scores the answers.
    """

    measures = Measures(
        quality={"f1": "F1", "exact_match": "exact match"},
        agreement={"identical": "same answer as the teacher", "f1": "word overlap with it"},
    )
    predictions: list[Prediction] | None

    def __init__(self, evaluator: QuestionAnsweringEvaluator) -> None:
        self.evaluator = evaluator

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        logits: Any = eval_prediction.predictions
        self.predictions = self.evaluator.predictions(logits[0], logits[1])
        self.metric = mean_metric(self.evaluator.score_each(self.predictions))
        return self.evaluator.score(self.predictions)

    def agreement(self, teacher: QuestionAnsweringScorer) -> dict[str, float]:
        """Compare answers as the metric does, the teacher's being the gold ones.

        Returns:
            ``identical``, the share of questions with the same normalised answer, and ``f1``,
            the mean F1 of the words.
        """
        answers = zip(self.predictions or [], teacher.predictions or [], strict=True)
        pairs = [(one.text, other.text) for one, other in answers]
        return {
            "identical": fmean(exact_match(*pair) for pair in pairs),
            "f1": fmean(token_f1_v2(*pair) for pair in pairs),
        }

    def rows(self) -> list[ScoredRow]:
        """Return the questions, with the piece of the context that holds the answer."""
        found = []
        for example, one, right in zip(
            self.evaluator.examples, self.predictions or [], self._right(), strict=True
        ):
            gold = " / ".join(dict.fromkeys(example["answers"]["text"])) or "no answer"
            text = f"{example['question']}\n{_excerpt(example)}"
            found.append(ScoredRow(text, gold, one.text or "no answer", right))
        return found

    def confidences(self) -> tuple[list[float], list[bool]]:
        """Return the probability of each answer among the best ones and no answer."""
        may_abstain = self.evaluator.no_answer_threshold is not None
        return [_probability(one, may_abstain) for one in self.predictions or []], self._right()

    def _right(self) -> list[bool]:
        scores = self.evaluator.score_each(self.predictions or [])
        return [score == 1 for score in scores["exact_match"]]

    def files(self) -> dict[str, Any]:
        """``predictions.json`` as the official scorers read it, and the n best answers."""
        predictions = self.predictions or []
        n_best = {}
        for prediction in predictions:
            answers = [
                {"text": one.text, "start": one.start, "end": one.end, "score": one.score}
                for one in prediction.answers
            ]
            n_best[prediction.id] = {
                "no_answer_score": prediction.no_answer_score,
                "answers": answers,
            }
        return {
            "predictions.json": {prediction.id: prediction.text for prediction in predictions},
            "nbest_predictions.json": n_best,
        }


def _excerpt(example: Any) -> str:
    """Return what stands around the answer in the context, or its beginning without one."""
    context, answers = example["context"], example["answers"]
    begin = max(0, answers["answer_start"][0] - _AROUND) if answers["text"] else 0
    end = begin + 2 * _AROUND
    return f"{'…' * (begin > 0)}{context[begin:end]}{'…' * (end < len(context))}"


def _probability(prediction: Prediction, may_abstain: bool) -> float:
    """Return the probability of an answer by the softmax of all scores that are known."""
    scores = [answer.score for answer in prediction.answers]
    if may_abstain or not scores:
        scores.append(prediction.no_answer_score)
    chosen = scores[0] if prediction.text else scores[-1]
    highest = max(scores)
    if not math.isfinite(highest):
        return 0.0
    return math.exp(chosen - highest) / sum(math.exp(score - highest) for score in scores)
