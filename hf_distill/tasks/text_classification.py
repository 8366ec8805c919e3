"""Texts, or pairs of texts, with a label, several labels or a number each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_distill.console import log_rank_0
from hf_distill.tasks.base import Measures, Scorer, Task
from hf_distill.tasks.cells import are_decimals, prints_back, read_labels
from hf_distill.tasks.columns import (
    LABELS,
    checked_texts,
    describe,
    find_column,
    find_pair,
    is_list,
    is_text,
    kind_of,
)
from hf_distill.tasks.encoding import Encoded, encode_rows, input_length, truncations
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.forward import Rows, forward_predictor
from hf_distill.tasks.labels import (
    LabelMap,
    choose_labels,
    data_labels,
    label_options,
    model_labels,
    positive_label,
    same_names,
    teacher_labels,
    unnamed,
)
from hf_distill.tasks.metrics import classification_scores, multi_label_scores, regression_scores
from hf_distill.tasks.resampling import (
    resample_classification,
    resample_multi_label,
    resample_regression,
)
from hf_distill.tasks.tables import load_table
from hf_distill.tasks.unlabelled import encode_unlabelled, unlabelled_rows

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)


def classification_rows(
    table: Dataset,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Pick the columns of labelled texts.

    Args:
        table: any table.
        text_column: where the text is; guessed by default.
        text_pair_column: where the second text is, for pairs.
        label_column: where the label is, the list of labels, a vector with a 0 or 1 for each
            label, or the number to predict; guessed by default.
        class_names: the names of the labels, where the data has numbers or vectors.

    Returns:
        The same rows, with the columns ``text``, ``text_pair`` (for pairs), ``label`` and ``row``,
        the place in ``table``. Labels are as ``cells.read_labels`` makes them.

    Raises:
        TaskDataError: a column cannot be found or does not hold texts, all texts are empty, or
            the labels can be read in more than one way.
    """
    label = find_column(
        table, "label_column", label_column, LABELS, "the label", error=MissingLabelsError
    )
    first, second = find_pair(table, text_column, text_pair_column, taken=label)
    checked_texts(table, first, "text_column")
    names = {first: "text", label: "label"}
    if second is not None:
        checked_texts(table, second, "text_pair_column")
        names[second] = "text_pair"
    kept = table.select_columns(list(names)).rename_columns(
        {old: new for old, new in names.items() if old != new}
    )
    kept = read_labels(kept, "label", names=class_names, vectors=True)
    return kept.add_column("row", list(range(len(kept))))


def data_problem_type(rows: Dataset) -> str:
    """What kind of problem the labels are: lists several labels, decimals regression, else one.

    Args:
        rows: as from ``classification_rows``.

    Raises:
        TaskDataError: the column holds nothing that can be a label.
    """
    feature = rows.features["label"]
    kind = kind_of(feature)
    if kind == "other":
        raise TaskDataError(
            f"The label column holds {describe(feature)}; labels are names, numbers, or lists of "
            "them. Choose another one with label_column."
        )
    if is_list(feature):
        return MULTI
    if kind == "float":
        return REGRESSION
    if is_text(feature) and are_decimals(rows["label"]):
        cell = next((cell for cell in rows["label"] if not prints_back(cell)), None)
        if cell is None:
            return REGRESSION
        raise TaskDataError(
            f"The label column holds numbers such as {cell!r}, which may be names or numbers to "
            f"predict; say which with problem_type {SINGLE} or {REGRESSION}."
        )
    return SINGLE


def configured_problem_type(config: Any) -> str | None:
    """Return the kind of problem that a fine-tuned model solves; ``None`` if it does not say."""
    if config is None:
        return None
    return config.problem_type or (REGRESSION if config.num_labels == 1 else None)


def check_problem_type(problem_type: str, rows: Dataset) -> None:
    """Check that the labels are for such a problem.

    Args:
        problem_type: one of ``PROBLEM_TYPES``.
        rows: as from ``classification_rows``.

    Raises:
        TaskDataError: they are for another one.
    """
    feature = rows.features["label"]
    if problem_type == REGRESSION:
        number = not is_list(feature) and kind_of(feature) in ("float", "number")
        fits = number or (is_text(feature) and are_decimals(rows["label"]))
    elif problem_type == SINGLE and is_text(feature):
        fits = True
    else:
        fits = data_problem_type(rows) == problem_type
    if not fits:
        wanted = {SINGLE: "one label", MULTI: "a list of labels", REGRESSION: "a number"}
        raise TaskDataError(
            f"With problem_type {problem_type} each row needs {wanted[problem_type]}, but the "
            f"label column holds {describe(feature)}. Choose another label_column or "
            "problem_type, or a model for such labels."
        )


def model_problem_type(config: Any, rows: Dataset) -> str:
    """The problem that a model solves, by its configuration, or by the data where it says nothing.

    Raises:
        TaskDataError: the labels of the data are for another kind of problem.
    """
    problem_type = configured_problem_type(config)
    if problem_type is None:
        problem_type = MULTI if is_list(rows.features["label"]) else SINGLE
    check_problem_type(problem_type, rows)
    return str(problem_type)


def label_targets(rows: Dataset, config: Any) -> list[Any]:
    """The labels as a model's loss takes them.

    Args:
        rows: as from ``classification_rows``.
        config: the model's configuration; its label names say how labels are numbered.

    Returns:
        For each row the number of its label; for several labels 1.0 or 0.0 for each label; for
        regression the number.

    Raises:
        TaskDataError: a label is not the model's; names the row.
    """
    problem_type = model_problem_type(config, rows)
    if problem_type == REGRESSION:
        return [float(number) for number in rows["label"]]
    numbers = LabelMap(model_labels(config), rows, "label").all_numbers()
    if problem_type == SINGLE:
        return numbers
    return [[float(n in chosen) for n in range(config.num_labels)] for chosen in numbers]


def encode_classification(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Encoded:
    """Turn labelled texts into the inputs of a model.

    Args:
        rows: as from ``classification_rows``.
        tokenizer: a fast one.
        model: its label names say how labels are numbered.
        max_length: most tokens of an input, both texts of a pair together; what is longer is cut
            at the end, the longer text first. By default 256, or fewer if the model takes fewer.
        num_proc: processes that do it.

    Returns:
        One row a text: what the tokenizer gives, and ``labels``. Not padded.

    Raises:
        TaskDataError: a label is missing or not the model's.
        ValueError: the model takes fewer than ``max_length`` tokens.
    """
    pair = "text_pair" in rows.column_names
    length = input_length(max_length, tokenizer, model, pair=pair)
    rows = rows.add_column("labels", label_targets(rows, model.config))

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts: list[Sequence[str]] = [batch["text"]]
        if "text_pair" in batch:
            texts.append(batch["text_pair"])
        encoding = tokenizer(*texts, truncation=True, max_length=length)
        return {**encoding, "labels": batch["labels"], "truncated": truncations(encoding)}

    return encode_rows(rows, encode, num_proc, "Tokenising")


_SAME_LABEL = {"identical": "same label as the teacher"}
_MEASURES = {
    SINGLE: Measures(
        {"accuracy": "accuracy", "f1_macro": "F1, mean of the labels", "matthews": "Matthews"},
        _SAME_LABEL,
    ),
    MULTI: Measures(
        {"f1_micro": "F1, micro", "f1_macro": "F1, mean of the labels", "exact_match": "all right"},
        {"identical": "same labels as the teacher"},
    ),
    REGRESSION: Measures(
        {"pearson": "Pearson", "spearman": "Spearman", "mse": "mean squared error"},
        {"pearson": "correlation with the teacher"},
        frozenset({"mse"}),
    ),
}


class TextClassificationTask(Task):
    """Texts or pairs of texts in, a label, several labels or a number out."""

    name = "text-classification"
    auto_model = "AutoModelForSequenceClassification"
    timed = "text to label"

    def load_data(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load texts and labels."""
        table = load_table(source, split=split, config_name=config_name, revision=revision)
        return classification_rows(
            table,
            text_column=self.options.text_column,
            text_pair_column=self.options.text_pair_column,
            label_column=self.options.label_column,
            class_names=self.options.class_names,
        )

    def model_options(
        self, examples: Dataset, student: PreTrainedConfig | None, teacher: PreTrainedConfig | None
    ) -> dict[str, Any]:
        """The labels, and whether a text has one, several, or a number."""
        problem_type = (
            self.options.problem_type
            or configured_problem_type(teacher)
            or data_problem_type(examples)
        )
        check_problem_type(problem_type, examples)
        if problem_type == REGRESSION:
            named = "write them as text and " * (kind_of(examples.features["label"]) == "float")
            log_rank_0(
                "The labels are numbers to predict (regression). If they are names of classes, "
                f"{named}pass --problem_type {SINGLE}."
            )
            return {**label_options(unnamed(1)), "problem_type": problem_type}
        labels, why = choose_labels(data_labels(examples, "label"), student, teacher)
        if why is not None:
            log_rank_0(why)
        return {**label_options(labels), "problem_type": problem_type}

    def features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        training: bool,
        num_proc: int | None,
    ) -> Encoded:
        """One row a text."""
        length = self.options.max_length
        return encode_classification(
            examples, tokenizer, model, max_length=length, num_proc=num_proc
        )

    def load_unlabelled(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load texts."""
        table = load_table(source, split=split, config_name=config_name, revision=revision)
        return unlabelled_rows(
            table,
            text_column=self.options.text_column,
            text_pair_column=self.options.text_pair_column,
            label_column=self.options.label_column,
        )

    def unlabelled_features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        num_proc: int | None,
    ) -> Encoded:
        """One row a text."""
        length = self.options.max_length
        return encode_unlabelled(examples, tokenizer, model, max_length=length, num_proc=num_proc)

    def unlabelled_options(
        self, student: PreTrainedConfig | None, teacher: PreTrainedConfig | None
    ) -> dict[str, Any]:
        """The labels of the teacher, and its kind of problem."""
        problem_type = self.options.problem_type or configured_problem_type(teacher) or SINGLE
        return {**teacher_labels(student, teacher), "problem_type": problem_type}

    def label_counts(self, examples: Dataset, model: PreTrainedModel) -> dict[str, float]:
        """The counts of labels; of numbers to predict their range and mean."""
        if model_problem_type(model.config, examples) != REGRESSION:
            return dict(LabelMap(model_labels(model.config), examples, "label").counts())
        numbers = label_targets(examples, model.config)
        return {
            "lowest number to predict": min(numbers),
            "mean": fmean(numbers),
            "highest": max(numbers),
        }

    def data_collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> Callable[..., Any]:
        """Pads to the longest text of a batch."""
        return DataCollatorWithPadding(tokenizer)

    def scorer(
        self,
        examples: Dataset,
        features: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
    ) -> TextClassificationScorer:
        """Accuracy and F1; or Pearson and Spearman."""
        return TextClassificationScorer(examples, model.config)

    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """Texts in, labels out."""
        length = input_length(self.options.max_length, tokenizer, model)

        def tokenize(rows: Rows) -> Mapping[str, Any]:
            names = [name for name in ("text", "text_pair") if name in rows[0]]
            texts = [[row[name] for row in rows] for name in names]
            return tokenizer(*texts, truncation=True, max_length=length)

        return forward_predictor(model, tokenizer, batch_size, tokenize)


class TextClassificationScorer(Scorer):
    """Scores logits, and keeps the labels or numbers that they stand for.

    Args:
        examples: the texts with their labels.
        config: the model's; its label names are those of the predictions.
    """

    def __init__(self, examples: Dataset, config: Any) -> None:
        self.names = model_labels(config)
        self.problem_type = model_problem_type(config, examples)
        self.measures = _MEASURES[self.problem_type]
        self._positive: int | None = None
        if self.problem_type == SINGLE and len(self.names) == 2:
            positive = positive_label(self.names, examples, "label")
            self._positive = self.names.index(positive)
            quality = {
                "accuracy": "accuracy",
                "f1": f"F1 of {positive}",
                "matthews": "Matthews",
            }
            self.measures = Measures(quality, _SAME_LABEL)

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Leave out what some models return beside their logits."""
        return logits[0] if isinstance(logits, tuple) else logits

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Score the logits of an evaluation."""
        logits = np.asarray(eval_prediction.predictions, dtype=np.float64)
        gold = np.asarray(eval_prediction.label_ids)
        self.rows = len(logits)
        if self.problem_type == REGRESSION:
            numbers, gold = logits.reshape(len(logits)), gold.reshape(len(gold))
            self.predictions = numbers.tolist()
            self.resampler = resample_regression(numbers, gold)
            return regression_scores(numbers, gold)
        if self.problem_type == MULTI:
            chosen, gold = logits > 0, gold > 0.5
            self.predictions = [np.flatnonzero(row).tolist() for row in chosen]
            self.resampler = resample_multi_label(chosen, gold)
            return multi_label_scores(chosen, gold)
        self.predictions = logits.argmax(axis=-1).tolist()
        options: Any = {"labels": len(self.names), "positive": self._positive}
        self.resampler = resample_classification(self.predictions, gold, **options)
        most_frequent = int(np.bincount(gold).argmax())
        self.baseline = (
            f"always answering {self.names[most_frequent]!r}, the most frequent label",
            classification_scores(np.full_like(gold, most_frequent), gold, **options),
        )
        return classification_scores(self.predictions, gold, **options)

    def agreement(self, teacher: TextClassificationScorer) -> dict[str, float]:
        """The share of texts with the same label or labels; the correlation of numbers."""
        if self.problem_type == REGRESSION:
            scores = regression_scores(self.predictions or [], teacher.predictions or [])
            return {"pearson": scores["pearson"] / 100}
        named = same_names(self.names, teacher.names)
        pairs = zip(self._labels(named), teacher._labels(named), strict=True)
        return {"identical": float(np.mean([one == other for one, other in pairs]))}

    def files(self) -> dict[str, Any]:
        """``predictions.json``: for each text its label, labels or number, in the data's order."""
        if self.problem_type == REGRESSION:
            return {"predictions.json": self.predictions}
        predictions = self.predictions or []
        if self.problem_type == MULTI:
            return {"predictions.json": [[self.names[n] for n in row] for row in predictions]}
        return {"predictions.json": [self.names[number] for number in predictions]}

    def _labels(self, named: bool) -> list[Any]:
        """The predictions to compare: by name, or by number where the names say nothing."""
        folded = [name.casefold() if named else number for number, name in enumerate(self.names)]
        if self.problem_type == MULTI:
            return [{folded[n] for n in row} for row in self.predictions or []]
        return [folded[number] for number in self.predictions or []]
