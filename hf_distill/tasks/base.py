"""Interface of a task: its data, features, metrics and model-card lines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import (
        EvalPrediction,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
    )

    from hf_distill.tasks.encoding import Encoded
    from hf_distill.tasks.resampling import Resampler


class Measures(NamedTuple):
    """The figures of a task, by name, with what they are called in tables."""

    quality: Mapping[str, str]
    """The metrics that a comparison shows; the first is the primary one."""
    agreement: Mapping[str, str]
    """How predictions are compared with the teacher's."""
    lower_is_better: frozenset[str] = frozenset()
    """Metrics that are errors."""


class Scorer(ABC):
    """A ``compute_metrics`` that keeps the predictions that it scored."""

    measures: Measures
    predictions: Any = None
    """One an example or token, once something was scored."""
    rows: int = 0
    """How many rows were scored."""
    resampler: Resampler | None = None
    """The metrics of resampled rows, once something was scored."""
    baseline: tuple[str, Mapping[str, float]] | None = None
    """What predicts the same for every row, and its metrics, where that says something."""

    @abstractmethod
    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Score the outputs of an evaluation."""

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """What to keep of the logits of a batch (``preprocess_logits_for_metrics``)."""
        return logits

    def finish(self, trainer: Trainer) -> dict[str, float]:
        """Further metrics that take the model itself, after an evaluation."""
        return {}

    @abstractmethod
    def agreement(self, teacher: Any) -> dict[str, float]:
        """How much the predictions are like those of the teacher's scorer, each 0 to 1."""

    def replicates(self) -> dict[str, Any]:
        """Return the metrics in resamples of the rows; empty if the task has no resampler."""
        from hf_distill.tasks.bootstrap import bootstrap

        if self.resampler is None or self.rows < 2:
            return {}
        return bootstrap(self.resampler, self.rows)

    def files(self) -> dict[str, Any]:
        """The last predictions as JSON can hold them, by file name."""
        return {}


class Task(ABC):
    """What the commands need to know about a task.

    Args:
        options: the options of all tasks, ``TaskArguments``.
    """

    name: str
    auto_model: str
    """The ``AutoModelFor…`` class of its models."""
    timed: str
    """What the latency is the time of."""
    reads_targets = False
    """Its models read what they are to write, so that there must be some."""
    limit = "--max_length"
    """The option that says how long inputs may be."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def load_data(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load and check data: one row an example, labels included."""

    def load_unlabelled(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load data whose labels do not count, and need not be there."""
        return self.load_data(source, split=split, config_name=config_name, revision=revision)

    def unlabelled_features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        num_proc: int | None,
    ) -> Encoded:
        """The inputs of the model, from ``load_unlabelled``."""
        return self.features(examples, tokenizer, model, training=True, num_proc=num_proc)

    def unlabelled_options(
        self, student: PreTrainedConfig | None, teacher: PreTrainedConfig | None
    ) -> dict[str, Any]:
        """What the configuration of a model has to say that learns from a teacher alone.

        Raises:
            ValueError: the teacher does not say it.
        """
        return {}

    def label_counts(self, examples: Dataset, model: PreTrainedModel) -> dict[str, float]:
        """How often there is each label, or other figures of what a model is to predict."""
        return {}

    def model_options(
        self, examples: Dataset, student: PreTrainedConfig | None, teacher: PreTrainedConfig | None
    ) -> dict[str, Any]:
        """What the configuration of the model to train has to say, such as its labels.

        Args:
            examples: all training data.
            student: the configuration of the model to train, as it is; ``None`` if it cannot be
                read.
            teacher: that of its teacher, if there is one that can be read.

        Raises:
            ValueError: the labels cannot be told.
        """
        return {}

    @abstractmethod
    def features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        training: bool,
        num_proc: int | None,
    ) -> Encoded:
        """The inputs of the model, and how many rows are cut off.

        Raises:
            ValueError: an option or the data does not fit the model.
        """

    def data_collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> Callable[..., Any] | None:
        """What makes batches of features; ``None`` for the trainer's own."""
        return None

    @abstractmethod
    def scorer(
        self,
        examples: Dataset,
        features: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
    ) -> Scorer:
        """What scores the outputs of a model for ``features``."""

    @abstractmethod
    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """The model in use, from examples to predictions; its speed is what is measured."""
