"""The table of what data is like: right counts, in 80 columns."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from hf_distill.tasks.labels import LabelMap
from hf_distill.tasks.overview import Overview, look_at, overview_table


def test_two_splits() -> None:
    train = Overview(1200, 1200, 3, {"label neg": 700, "label pos": 500}, {"text": [4, 7]})
    dev = Overview(8, 8, 0, {"label neg": 8, "label pos": 0}, {})
    assert overview_table({"train": train, "validation": dev}, "--max_length") == (
        "                             train  validation\n"
        "rows                         1,200           8\n"
        "label neg                      700           8\n"
        "label pos                      500           0\n"
        "blank text                       2           0\n"
        "cut off (--max_length)           3           0\n"
        "blank text in train: rows 4, 7"
    )


def test_many_labels_with_long_names_fit() -> None:
    labels = {f"label {'x' * 90}{n}": n for n in range(40)}
    table = overview_table(
        {"train": Overview(780, 1000, 0, labels, {}), "validation": Overview(9, 12, 1, {}, {})},
        "--block_size",
    )
    lines = table.splitlines()
    assert max(map(len, lines)) < 80
    assert sum(line.startswith("label x") for line in lines) == 12
    assert any(line.split() == ["(further", "labels)", "28", "0"] for line in lines)
    assert any(line.split() == ["inputs", "of", "the", "model", "1,000", "12"] for line in lines)


@pytest.mark.parametrize(
    ("columns", "blank"),
    [
        ({"text": ["a", " ", ""], "row": [3, 5, 8]}, {"text": [5, 8]}),
        ({"text": ["a", "b"], "text_pair": ["", "b"]}, {"text_pair": [0]}),
        ({"tokens": [["a"], [], [""]]}, {"tokens": [1, 2]}),
        ({"context": ["\n"], "question": ["?"], "label": [""]}, {"context": [0]}),
    ],
)
def test_rows_without_text(columns: dict[str, Any], blank: dict[str, list[int]]) -> None:
    assert look_at(Dataset.from_dict(columns), 3, 0, {}).blank == blank


@pytest.mark.parametrize(
    ("labels", "names", "counts"),
    [
        (["b", "a", "b"], ("a", "b", "c"), {"label a": 1, "label b": 2, "label c": 0}),
        ([0, 1, 1], ("neg", "pos"), {"label neg (0)": 1, "label pos (1)": 2}),
        ([2, 1], ("1", "2"), {"label 1": 1, "label 2": 1}),
        ([["a"], [], ["b", "a"]], ("a", "b"), {"label a": 2, "label b": 1, "no label": 1}),
    ],
)
def test_counts_of_labels(labels: list[Any], names: tuple[str, ...], counts: dict) -> None:
    assert LabelMap(names, Dataset.from_dict({"label": labels}), "label").counts() == counts
