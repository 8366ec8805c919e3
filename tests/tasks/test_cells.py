"""Cells stay what they are: every text through every kind of file, and what labels become."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from any_task import classification_rows, tagged_rows
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.tasks.cells import read_labels
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.labels import data_labels, label_values
from hf_distill.tasks.tables import load_table
from hf_distill.tasks.text_classification import (
    data_problem_type,
    label_targets,
)

CODES = ["01", "007", "1e3", "12:30", "1.10", "NA", "null", "true", "2024-01-01", "-0", "+1",
         "12345678901234567890", " x", "", "None", "1_000", "0x1F", "\u0661"]  # fmt: skip
CELLS = st.one_of(st.sampled_from(CODES), st.text(st.characters(exclude_categories=["Cs"])))


def column(values: list[Any]) -> Dataset:
    return Dataset.from_dict({"label": values})


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    """Write a table without the package."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
        elif path.suffix == ".tsv":
            file.writelines("\t".join(row) + "\n" for row in [("text", "label"), *rows])
        elif path.suffix == ".jsonl":
            file.writelines(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows)
    if path.suffix == ".parquet":
        texts, labels = zip(*rows, strict=True)
        Dataset.from_dict({"text": texts, "label": labels}).to_parquet(path)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_any_cells_are_read_as_they_are(ending: str, rows: list[tuple[str, str]]) -> None:
    if ending == ".tsv":
        rows = [tuple("".join(c for c in cell if c not in "\t\r\n") for cell in r) for r in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"d{ending}"
        write_rows(path, rows)
        table = load_table(path)
        assert list(zip(table["text"], table["label"], strict=True)) == rows
        assert table.features == {"text": Value("string"), "label": Value("string")}


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["01", "02"], ["01", "02"]),
        (["007", "7"], ["007", "7"]),
        (["1e3", "2e3"], ["1e3", "2e3"]),
        (["12:30", "2024-01-01"], ["12:30", "2024-01-01"]),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["1", "0", "10"], [1, 0, 10]),
        (["1.0", "0.0", "2"], [1, 0, 2]),
        (["a", "NaN"], ["a", "NaN"]),
        (["0.5", "1.0", "2"], ["0.5", "1.0", "2"]),
        (["1.10", "1.2"], ["1.10", "1.2"]),
        ([" pos", "neg ", "\tpos"], ["pos", "neg", "pos"]),
        ([1.0, 0.0, 2.0], [1, 0, 2]),
        ([1.0, 0.5], [1.0, 0.5]),
        ([True, False], [True, False]),
        ([[" a", "b"], []], [["a", "b"], []]),
        ([["01"], ["1", "2"]], [["01"], ["1", "2"]]),
        ([[0], [2, 1]], [[0], [2, 1]]),
        ([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], [[0, 2], [], [1, 2, 3]]),
        ([[1.0, 0.0], [1.0, 1.0]], [[0], [0, 1]]),
        ([[True, False], [False, True]], [[0], [1]]),
    ],
)
def test_what_label_cells_are(cells: list[Any], labels: list[Any]) -> None:
    read = list(read_labels(column(cells), "label", vectors=True)["label"])
    assert read == labels
    assert [type(one) for one in read] == [type(one) for one in labels]


@pytest.mark.parametrize(
    ("cells", "options", "fragments"),
    [
        (["pos", "Pos"], {}, ("'Pos'", "'pos'", "differ only in case")),
        (["new york", "new  york"], {}, ("'new  york'", "'new york'")),
        (["a", "a\u200b"], {}, ("invisible",)),
        (["[1, 0]", "[0, 1]"], {}, ("lists written as text", "'[0, 1]'", ".jsonl")),
        ([[0, 1], [1, 0]], {}, ("two ways", "[0, 1]", "names instead of numbers")),
        ([[0], [1]], {}, ("two ways",)),
        ([[0, 1, 1], [1, 0]], {}, ("[0, 1, 1]", "twice")),
        ([[3, 3], [1, 0]], {}, ("[3, 3]", "twice")),
        ([[True], [True, False]], {}, ("different lengths (1 to 2)",)),
        ([[0.5, 1.0]], {}, ("lists of numbers with decimals",)),
        ([[1, 1, 0]], {"names": ["a"]}, ("--class_names has 1 names", "have 3 numbers")),
        ([0, 2], {"names": ["a", "b"]}, ("the label 2", "for 0 to 1")),
        (["PER", "per"], {"vectors": False}, ("'PER'", "'per'")),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    cells: list[Any], options: dict[str, Any], fragments: tuple[str, ...]
) -> None:
    with pytest.raises(TaskDataError) as caught:
        read_labels(column(cells), "label", **{"vectors": True, **options})
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "rows"),
    [
        (["pos", "", "neg", " "], "2 rows (1, 3) have"),
        (["1", "NaN", "0"], "Row 1 has"),
        (["1.0", "0.0", "null", ""], "2 rows (2, 3) have"),
        (["0.50", "NaN"], "Row 1 has"),
        ([1.0, None, 0.0, float("nan")], "2 rows (1, 3) have"),
        ([1.5, float("nan")], "Row 1 has"),
        ([["a"], None, ["b", " "]], "2 rows (1, 2) have"),
        ([None] * 9, "9 rows (0, 1, 2, 3, 4, …) have"),
    ],
)
def test_all_rows_without_a_label_are_named(cells: list[Any], rows: str) -> None:
    with pytest.raises(
        MissingLabelsError, match=re.escape(f"{rows} nothing in the column 'label'")
    ):
        read_labels(column(cells), "label", vectors=True)


def test_no_label_in_the_test_splits_of_the_hub() -> None:
    table = Dataset.from_dict(
        {"label": [0, -1]}, features=Features({"label": ClassLabel(names=["a", "b"])})
    )
    with pytest.raises(MissingLabelsError, match="Row 1 has"):
        read_labels(table, "label")


@pytest.mark.parametrize("cells", [[-1, -1], ["-1", "-1.0"], [-1.0, -1.0], [[-1], [-1]]])
def test_minus_1_stands_for_no_label_if_a_column_has_nothing_else(cells: list[Any]) -> None:
    for names in (None, ["a", "b"]):
        with pytest.raises(MissingLabelsError, match=re.escape("2 rows (0, 1) have the label -1")):
            read_labels(column(cells), "label", names=names)


@pytest.mark.parametrize("cells", [[-1, 0, 1], [-1.0, 0.5], ["-1", "0"], [-1, 1], [-1.5, -1.5]])
def test_minus_1_is_a_label_or_number_among_others(cells: list[Any]) -> None:
    assert list(map(float, read_labels(column(cells), "label")["label"])) == list(map(float, cells))


def test_minus_1_among_several_class_labels() -> None:
    features = Features({"label": List(ClassLabel(names=["a", "b"]))})
    table = Dataset.from_dict({"label": [[0, 1], [-1]]}, features=features)
    with pytest.raises(MissingLabelsError, match="Row 1 has the label -1"):
        read_labels(table, "label")


def test_names_by_option() -> None:
    names = ["a", "b", "c"]
    for cells, labels in (([0, 2], [0, 2]), (["0", "2"], [0, 2]), ([[1, 1, 0]], [[0, 1]])):
        table = read_labels(column(cells), "label", names=names, vectors=True)
        assert list(table["label"]) == labels
        feature = table.features["label"]
        assert getattr(feature, "feature", feature) == ClassLabel(names=names)


@pytest.mark.parametrize("names", [["b", "c", "a"], ["A ", " b", "c"]])
@pytest.mark.parametrize(
    "labels",
    [
        column(["a", "b", "a"]),
        column([["a", "b"], [], ["a"]]),
        Dataset.from_dict({"label": [1, 0, 1]}, Features({"label": ClassLabel(names=["b", "a"])})),
    ],
)
def test_names_by_option_give_the_order_of_text_labels(names: list[str], labels: Dataset) -> None:
    rows = classification_rows(labels.add_column("text", ["x", "y", "z"]), class_names=names)
    assert data_labels(rows, "label").names == tuple(name.strip() for name in names)
    found = [["a", "b"], [], ["a"]] if isinstance(labels["label"][0], list) else ["a", "b", "a"]
    assert json.dumps(list(label_values(rows, "label"))).lower() == json.dumps(found)


def test_names_by_option_of_tags() -> None:
    table = Dataset.from_dict({"tokens": [["x", "y"]], "tags": [[2, 0]]})
    rows = tagged_rows(table, class_names=["O", "B-PER", "I-PER"])
    assert list(label_values(rows, "tags")) == [["I-PER", "O"]]


@pytest.mark.parametrize(
    ("cells", "names", "message"),
    [
        (["pos", "neg"], ["x", "y"], "label 'pos' in row 0.*not in --class_names x y"),
        (["pos", "neg"], ["pos", "ne"], "label 'neg' in row 1"),
        ([["pos"], ["pos", "neg"]], ["pos", "x"], "label 'neg' in row 1"),
        ([[0], [0, 2, 1]], ["a", "b"], "label 2 in row 1.*for 0 to 1"),
        ([True, False], ["no", "yes"], "label 'True' in row 0"),
        ([0.5, 1.5], ["a", "b"], "decimals.*leave out --class_names"),
        (["a", "b"], ["a"], "'a' must be the names of at least two"),
        ([0, 1], ["a", " "], "at least two"),
        ([0, 1], ["a", "a"], "has 'a' and 'a'.*give each label once"),
        ([0, 1], ["b", "a", "A "], "has 'a' and 'A'"),
    ],
)
def test_names_by_option_that_do_not_fit(cells: list[Any], names: list[str], message: str) -> None:
    table = column(cells).add_column("text", list("xy"))
    with pytest.raises(ValueError, match=message):
        classification_rows(table, class_names=names)


def test_lists_of_tags_are_never_vectors() -> None:
    tags = [[1, 0, 1], [0, 0, 1]]
    table = read_labels(column(tags), "label")
    assert table["label"][:] == tags and table.features["label"] == List(Value("int64"))


def test_other_columns_keep_their_place_and_cells() -> None:
    table = Dataset.from_dict({"a": ["1"], "label": [" x"], "b": ["01"]})
    read = read_labels(table, "label")
    assert read.column_names == ["a", "label", "b"]
    assert read[0] == {"a": "1", "label": "x", "b": "01"}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["0.0", "1.0"], "single_label_classification"),
        ([0.0, 1.0, 2.0], "single_label_classification"),
        (["0.5", "1.0"], "regression"),
        ([0.5, 1.0], "regression"),
        ([[1, 0, 1]], "multi_label_classification"),
    ],
)
def test_problem_of_the_data(cells: list[Any], kind: str) -> None:
    rows = classification_rows(Dataset.from_dict({"text": ["x"] * len(cells), "label": cells}))
    assert data_problem_type(rows) == kind


def test_decimals_as_text_may_be_names(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\na,1.1\nb,2.1\nc,1.1\n")
    rows = classification_rows(load_table(path))
    assert data_problem_type(rows) == "regression"
    names = {0: "2.1", 1: "1.1"}
    for kind, expected in (
        ("regression", [1.1, 2.1, 1.1]),
        ("single_label_classification", [1, 0, 1]),
    ):
        config = SimpleNamespace(problem_type=kind, num_labels=2, id2label=names)
        assert label_targets(rows, config) == expected


def test_vectors_for_more_or_fewer_labels_than_the_model_has() -> None:
    def targets(cells: list[list[int]], names: list[str] | None = None) -> list[Any]:
        table = Dataset.from_dict({"text": ["x", "y"], "labels": cells})
        config = SimpleNamespace(
            problem_type="multi_label_classification",
            num_labels=4,
            id2label=dict(enumerate("abcd")),
        )
        return label_targets(classification_rows(table, class_names=names), config)

    assert targets([[0, 0, 0, 1], [1, 0, 1, 0]]) == [[0, 0, 0, 1], [1, 0, 1, 0]]
    for cells in ([[1, 0, 0], [0, 1, 0]], [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]):
        with pytest.raises(TaskDataError, match=rf"{len(cells[0])} labels, and the model has 4"):
            targets(cells)
    assert targets([[1, 0, 0], [0, 0, 1]], ["b", "c", "a"]) == [[0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("cell", ["\u200b", "\ufeff ", "\xa0", "\u2060\u200d"])
def test_a_label_that_cannot_be_seen_is_missing(cell: str) -> None:
    with pytest.raises(MissingLabelsError, match="Row 1 has nothing"):
        read_labels(column(["a", cell, "b"]), "label")


def test_decimals_that_print_otherwise_need_a_problem_type(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\na,5.000\nb,3.25\n")
    rows = classification_rows(load_table(path))
    with pytest.raises(TaskDataError, match="'5.000', which may be names or numbers"):
        data_problem_type(rows)
    names = {0: "3.25", 1: "5.000"}
    for kind, expected in (("regression", [5.0, 3.25]), ("single_label_classification", [1, 0])):
        config = SimpleNamespace(problem_type=kind, num_labels=2, id2label=names)
        assert label_targets(rows, config) == expected


@pytest.mark.parametrize("cells", [[0.5, 1e39], [0.5, -1e300], ["0.5", "1e+39"]])
def test_numbers_that_models_cannot_hold_are_refused(cells: list[Any]) -> None:
    rows = classification_rows(column(cells).add_column("text", ["x", "y"]))
    config = SimpleNamespace(problem_type="regression", num_labels=1)
    with pytest.raises(TaskDataError, match=r"Row 1 has -?1e\+"):
        label_targets(rows, config)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_labels_are_refused(value: float) -> None:
    table = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1.5, value, 2.0]})
    with pytest.raises(TaskDataError, match=rf"'label' holds {value}, first in place 1"):
        read_labels(table, "label")
