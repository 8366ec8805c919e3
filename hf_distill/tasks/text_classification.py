"""Texts, or pairs of texts, with a label, several labels or a number each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
from hf_distill.tasks.labels import LabelMap, model_labels

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
