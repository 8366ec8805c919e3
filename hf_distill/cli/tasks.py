"""The tasks that the commands know, by name: the one place to add another."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

# Where the class with the functions of a task is; imported when the task is called for.
TASKS = {"question-answering": "hf_distill.cli.question_answering:QuestionAnsweringTask"}


class Scorer(Protocol):
    """A ``compute_metrics`` that keeps the predictions that it scored."""

    predictions: list[Any] | None

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Score the outputs of an evaluation."""

    def files(self) -> dict[str, Any]:
        """The last predictions as JSON can hold them, by file name."""


class Task(Protocol):
    """What the commands need to know about a task."""

    name: str
    auto_model: str
    """The ``AutoModelFor…`` class of its models."""
    quality_labels: Mapping[str, str]
    """The metrics that a comparison shows, with their labels; the first is the primary one."""
    agreement_labels: Mapping[str, str]

    def load_data(
        self, source: str, *, split: str | None = None, config_name: str | None = None
    ) -> Dataset:
        """Load and check data: one row an example, labels included."""

    def check_model(self, model: PreTrainedModel) -> None:
        """Check that the options fit a model.

        Raises:
            ValueError: names the option.
        """

    def features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        training: bool,
        num_proc: int | None,
    ) -> Dataset:
        """The inputs of the model."""

    def scorer(self, examples: Dataset, features: Dataset) -> Scorer:
        """What scores the outputs of a model for ``features``."""

    def agreement(self, predictions: Sequence[Any], teacher: Sequence[Any]) -> dict[str, float]:
        """How much predictions are like the teacher's, by measure, each 0 to 1."""

    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """The model in use, from examples to predictions; its speed is what is measured."""


def create_task(name: str, options: Any) -> Task:
    """The task with its options.

    Raises:
        ValueError: there is no such task; lists those that exist.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; the tasks are: {', '.join(TASKS)}.")
    module, _, attribute = TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), attribute)(options)
    return task
