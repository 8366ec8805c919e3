"""Interface of a task: its head, data, features, metrics and model-card lines."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, concatenate_datasets
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from hf_distill.alignment import TeacherReader
from hf_distill.compatibility import input_limit
from hf_distill.heads import TaskHead
from hf_distill.loading import fewest_tokens
from hf_distill.tasks.bootstrap import bootstrap
from hf_distill.tasks.cells import checked_names
from hf_distill.tasks.columns import find_column, teacher_cells
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.labels import check_numbering
from hf_distill.tasks.options import TaskArguments
from hf_distill.tasks.tables import load_table

if TYPE_CHECKING:
    from hf_distill.tasks.metrics import Metric

Batch = Mapping[str, Any]
"""Columns of some rows, by name."""
Rows = Sequence[Mapping[str, Any]]
Config = PreTrainedConfig
Model = PreTrainedModel
Tokenizer = PreTrainedTokenizerBase


def pipeline_usage(task: str, text: str = "A text.") -> str:
    """Return the usage example of a task that transformers has a pipeline for."""
    call = f'pipeline("{task}", model="{{name}}")("{text}")'
    return f"from transformers import pipeline\n\nprint({call})"


class Encoded(NamedTuple):
    """Inputs of a model."""

    features: Dataset
    truncated: int
    """How many rows were longer than allowed and were cut off."""


class Measures(NamedTuple):
    """Names of a task's figures, and how tables label them."""

    quality: Mapping[str, str]
    """The metrics that a comparison shows; the first is the primary one."""
    agreement: Mapping[str, str]
    """How predictions are compared with the teacher's."""
    lower_is_better: frozenset[str] = frozenset()
    """Metrics that are errors."""


class ScoredRow(NamedTuple):
    """One row of the data and what a model made of it, as texts for people."""

    text: str
    gold: str
    predicted: str
    right: bool
    meaning: Any = None
    """The prediction as other models on this data would write it, where that may differ."""


def check_usable(unusable: npt.NDArray[np.bool_], unit: str) -> None:
    """Check that a model has given numbers, which alone can be scored.

    Args:
        unusable: ``(rows, ...)``, where it has not.
        unit: what a row is.

    Raises:
        ValueError: names the first row without, and how many there are.
    """
    rows = np.flatnonzero(unusable.reshape(len(unusable), -1).any(axis=1))
    if len(rows):
        raise ValueError(
            f"The model's outputs for {len(rows)} of {len(unusable)} {unit}s, first for {unit} "
            f"{rows[0]} (from 0), are NaN or infinite, so that nothing can be scored: its weights "
            "are damaged, its training diverged (choose a smaller learning_rate), or its number "
            "format overflows (try float32 or bfloat16 instead of float16)."
        )


class Scorer(ABC):
    """A ``compute_metrics`` that keeps the predictions that it scored."""

    measures: Measures
    predictions: Any = None
    """One per example or token, once something was scored."""
    metric: Metric | None = None
    """What the predictions score, once something was scored."""
    baseline: tuple[str, Mapping[str, float]] | None = None
    """A constant prediction and its metrics, where that is informative."""

    @abstractmethod
    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Score the outputs of an evaluation."""

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Keep what scoring needs of a batch's logits (``preprocess_logits_for_metrics``)."""
        return logits

    def finish(self, trainer: Trainer) -> dict[str, float]:
        """Compute the metrics that need the model itself, after an evaluation."""
        return {}

    @abstractmethod
    def agreement(self, teacher: Any) -> dict[str, float]:
        """Compare the predictions with those of the teacher's scorer; each figure is 0 to 1."""

    def replicates(self) -> dict[str, Any]:
        """Return the metrics in resamples of the rows; empty if these are fewer than two."""
        return bootstrap(self.metric) if self.metric is not None and self.metric.rows > 1 else {}

    def rows(self) -> list[ScoredRow]:
        """Return the rows that were scored; empty where a prediction is not right or wrong."""
        return []

    def confidences(self) -> tuple[list[float], list[bool]] | None:
        """Return the probability of each prediction and whether it is right.

        ``None`` where both can be read from the logits and the labels of a batch.
        """
        return None

    def files(self) -> dict[str, Any]:
        """Return the last predictions as JSON content, by file name."""
        return {}


class Task(ABC):
    """Everything that is particular to one task; see ``hf_distill.tasks.TASKS``.

    Most tasks only define ``rows``, ``texts``, ``labelled``, ``targets`` and ``scorer``; those
    whose features are not one tokenised text per row override ``encoder``.

    Args:
        options: the options of all tasks.

    Attributes:
        name: as the Hub calls it.
        head: the logits that are compared.
        classes_column: the column of its rows that holds the labels of classifiers.
        timed: what the latency in a comparison is the time of.
        reads_targets: whether its models read the text that they are to write.
        keep_line_breaks: whether the line breaks of text files belong to the texts.
        limit: the options that limit the length of inputs (the first one) and targets.
        default_length: its value where it is not given, or less if the model takes less.
        usage: example for the model card; ``{name}`` and ``{architecture}`` are filled in.
    """

    name: ClassVar[str]
    head: ClassVar[type[TaskHead]]
    classes_column: ClassVar[str | None] = None
    timed: ClassVar[str]
    reads_targets: ClassVar[bool] = False
    keep_line_breaks: ClassVar[bool] = False
    limit: ClassVar[str] = "--max_length"
    default_length: ClassVar[int] = 256
    usage: ClassVar[str] = (
        "from transformers import {architecture}\n\n"
        'model = {architecture}.from_pretrained("{name}")'
    )

    def __init__(self, options: TaskArguments) -> None:
        if options.class_names is not None:
            options = replace(options, class_names=checked_names(options.class_names))
        self.options = options

    # ---- data ----------------------------------------------------------------------------------

    def load_data(
        self,
        source: str,
        *,
        labelled: bool = True,
        teacher_column: str | None = None,
        **places: str | None,
    ) -> Dataset:
        """Load and check data, one row per example; see ``load_table`` for the arguments.

        Labels are read only if ``labelled``; otherwise they need not be there. The predictions in
        ``teacher_column``, if there is one, are kept as ``TEACHER_CELL``.

        Raises:
            MissingLabelsError: labels are wanted, and some are missing.
            TaskDataError: it is not data of the task.
        """
        table = load_table(source, keep_line_breaks=self.keep_line_breaks, **places)
        if teacher_column is None:
            return self.rows(table, labelled=labelled)
        cells = teacher_cells(table, teacher_column)
        rows = self.rows(table.remove_columns(teacher_column), labelled=labelled)
        return concatenate_datasets([rows, cells], axis=1)

    def rows(self, table: Dataset, *, labelled: bool = True) -> Dataset:
        """Pick and check the columns of a table that the task reads."""
        raise NotImplementedError

    def column(
        self, table: Dataset, option: str, usual: Sequence[str], what: str, **more: Any
    ) -> str:
        """Find a column by an option or its usual names; see ``find_column``."""
        return find_column(table, option, getattr(self.options, option), usual, what, **more)

    def label_counts(self, examples: Dataset, model: Model) -> dict[str, float]:
        """Count each label, or describe what a model is to predict by other figures."""
        return {}

    def model_options(
        self, student: Config | None, teacher: Config | None, examples: Dataset | None
    ) -> dict[str, Any]:
        """Return what the configuration of the model to train needs, such as its labels.

        Args:
            student: the configuration of the model to train; ``None`` if it cannot be read.
            teacher: the configuration of its teacher, if there is one.
            examples: all training data; ``None`` if it has no labels.

        Raises:
            ValueError: the labels cannot be determined.
        """
        return {}

    def check_numbering(self, examples: Dataset, models: Mapping[str, Config]) -> None:
        """Check that the labels of data are the same ones to all models, by what to call them.

        Raises:
            TaskDataError: the labels are numbers that two models take for different names.
        """
        if self.classes_column is not None:
            check_numbering(examples, self.classes_column, models)

    # ---- features ------------------------------------------------------------------------------

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
        """Turn rows into the inputs of a model, not padded; count the rows that are cut off.

        With a ``teacher`` whose tokenizer is another one its inputs come next to them, and what
        says which tokens belong together.

        Raises:
            ValueError: an option or the data does not fit the model.
        """
        self.prepare(tokenizer)
        if labelled:
            examples = self.labelled(examples, model.config)
        features = examples.map(
            self.encoder(
                examples, tokenizer, model, training=training, labelled=labelled, teacher=teacher
            ),
            batched=True,
            with_indices=True,
            remove_columns=examples.column_names,
            num_proc=num_proc,
            desc="Tokenising",
        )
        if len(features) == 0:
            raise TaskDataError(
                "The data is too short: there is not one token of text to predict; add text, or "
                "choose another text_column."
            )
        return Encoded(features.remove_columns("truncated"), sum(features["truncated"]))

    def prepare(self, tokenizer: Tokenizer) -> None:  # noqa: B027
        """Set what the task needs on a tokenizer, before it is used."""

    def encoder(
        self,
        examples: Dataset,
        tokenizer: Tokenizer,
        model: Model,
        *,
        training: bool,
        labelled: bool,
        teacher: TeacherReader | None = None,
    ) -> Callable[[Batch, list[int]], dict[str, list[Any]]]:
        """Return what encodes rows, given with their numbers; ``truncated`` tells which are cut."""
        length = self.length(tokenizer, model, pair="text_pair" in examples.column_names)

        def encode(batch: Batch, numbers: list[int]) -> dict[str, list[Any]]:
            encoding = tokenizer(*self.texts(batch), truncation=True, max_length=length)
            cut = [bool(one.overflowing) for one in encoding.encodings]
            columns = {**encoding, "truncated": cut}
            if teacher is not None:
                columns |= self.teacher_columns(batch, encoding, teacher, length)
            return columns | self.targets(batch, encoding, tokenizer) if labelled else columns

        return encode

    def teacher_columns(
        self, batch: Batch, encoding: Any, teacher: TeacherReader, length: int
    ) -> dict[str, list[Any]]:
        """Return encoded rows as another tokenizer's teacher reads them, as further columns.

        Args:
            batch: the rows.
            encoding: what the student's tokenizer made of them.
            teacher: the teacher's tokenizer.
            length: most tokens of an input; the teacher may take fewer.
        """
        return teacher.encode(self.texts(batch), length)[0]

    def length(self, tokenizer: Tokenizer, model: Model, *, pair: bool = False) -> int:
        """Return the most tokens of an input, which is two texts if ``pair``.

        Raises:
            ValueError: the model takes fewer than wanted, or special tokens leave no room for text.
        """
        option = self.limit.partition(",")[0]
        wanted: int | None = getattr(self.options, option.removeprefix("--"))
        most = fewest_tokens(input_limit(model), tokenizer.model_max_length)
        if wanted is None:
            return self.default_length if most is None else min(self.default_length, most)
        special = tokenizer.num_special_tokens_to_add(pair=pair)
        least = max(2, special + 1 + pair)
        if wanted < least or (most is not None and wanted > most):
            upper = "" if most is None else f" and at most the {most} tokens that the model takes"
            raise ValueError(
                f"{option} {wanted} must be at least {least} ({special} of them are special "
                f"tokens){upper}."
            )
        return wanted

    def texts(self, batch: Batch) -> list[list[str]]:
        """Return the texts of rows as a tokenizer takes them, in one list or two for pairs."""
        return [list(batch[name]) for name in ("text", "text_pair") if name in batch]

    def labelled(self, examples: Dataset, config: Config) -> Dataset:
        """Replace the labels of rows by the numbers that a model gives them."""
        return examples

    def targets(self, batch: Batch, encoding: Any, tokenizer: Tokenizer) -> dict[str, list[Any]]:
        """Return the labels of encoded rows, as further columns of the features."""
        return {}

    def data_collator(self, tokenizer: Tokenizer, model: Model) -> Callable[..., Any]:
        """Return what makes batches of features; by default they are padded to the longest."""
        return DataCollatorWithPadding(tokenizer)

    # ---- evaluation ----------------------------------------------------------------------------

    @abstractmethod
    def scorer(
        self, examples: Dataset, features: Dataset, tokenizer: Tokenizer, model: Model
    ) -> Scorer:
        """Return what scores a model's outputs for ``features``."""

    def predictor(
        self, model: Model, tokenizer: Tokenizer, batch_size: int
    ) -> Callable[[Rows], object]:
        """Return a function from examples to predictions without ``Trainer``, to measure its speed.

        By default it finds the most likely class of each text, or of each token.

        Args:
            model: on its device, in evaluation mode.
            tokenizer: the model's tokenizer.
            batch_size: examples at a time.
        """
        accepted = inspect.signature(model.forward).parameters
        length = self.length(tokenizer, model)

        def predict(examples: Rows) -> list[torch.Tensor]:
            found = []
            for begin in range(0, len(examples), batch_size):
                rows = examples[begin : begin + batch_size]
                columns = {name: [row[name] for row in rows] for name in rows[0]}
                encoding = tokenizer(*self.texts(columns), truncation=True, max_length=length)
                inputs = {name: encoding[name] for name in encoding if name in accepted}
                batch = tokenizer.pad(inputs, return_tensors="pt").to(model.device)
                with torch.inference_mode():
                    # .cpu(): an accelerator has not finished computing when forward returns.
                    found.append(model(**batch).logits.argmax(dim=-1).cpu())
            return found

        return predict
