from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_distill.augmentation.tables import write_table
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.tables import load_table

FLAT = {"text": ['a "b", c', "Größe 😀"], "label": [0, 1], "note": ["x", "y"]}


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz", "a.tsv.gz", "a.JSONL.gz"]
)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    write_table(Dataset.from_dict(FLAT), path)
    cells = {name: [str(cell) for cell in column] for name, column in FLAT.items()}
    assert load_table(path)[:] == (cells if name.startswith(("a.csv", "a.tsv")) else FLAT)
    first = path.read_bytes()
    write_table(Dataset.from_dict(FLAT), path)
    assert path.read_bytes() == first and len(list(path.parent.iterdir())) == 1


def test_text_and_conll(tmp_path: Path) -> None:
    write_table(Dataset.from_dict({"text": ["one\n", "two"]}), tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "one\ntwo\n"
    features = Features(
        {"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-x"]))}
    )
    rows = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "tags": [[0, 1], [0]]}, features)
    write_table(rows, tmp_path / "a.conll")
    assert load_table(tmp_path / "a.conll")[:] == {
        "tokens": [["a", "b"], ["c"]], "tags": [["O", "B-x"], ["O"]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("a.xls", {"text": ["a"]}, r"a\.xls.*must end in"),
        ("a.parquet.gz", {"text": ["a"]}, "must end in"),
        ("a.csv", {"tokens": [["a"]]}, "'tokens' holds lists"),
        ("a.tsv", {"text": ["a\tb"]}, "with a tab"),
        ("a.txt", FLAT, "the column text only"),
        ("a.conll", FLAT, "a list of words and a list of tags"),
    ],
)
def test_what_cannot_be_written(
    name: str, columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, TaskDataError), match=message):
        write_table(Dataset.from_dict(columns), tmp_path / name)
    assert not list(tmp_path.iterdir())
