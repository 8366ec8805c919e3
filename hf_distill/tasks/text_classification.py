"""Text classification and regression: texts or pairs with a label, several labels or a number."""

from __future__ import annotations

from statistics import fmean
from typing import Any, Final

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction

from hf_distill.console import log_rank_0
from hf_distill.heads import SequenceClassificationHead
from hf_distill.tasks.base import (
    Batch,
    Config,
    Measures,
    Model,
    ScoredRow,
    Scorer,
    Task,
    Tokenizer,
    check_usable,
    pipeline_usage,
)
from hf_distill.tasks.cells import are_decimals, is_number, labels_of, prints_back, read_labels
from hf_distill.tasks.columns import (
    LABELS,
    checked_texts,
    describe,
    find_pair,
    is_list,
    is_text,
    kind_of,
    pick_columns,
)
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.label_choice import student_labels
from hf_distill.tasks.labels import (
    LabelMap,
    label_agreement,
    label_options,
    model_labels,
    positive_label,
    row_numbers,
    unnamed,
)
from hf_distill.tasks.metrics import classification_metric, multi_label_metric, regression_metric

SINGLE: Final = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"

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
    head = SequenceClassificationHead
    classes_column = "label"
    timed = "text to label"
    usage = pipeline_usage(name)

    def rows(self, table: Dataset, *, labelled: bool = True) -> Dataset:
        """Pick ``text``, ``text_pair`` (for pairs), ``label``, and ``row``, its place in the table.

        Labels are as ``read_labels`` makes them.
        """
        columns = self.columns(table, labelled=labelled)
        if not labelled:
            return pick_columns(table, columns)
        named = self.options.class_names
        labels = read_labels(table, columns["label"], names=named, vectors=True)
        rows = pick_columns(labels, columns)
        return rows.add_column("row", list(range(len(rows))))

    def columns(self, table: Dataset, *, labelled: bool) -> dict[str, str]:
        """Find the columns ``text``, ``text_pair`` (for pairs) and ``label``; check the texts."""
        options = self.options
        texts = (options.text_column, options.text_pair_column)
        if labelled:
            label = self.column(
                table, "label_column", LABELS, "the label", error=MissingLabelsError
            )
        else:
            usual = (n for n in LABELS if n in table.column_names and n not in texts)
            label = options.label_column or next(usual, "")
        first, second = find_pair(table, *texts, taken=label)
        columns = {"text": first, **({"label": label} if labelled else {})}
        checked_texts(table, first, "text_column")
        if second is not None:
            checked_texts(table, second, "text_pair_column")
            columns["text_pair"] = second
        return columns

    def model_options(
        self, student: Config | None, teacher: Config | None, examples: Dataset | None
    ) -> dict[str, Any]:
        """Return the labels, and whether a text has one, several, or a number."""
        problem_type = self.options.problem_type or configured_problem_type(teacher)
        if examples is not None:
            problem_type = problem_type or data_problem_type(examples)
            check_problem_type(problem_type, examples)
        if problem_type == REGRESSION and examples is not None:
            named = "write them as text and " * (kind_of(examples.features["label"]) == "float")
            log_rank_0(
                "The labels are numbers to predict (regression). If they are names of classes, "
                f"{named}pass --problem_type {SINGLE}."
            )
            return {**label_options(unnamed(1)), "problem_type": problem_type}
        labels = student_labels(student, teacher, examples, "label")
        return {**labels, "problem_type": problem_type or SINGLE}

    def label_counts(self, examples: Dataset, model: Model) -> dict[str, float]:
        """Count the labels; of numbers to predict return the range and mean."""
        if model_problem_type(model.config, examples) != REGRESSION:
            return dict(LabelMap(model_labels(model.config), examples, "label").counts())
        numbers = label_targets(examples, model.config)
        return {
            "lowest number to predict": min(numbers),
            "mean": fmean(numbers),
            "highest": max(numbers),
        }

    def labelled(self, examples: Dataset, config: Config) -> Dataset:
        """Add the column ``labels``; see ``label_targets``."""
        return examples.add_column("labels", label_targets(examples, config))

    def targets(self, batch: Batch, encoding: Any, tokenizer: Tokenizer) -> dict[str, list[Any]]:
        return {"labels": batch["labels"]}

    def scorer(
        self, examples: Dataset, features: Dataset, tokenizer: Tokenizer, model: Model
    ) -> TextClassificationScorer:
        return TextClassificationScorer(examples, model.config)


class TextClassificationScorer(Scorer):
    """Scores logits, and keeps the labels or numbers that they stand for.

    Args:
        examples: the texts with their labels.
        config: the model's; its label names are those of the predictions.
    """

    def __init__(self, examples: Dataset, config: Any) -> None:
        self.names = model_labels(config)
        self._examples = examples
        self._gold: Any = ()
        self.problem_type = model_problem_type(config, examples)
        self.measures = _MEASURES[self.problem_type]
        self.meanings = LabelMap(self.names, examples, "label").meanings()
        self._positive: int | None = None
        if self.problem_type == SINGLE and len(self.names) == 2:
            positive = positive_label(self.names, examples, "label")
            self._positive = self.names.index(positive)
            quality = {"accuracy": "accuracy", "f1": f"F1 of {positive}", "matthews": "Matthews"}
            self.measures = Measures(quality, _SAME_LABEL)

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Leave out what some models return in addition to their logits."""
        return logits[0] if isinstance(logits, tuple) else logits

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        logits = np.asarray(eval_prediction.predictions, dtype=np.float64)
        gold = np.asarray(eval_prediction.label_ids)
        impossible = np.isneginf(logits) if self.problem_type != REGRESSION else False
        check_usable(~(np.isfinite(logits) | impossible), "text")
        if self.problem_type == REGRESSION:
            numbers, gold = logits.reshape(len(logits)), gold.reshape(len(gold))
            self.predictions = numbers.tolist()
            self.metric = regression_metric(numbers, gold)
        elif self.problem_type == MULTI:
            chosen = logits > 0
            self.predictions = [np.flatnonzero(row).tolist() for row in chosen]
            self.metric = multi_label_metric(chosen, gold > 0.5)
            self._gold = [np.flatnonzero(row > 0.5).tolist() for row in gold]
        else:
            self.predictions = logits.argmax(axis=-1).tolist()
            self._gold = gold.tolist()
            options: Any = {"labels": len(self.names), "positive": self._positive}
            self.metric = classification_metric(self.predictions, gold, **options)
            most_frequent = int(np.bincount(gold).argmax())
            constant = classification_metric(np.full_like(gold, most_frequent), gold, **options)
            self.baseline = (
                f"always answering {self.names[most_frequent]!r}, the most frequent label",
                constant.scores(),
            )
        return self.metric.scores()

    def agreement(self, teacher: TextClassificationScorer) -> dict[str, float]:
        """Return the share of texts with the same label or labels; the correlation of numbers."""
        if self.problem_type == REGRESSION:
            scores = regression_metric(self.predictions or [], teacher.predictions or []).scores()
            return {"pearson": scores["pearson"] / 100}
        sides = [(scorer.meanings, scorer.predictions or []) for scorer in (self, teacher)]
        return {"identical": label_agreement(*sides)}

    def rows(self) -> list[ScoredRow]:
        """Return the texts with their label or labels; none of numbers."""
        if self.problem_type == REGRESSION:
            return []
        texts = [
            "\n".join(row[name] for name in ("text", "text_pair") if name in row)
            for row in self._examples
        ]
        return [
            ScoredRow(
                text,
                self._named(gold),
                self._named(predicted),
                gold == predicted,
                {self.meanings[number] for number in labels_of(predicted)},
            )
            for text, gold, predicted in zip(texts, self._gold, self.predictions or [], strict=True)
        ]

    def _named(self, labels: int | list[int]) -> str:
        return ", ".join(self.names[number] for number in labels_of(labels))

    def files(self) -> dict[str, Any]:
        """Return ``predictions.json``: each text's label, labels or number, in the data's order."""
        predictions = self.predictions or []
        if self.problem_type == MULTI:
            predictions = [[self.names[n] for n in row] for row in predictions]
        elif self.problem_type == SINGLE:
            predictions = [self.names[number] for number in predictions]
        return {"predictions.json": predictions}


def data_problem_type(rows: Dataset) -> str:
    """Infer the kind of problem: lists are several labels, decimals regression, else one label.

    Raises:
        TaskDataError: the column ``label`` holds nothing that can be a label.
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
            f"predict; choose with problem_type {SINGLE} or {REGRESSION}."
        )
    if is_text(feature) and any(is_number(cell) and "." in cell for cell in rows["label"]):
        found = _no_number(rows)
        if found is not None:
            raise TaskDataError(
                f"{found}. If the numbers are to be predicted (problem_type {REGRESSION}), "
                "correct the cell or remove its row; if all are names, set problem_type "
                f"{SINGLE}."
            )
    return SINGLE


def configured_problem_type(config: Any) -> str | None:
    """Return the kind of problem that a fine-tuned model solves; ``None`` if it is not known."""
    if config is None:
        return None
    return config.problem_type or (REGRESSION if config.num_labels == 1 else None)


def check_problem_type(problem_type: str, rows: Dataset) -> None:
    """Check that the labels are for such a problem.

    Raises:
        TaskDataError: they are for another one.
    """
    feature = rows.features["label"]
    if problem_type == REGRESSION:
        found = _no_number(rows)
        if found is not None:
            raise TaskDataError(
                f"{found} to predict. Correct the cell (numbers are written like 1500.5), or "
                "remove its row."
            )
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


def _no_number(rows: Dataset) -> str | None:
    """Describe the first label that is a text among numbers; ``None`` if there is none."""
    if not is_text(rows.features["label"]):
        return None
    cells = zip(row_numbers(rows), rows["label"], strict=True)
    others = [(row, cell) for row, cell in cells if not is_number(cell)]
    if not 0 < len(others) <= len(rows) / 2:
        return None
    row, cell = others[0]
    return (
        f"Row {row} has {cell!r} in the label column, and "
        f"{len(rows) - len(others)} of {len(rows)} rows have a number"
    )


def model_problem_type(config: Any, rows: Dataset) -> str:
    """Return the problem that a model solves, by its configuration, else by the data.

    Raises:
        TaskDataError: the labels of the data are for another kind of problem.
    """
    problem_type = configured_problem_type(config)
    if problem_type is None:
        problem_type = MULTI if is_list(rows.features["label"]) else SINGLE
    check_problem_type(problem_type, rows)
    return str(problem_type)


def label_targets(rows: Dataset, config: Any) -> list[Any]:
    """Return the labels as a model's loss takes them.

    Returns:
        For each row the number of its label, by the model's label names; for several labels 1.0 or
        0.0 for each label; for regression the number.

    Raises:
        TaskDataError: a label is not the model's, or a number too large for it; names the row.
    """
    problem_type = model_problem_type(config, rows)
    if problem_type == REGRESSION:
        targets = [float(number) for number in rows["label"]]
        for row, number in zip(row_numbers(rows), targets, strict=True):
            if abs(number) > float(np.finfo(np.float32).max):
                raise TaskDataError(
                    f"Row {row} has {number:g} in the label column, and models compute with "
                    "numbers up to 3e38. Correct the cell, or write all labels in a larger unit."
                )
        return targets
    numbers = LabelMap(model_labels(config), rows, "label").all_numbers()
    if problem_type == SINGLE:
        return numbers
    return [[float(n in chosen) for n in range(config.num_labels)] for chosen in numbers]
