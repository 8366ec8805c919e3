"""Texts without labels: which columns they are, and what models get of them."""

from __future__ import annotations

from typing import Any

import pytest
from any_task import any_task
from datasets import Dataset
from tiny import model_for, tokenizer

from hf_distill.tasks.errors import TaskDataError


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"text": ["a b"]}, {}, {"text": ["a b"]}),
        ({"body": ["a b"]}, {}, {"text": ["a b"]}),
        ({"body": ["a b"], "label": ["good"]}, {}, {"text": ["a b"]}),
        ({"body": ["a b"], "mood": ["good"]}, {"label_column": "mood"}, {"text": ["a b"]}),
        ({"label": ["good"], "premise": ["a"], "hypothesis": ["b"]}, {},
         {"text": ["a"], "text_pair": ["b"]}),
        ({"label": ["a"], "score": [1]}, {"text_column": "label"}, {"text": ["a"]}),
        ({"x": ["a"], "y": ["b"]}, {"text_column": "y", "text_pair_column": "x"},
         {"text": ["b"], "text_pair": ["a"]}),
    ],
)  # fmt: skip
def test_columns(
    columns: dict[str, Any], options: dict[str, str], expected: dict[str, Any]
) -> None:
    task = any_task("text-classification", **options)
    rows = task.rows(Dataset.from_dict(columns), labelled=False)
    assert {name: list(rows[name]) for name in rows.column_names} == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"n": [1]}, "which column|no column with a usual name"), ({"text": [""]}, "are empty")],
)
def test_no_texts(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskDataError, match=message):
        any_task("text-classification").rows(Dataset.from_dict(columns), labelled=False)


def test_words() -> None:
    table = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "tags": [["O", "O"], ["O"]]})
    task = any_task("token-classification", max_length=3)
    rows = task.rows(table, labelled=False)
    assert rows.to_dict() == {"tokens": [["a", "b"], ["c"]]}
    encode = tokenizer()
    features, truncated = task.features(
        rows, encode, model_for("token-classification", seed=0), training=True, labelled=False
    )
    assert truncated == 1
    texts = [encode(text, truncation=True, max_length=3) for text in ("a b", "c")]
    assert list(features) == list(map(dict, texts))
    with pytest.raises(TaskDataError, match="not lists of words"):
        task.rows(Dataset.from_dict({"tokens": ["a b"]}), labelled=False)
    with pytest.raises(TaskDataError, match="are empty"):
        task.rows(Dataset.from_dict({"words": [[""]]}), labelled=False)
    with pytest.raises(TaskDataError, match="Row 1 has null among the words"):
        task.rows(Dataset.from_dict({"words": [["a"], ["b", None]]}), labelled=False)


def test_inputs_are_the_tokenizers_and_have_no_labels() -> None:
    rows = Dataset.from_dict({"text": ["a b c d", "e"], "text_pair": ["f", "g h"]})
    model, encode = model_for("text-classification", seed=0), tokenizer()
    task = any_task("text-classification", max_length=6)
    features, truncated = task.features(rows, encode, model, training=True, labelled=False)
    assert truncated == 1
    for row, text, pair in zip(features, rows["text"], rows["text_pair"], strict=True):
        assert row == dict(encode(text, pair, truncation=True, max_length=6))
