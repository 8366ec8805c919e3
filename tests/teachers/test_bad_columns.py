"""Each kind of bad column is refused by row, value and the argument to change."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from refusals import row, rows_of
from tiny import bert_config, dataset_for, model_for
from transformers import BertForMultipleChoice, BertForSequenceClassification
from zoo import zoo_dataset, zoo_model

from hf_distill import load_teacher_column

NAMES = ("yes", "no", "both")
GOOD = {"yes": 0.5, "no": 0.3, "both": 0.2}
NAN, INF = float("nan"), float("inf")
TOKENS = ("token-classification", "bert")


class Bad(NamedTuple):
    """A column with one fault.

    Attributes:
        cell: what is in row 2; the other rows are ``others``.
        needs: what the message has to say, in order.
        others: a cell without a fault.
        options: of the call.
        model: of the student's configuration.
    """

    cell: Any
    needs: tuple[str, ...]
    others: Any = GOOD
    options: Mapping[str, Any] = MappingProxyType({})
    model: Mapping[str, Any] = MappingProxyType({})


LIST = [0.5, 0.3, 0.2]
TOP = [{"label": "yes", "score": 0.6}]
LOGS = {"teacher_column_kind": "log_probabilities"}
LOGITS = {"teacher_column_kind": "logits"}
ORDER = {"class_names": NAMES}
MULTI = {"problem_type": "multi_label_classification"}
NUMBER = {"id2label": {0: "LABEL_0"}}
SEVERAL = {"yes": 0.9, "no": 0.8, "both": 0.0}

COLUMNS = {
    # numbers
    "sums to less": Bad({"yes": 0.2, "no": 0.2, "both": 0.2}, ("Row 2", "0.6", "add up to 1")),
    "sums to more": Bad({"yes": 0.9, "no": 0.9, "both": 0.2}, ("Row 2", " 2,", "add up to 1")),
    "all zero": Bad({"yes": 0, "no": 0, "both": 0}, ("Row 2", "add up to 0", "1")),
    "NaN": Bad({**GOOD, "no": NAN}, ("Row 2", "NaN", "'no'")),
    "infinity": Bad({**GOOD, "no": INF}, ("Row 2", "inf", "'no'", "from 0 to 1")),
    "negative": Bad({**GOOD, "yes": -0.1}, ("Row 2", "-0.1", "'yes'", "teacher_column_kind")),
    "above 1": Bad({**GOOD, "yes": 1.3}, ("Row 2", "1.3", "'yes'", "from 0 to 1")),
    "percentages": Bad(
        {"yes": 50, "no": 30, "both": 20}, ("percentages", "divide", "100"),
        others={"yes": 60, "no": 30, "both": 10},
    ),
    "logs as probabilities": Bad(
        {"yes": -0.693147, "no": -1.203973, "both": -1.609438},
        ("teacher_column_kind='log_probabilities'",),
        others={"yes": -0.693147, "no": -1.203973, "both": -1.609438},
    ),
    "probabilities as logs": Bad(
        GOOD, ("0.5", "0 or less", "teacher_column_kind='probabilities'"), options=LOGS
    ),
    "logits as probabilities": Bad(
        {"yes": 3.5, "no": -2, "both": 1}, ("teacher_column_kind='logits'",),
        others={"yes": 3.5, "no": -2, "both": 1},
    ),
    "logs that do not sum": Bad(
        {"yes": -2.0, "no": -3.0, "both": -4.0}, ("Row 2", "add up to"), options=LOGS,
        others={"yes": 0.0, "no": -INF, "both": -INF},
    ),
    "impossible logs": Bad(
        {"yes": -INF, "no": -INF, "both": -INF}, ("Row 2", "add up to 0"), options=LOGS,
        others={"yes": 0.0, "no": -INF, "both": -INF},
    ),
    "infinite logit": Bad({**GOOD, "yes": INF}, ("Row 2", "inf", "'yes'"), options=LOGITS),
    "no possible logit": Bad(
        {"yes": -INF, "no": -INF, "both": -INF}, ("Row 2", "-inf"), options=LOGITS
    ),
    "huge logit": Bad({**GOOD, "no": 1e35}, ("Row 2", "1e+35", "'no'"), options=LOGITS),
    "integer of 401 digits": Bad(
        f'{{"yes": 1{"0" * 400}, "no": 0, "both": 0}}', ("Row 2", "inf", "'yes'"), json.dumps(GOOD)
    ),
    "integer of 5,001 digits": Bad(
        f'{{"yes": 0, "no": 1{"0" * 5000}, "both": 0}}', ("Row 2", "inf", "'no'"), json.dumps(GOOD)
    ),
    "text for a number": Bad('{"yes": "0.5", "no": 0.3, "both": 0.2}', ("Row 2", "'0.5'", "'yes'")),
    "true for a number": Bad('{"yes": true, "no": 0, "both": 0}', ("Row 2", "True", "'yes'")),
    "null in a list": Bad([0.5, None, 0.5], ("Row 2", "None", "'no'"), LIST, ORDER),
    "top sums to more": Bad(
        [{"label": "yes", "score": 0.8}, {"label": "no", "score": 0.8}],
        ("Row 2", "1.6", "add up to 1"), TOP,
    ),
    # labels
    "unknown label": Bad(
        '{"yes": 0.5, "nope": 0.3, "both": 0.2}', ("Row 2", "'nope'", "yes, no, both", "id2label")
    ),
    "unknown label in a list": Bad(
        [{"label": "si", "score": 1.0}], ("Row 2", "'si'", "yes, no, both"), TOP
    ),
    "missing label": Bad('{"yes": 0.7, "both": 0.3}', ("Row 2", "'no'", "yes, both")),
    "null for a label": Bad('{"yes": 0.7, "no": null, "both": 0.3}', ("Row 2", "'no'")),
    "label twice in JSON": Bad(
        '{"yes": 0.5, "no": 0.3, "no": 0.2}', ("Row 2", "'no'", "twice")
    ),
    "label twice but for case": Bad(
        '{"yes": 0.5, "no": 0.2, "NO": 0.1, "both": 0.2}', ("Row 2", "'no'", "twice")
    ),
    "label twice in a list": Bad(
        [{"label": "no", "score": 0.5}, {"label": "no", "score": 0.5}],
        ("Row 2", "'no'", "twice"), TOP,
    ),
    "number of no label": Bad(
        {"labels": [7], "scores": [1.0]}, ("Row 2", "7", "yes, no, both"),
        {"labels": [0], "scores": [1.0]}, ORDER,
    ),
    "label number without order": Bad(
        {"labels": [0], "scores": [1.0]}, ("Row 0", "0", "yes, no, both"),
        {"labels": [0], "scores": [1.0]},
    ),
    "number for a place, of labels that are numbers": Bad(
        {"labels": [0], "scores": [1.0]}, ("Row 2", "0", "1, 2, 3"),
        {"labels": [1], "scores": [1.0]}, {"class_names": ["1", "2", "3"]},
        {"id2label": {0: "1", 1: "2", 2: "3"}},
    ),
    "null as a label": Bad(
        [{"label": None, "score": 1.0}], ("Row 2", "None", "yes, no, none"), TOP,
        model={"id2label": {0: "yes", 1: "no", 2: "none"}},
    ),
    "null as a label of two lists": Bad(
        {"labels": ["yes", None], "scores": [0.6, 0.4]}, ("Row 2", "None", "yes, no, none"),
        {"labels": ["yes"], "scores": [0.6]}, model={"id2label": {0: "yes", 1: "no", 2: "none"}},
    ),
    "list as a label": Bad(
        '[{"label": ["yes"], "score": 1.0}]', ("Row 2", "['yes'] as a label"), json.dumps(TOP)
    ),
    "order unknown": Bad(LIST, ("Row 0", "class_names", "yes, no, both"), LIST),
    "order of other labels": Bad(
        LIST, ("class_names", "maybe", "yes, no, both"), LIST,
        {"class_names": ["yes", "no", "maybe"]},
    ),
    "order with a label twice": Bad(
        LIST, ("class_names", "yes, no, both"), LIST, {"class_names": ["yes", "no", "no"]}
    ),
    "order too short": Bad(LIST, ("class_names", "3 labels"), LIST, {"class_names": ["yes", "no"]}),
    # layouts
    "empty": Bad(None, ("Row 2", "empty")),
    "blank text": Bad("  ", ("Row 2", "empty"), json.dumps(GOOD)),
    "empty list": Bad([], ("Row 2", "empty"), LIST, ORDER),
    "empty object": Bad("{}", ("Row 2", "'yes'", "none")),
    "empty top": Bad(
        {"labels": [], "scores": []}, ("Row 2", "empty"), {"labels": ["no"], "scores": [1.0]}
    ),
    "too short": Bad([0.5, 0.5], ("Row 2", "2 numbers", "3 labels", "num_labels=2"), LIST, ORDER),
    "too long": Bad([0.25] * 4, ("Row 2", "4 numbers", "3 labels"), LIST, ORDER),
    "labels without scores": Bad(
        {"labels": ["yes", "no"], "scores": [1.0]}, ("Row 2", "2 labels", "[1.0]"),
        {"labels": ["yes"], "scores": [1.0]},
    ),
    "one number": Bad("0.7", ("Row 2", "0.7", "3 labels", "teacher_column"), json.dumps(GOOD)),
    "a label": Bad("yes", ("Row 2", "'yes'", "JSON", "label_column"), json.dumps(GOOD)),
    "broken JSON": Bad('{"yes": 0.5,', ("Row 2", "JSON", "teacher_column"), json.dumps(GOOD)),
    "nested too deep": Bad("[" * 100_000, ("Row 2", "[[[[", "JSON"), json.dumps(GOOD)),
    "text in JSON": Bad('"yes"', ("Row 2", "'yes'", "3 labels"), json.dumps(GOOD)),
    "several predictions": Bad(
        [LIST, LIST], ("Row 0", "0.5, 0.3, 0.2", "row", "teacher_column"), [LIST, LIST], ORDER
    ),
    "list of objects": Bad(
        [{"yes": 1.0}], ("Row 0", "{'yes': 1.0}", "teacher_column"), [{"yes": 1.0}]
    ),
    # several labels, numbers
    "rows that may have several": Bad(
        SEVERAL, ("1.7", "problem_type='multi_label_classification'"), SEVERAL
    ),
    "several, label left out": Bad(
        TOP, ("Row 0", "'no'", "top_k=None"), TOP, model=MULTI
    ),
    "several, above 1": Bad({**SEVERAL, "no": 1.2}, ("Row 2", "1.2", "'no'"), SEVERAL, model=MULTI),
    "logits, label left out": Bad(TOP, ("Row 0", "'no'", "teacher_column_kind"), TOP, LOGITS),
    "number is NaN": Bad(NAN, ("Row 2", "NaN"), 1.0, model=NUMBER),
    "number is infinite": Bad(INF, ("Row 2", "inf"), 1.0, model=NUMBER),
    "two numbers": Bad([1.0, 2.0], ("Row 2", "2 numbers", "num_labels"), [1.0], model=NUMBER),
    "number as text": Bad('"high"', ("Row 2", "'high'", "number"), "1.5", model=NUMBER),
    # arguments
    "unknown kind": Bad(
        GOOD, ("teacher_column_kind", "'odds'"), options={"teacher_column_kind": "odds"}
    ),
}  # fmt: skip


TITLE, TITLE_OF_WORDS = "Columns", "Columns with a list per row, of words"


def refusal(name: str) -> str:
    """Cause a fault, and return the message; without it nothing is wrong."""
    bad = COLUMNS[name]
    if "id2label" in bad.model:
        model = BertForSequenceClassification(bert_config(**bad.model))
    else:
        options = {"id2label": dict(enumerate(NAMES)), **bad.model}
        model = model_for("text-classification", seed=0, **options)
    data = dataset_for("text-classification", 4)
    cells = [bad.others, bad.others, bad.cell, bad.others]
    if isinstance(bad.cell, str):  # as in a CSV file
        cells = [cell if isinstance(cell, str) else json.dumps(cell) for cell in cells]
    with pytest.raises(ValueError, match=".*".join(map(re.escape, bad.needs))) as error:
        load_teacher_column(data.add_column("teacher", cells), "teacher", model, **bad.options)
    if "Row 2" in bad.needs:
        cells[2] = cells[0]
        load_teacher_column(data.add_column("teacher", cells), "teacher", model, **bad.options)
    return str(error.value)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_bad_column_is_refused_by_row_and_argument(name: str) -> None:
    assert row(name, refusal(name)) == rows_of(TITLE)[name], "run python tests/refusals.py"


def test_the_page_has_no_other_faults() -> None:
    assert [*rows_of(TITLE)] == [*COLUMNS]
    assert [*rows_of(TITLE_OF_WORDS)] == [*WORDS]


WORD = {"no": 0.5, "maybe": 0.3, "yes": 0.2}
WORDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "one prediction": (WORD, ("Row 1", "'no': 0.5", "list", "word")),
    "no prediction": (None, ("Row 1", "empty", "word")),
    "too few words": ([WORD], ("Row 1", "1 predictions", "2 tokens", "-100", "words")),
    "too many words": ([WORD] * 3, ("Row 1", "3 predictions", "2 tokens")),
    "a word without": ([WORD, None], ("Row 1, word 1", "empty")),
    "a sum": ([WORD, {**WORD, "no": 0.9}], ("Row 1, word 1", "1.4", "add up to 1")),
    "a label": ([{**WORD, "si": 0.0}, WORD], ("Row 1, word 0", "'si'", "no, maybe, yes")),
    "too deep": ([[WORD, WORD], WORD], ("Row 1, word 0", "each word")),
    "a number": ([0.5, WORD], ("Row 1, word 0", "0.5", "3 labels")),
}


def refusal_of_words(name: str) -> str:
    cell, needs = WORDS[name]
    inputs = {"input_ids": [[3, 7, 8]] * 3, "labels": [[-100, 0, 1]] * 3}
    cells = [json.dumps([WORD, WORD])] * 3
    model = zoo_model(*TOKENS, seed=0)
    load_teacher_column(Dataset.from_dict({**inputs, "teacher": cells}), "teacher", model)
    cells[1] = json.dumps(cell)
    with pytest.raises(ValueError, match=".*".join(map(re.escape, needs))) as error:
        load_teacher_column(Dataset.from_dict({**inputs, "teacher": cells}), "teacher", model)
    return str(error.value)


@pytest.mark.parametrize("name", WORDS)
def test_a_bad_list_of_words_is_refused_by_row_and_word(name: str) -> None:
    assert row(name, refusal_of_words(name)) == rows_of(TITLE_OF_WORDS)[name]


def test_tokens_without_labels_are_not_words() -> None:
    data = Dataset.from_dict({"input_ids": [[3, 7, 8, 9]], "teacher": [[WORD] * 2]})
    with pytest.raises(ValueError, match="2 predictions.*4 tokens.*no labels.*-100"):
        load_teacher_column(data, "teacher", zoo_model(*TOKENS, seed=0))


@pytest.mark.parametrize(
    ("cells", "needs"),
    [
        ([[0.5, 0.3, 0.2]] * 4, "2 choices.*'teacher'.*3 numbers"),
        ([[0.5, 0.5], [0.5, 0.3, 0.2]] * 2, "Row 1.*3 numbers.*2 labels"),
        (["0.5"] * 4, "Row 0.*0.5.*list.*choice"),
        ([[0.5, 0.4]] * 4, "Row 0.*0.9.*add up to 1"),
        ([{"labels": ["A"], "scores": [1.0]}] * 4, "Row 0.*'A'.*list.*choice"),
    ],
)
def test_bad_numbers_of_choices(cells: list[Any], needs: str) -> None:
    data = zoo_dataset("multiple-choice", 4).add_column("teacher", cells)
    with pytest.raises(ValueError, match=needs):
        load_teacher_column(data, "teacher", BertForMultipleChoice(bert_config()))


@pytest.mark.parametrize("task", ["question-answering", "fill-mask", "text-generation"])
def test_places_and_tokens_are_not_labels(task: str) -> None:
    model = zoo_model(task, "gpt2" if task == "text-generation" else "bert", seed=0)
    data = zoo_dataset(task, 2).add_column("teacher", [GOOD] * 2)
    with pytest.raises(ValueError, match=f"teacher_column='teacher'.*{task}.*hf-distill cache"):
        load_teacher_column(data, "teacher", model)


def a_student() -> Any:
    return model_for("text-classification", seed=0, id2label=dict(enumerate(NAMES)))


def test_other_data_is_refused() -> None:
    data = dataset_for("text-classification", 4).add_column("teacher", [GOOD] * 4)
    student = a_student()
    with pytest.raises(ValueError, match="IterableDataset.*teacher_column.*from_generator"):
        load_teacher_column(data.to_iterable_dataset(), "teacher", student)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="teacher_column='tescher'.*teacher"):
        load_teacher_column(data, "tescher", student)
    with pytest.raises(ValueError, match="no rows"):
        load_teacher_column(data.select([]), "teacher", student)
    taught = load_teacher_column(data, "teacher", student)
    with pytest.raises(ValueError, match="'teacher_logits' already"):
        load_teacher_column(taught.add_column("teacher", [GOOD] * 4), "teacher", student)
    student.config.id2label = {0: "yes", 2: "no"}
    with pytest.raises(ValueError, match="id2label"):
        load_teacher_column(data, "teacher", student)


def test_a_collator_that_joins_rows_is_refused() -> None:
    data = dataset_for("text-classification", 4).add_column("teacher", [GOOD] * 4)

    def joined(rows: list[Any]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[n for row in rows for n in row["input_ids"]]])}

    with pytest.raises(ValueError, match="1 inputs of 4 rows.*'teacher'"):
        load_teacher_column(data, "teacher", a_student(), data_collator=joined)
