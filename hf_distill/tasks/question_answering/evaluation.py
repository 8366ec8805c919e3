"""EM and F1 of a model while `Trainer` evaluates it."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from transformers import EvalPrediction

from hf_distill.tasks.question_answering.metrics import check_ids, score_each, score_v2
from hf_distill.tasks.question_answering.postprocessing import Prediction, postprocess
from hf_distill.tasks.question_answering.records import row_answers


class QuestionAnsweringEvaluator:
    """A `compute_metrics` for extractive question answering.

    Args:
        examples: The evaluation data, as from `load_question_answering_dataset`.
        features: `prepare_eval_features(examples, …)`, which is also the trainer's
            `eval_dataset`, in the same order.
        n_best: Most answers to keep for a question.
        max_answer_length: Most tokens in an answer.
        no_answer_threshold: In v2.0, the answer is "" if "no answer" scores better than the best
            answer by more than this (in logits); None: always answer. v1.1 always answers.
        version_2: Whether to score by the rules of SQuAD v2.0. By default, whether some question
            has no answer.

    Raises:
        ValueError: `version_2` is False and some question has no answer.
        QuestionAnsweringDataError: The answers of a row are null or not lists of text and places.

    Example:
        >>> evaluator = QuestionAnsweringEvaluator(examples, features)  # doctest: +SKIP
        >>> trainer = Trainer(
        ...     model, args, eval_dataset=features, compute_metrics=evaluator,
        ...     processing_class=tokenizer,
        ... )  # doctest: +SKIP
        >>> trainer.evaluate()["eval_f1"]  # doctest: +SKIP
        75.4
    """

    def __init__(
        self,
        examples: Dataset,
        features: Dataset,
        *,
        n_best: int = 20,
        max_answer_length: int = 30,
        no_answer_threshold: float | None = 0.0,
        version_2: bool | None = None,
    ) -> None:
        self._texts = [
            row_answers({"answers": answers}, f"examples[{row}]")[0]
            for row, answers in enumerate(examples["answers"])
        ]
        unanswerable = not all(self._texts)
        if version_2 is False and unanswerable:
            raise ValueError(
                "version_2=False, but some examples have no answer, which SQuAD v1.1 cannot score; "
                "leave out version_2"
            )
        self.examples = examples
        self.features = features
        self.n_best = n_best
        self.max_answer_length = max_answer_length
        self.version_2 = unanswerable if version_2 is None else version_2
        self.no_answer_threshold = no_answer_threshold if self.version_2 else None

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Score the logits of an evaluation.

        Args:
            eval_prediction: `predictions` is (start logits, end logits), each
                `(windows, width)`; what else follows in the tuple is ignored.

        Returns:
            See `score`.

        Raises:
            ValueError: The logits are not those of `features`, or not finite.
        """
        logits = eval_prediction.predictions
        if not isinstance(logits, tuple | list) or len(logits) < 2:
            raise ValueError(
                "the model's predictions must be (start logits, end logits), not "
                f"{type(logits).__name__}; use a model with a question-answering head"
            )
        self._check_order(eval_prediction.label_ids)
        return self.score(self.predictions(logits[0], logits[1]))

    def _check_order(self, labels: Any) -> None:
        """Raise if the evaluation was in another order than ``features``.

        ``Trainer`` shuffles it under ``train_sampling_strategy="group_by_length"``, and the scores
        would be nonsense. (``DistillationTrainer`` does not.)
        """
        names = ("start_positions", "end_positions")
        if not isinstance(labels, tuple | list) or len(labels) != len(names):
            return
        for name, found in zip(names, labels, strict=True):
            if name in self.features.column_names and not np.array_equal(
                np.asarray(found), np.asarray(self.features[name])
            ):
                raise ValueError(
                    f"the labels of the evaluation ({name}) are not those of features, or in "
                    "another order; evaluate on the features that the evaluator was made with, "
                    "and do not let Trainer shuffle them (train_sampling_strategy="
                    "'group_by_length' does; DistillationTrainer evaluates in order)"
                )

    def predictions(
        self, start_logits: npt.ArrayLike, end_logits: npt.ArrayLike
    ) -> list[Prediction]:
        """Find the answers; see `postprocess`.

        Args:
            start_logits: `(windows, width)`, in the order of `features`.
            end_logits: The same.

        Returns:
            One prediction per example.

        Raises:
            ValueError: The logits are not those of `features`, or not finite.
        """
        return postprocess(
            self.examples,
            self.features,
            start_logits,
            end_logits,
            n_best=self.n_best,
            max_answer_length=self.max_answer_length,
            no_answer_threshold=self.no_answer_threshold,
        )

    def score(self, predictions: list[Prediction]) -> dict[str, float]:
        """Score predictions against the answers of `examples`.

        Args:
            predictions: From `predictions`.

        Returns:
            `exact_match` and `f1` in percent. In v2.0 also `total`, `HasAns_exact`, `HasAns_f1`,
            `HasAns_total`, the same with `NoAns_`, and `best_exact`, `best_exact_thresh`,
            `best_f1`, `best_f1_thresh`; the thresholds are in logits: values for
            `no_answer_threshold`.
        """
        if self.version_2:
            return self._score_v2(predictions)
        return {name: 100.0 * fmean(of) for name, of in self.score_each(predictions).items()}

    def score_each(self, predictions: list[Prediction]) -> dict[str, list[float]]:
        """Score each prediction by itself; ``score`` has the means, in percent.

        Args:
            predictions: From `predictions`.

        Returns:
            `exact_match` and `f1` of each example, between 0 and 1.
        """
        return score_each(
            [one.text for one in predictions], self._golds(predictions), version_2=self.version_2
        )

    def _golds(self, predictions: list[Prediction]) -> list[list[str]]:
        ids = [str(name) for name in self.examples["id"]]
        check_ids([one.id for one in predictions], ids)
        texts = dict(zip(ids, self._texts, strict=True))
        return [texts[one.id] for one in predictions]

    def _score_v2(self, predictions: list[Prediction]) -> dict[str, float]:
        # The official sweep takes 0.0 for "below all", which margins are not. Only their order
        # matters to it, so that it gets their ranks, from 1, and the thresholds are read back.
        margins, ranks = np.unique(
            [prediction.no_answer_margin for prediction in predictions], return_inverse=True
        )
        threshold = np.inf if self.no_answer_threshold is None else self.no_answer_threshold
        scores = score_v2(
            [one.answers[0].text if one.answers else "" for one in predictions],
            self._golds(predictions),
            (ranks + 1).tolist(),
            float(np.searchsorted(margins, threshold, side="right")),
        )
        below_all = float(margins[0]) - 1.0 if np.isfinite(margins[0]) else 0.0
        for name in ("best_exact_thresh", "best_f1_thresh"):
            rank = int(scores[name])
            scores[name] = float(margins[rank - 1]) if rank else below_all
        return {"exact_match": scores.pop("exact"), **scores}
