from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

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


@given(st.lists(st.text(st.sampled_from('"a\t, '), max_size=4), min_size=1, max_size=4))
@settings(max_examples=50)
def test_texts_with_quotes_and_tabs_in_tsv(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for columns in ({"text": texts}, {"text": texts, "n": texts[::-1]}):
            write_table(Dataset.from_dict(columns), Path(folder, "a.tsv"))
            assert load_table(Path(folder, "a.tsv"))[:] == columns


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
        ("a.tsv", {"text": ["a\tb", "c\nd"]}, r"'\"c.nd\"', with a line break"),
        ("a.csv", {"text": ["a"], "b": [b"\xff"]}, "row 0.*bytes is not text"),
        ("a.jsonl", {"text": ["a", "b"], "x": [0.5, float("nan")]}, "row 1.*choose .parquet"),
        ("a.jsonl", {"text": ["a"], "b": [b"\xff"]}, "row 0.*bytes is not text"),
        ("a.txt", {"text": ["a", "b\rc"]}, "text of row 1 is 'b.*one text per line"),
        ("a.txt", {"text": [None, "b"]}, "text of row 0 is None"),
        ("a.txt", FLAT, "the column text only"),
        ("a.conll", {"a": [["a\tb"]], "t": [["O"]]}, "row 0 has the word 'a.tb'"),
        ("a.conll", {"a": [["x"], ["-DOCSTART-"]], "t": [["O"], ["O"]]}, "row 1.*DOCSTART"),
        ("a.conll", {"a": [["x"], []], "t": [["O"], []]}, "row 1 has no words"),
        ("a.conll", FLAT, "a list of words and a list of tags"),
    ],
)
def test_what_cannot_be_written(
    name: str, columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, TaskDataError), match=message):
        write_table(Dataset.from_dict(columns), tmp_path / name)
    assert not list(tmp_path.iterdir())


WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
@settings(max_examples=40)
@given(rows=st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4))
def test_any_text_is_read_again_or_refused(name: str, rows: list[tuple[str, str]]) -> None:
    columns = {"text": [row[0] for row in rows], "other": [row[1] for row in rows]}
    if name == "a.txt":
        del columns["other"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        try:
            write_table(Dataset.from_dict(columns), path)
        except TaskDataError:
            cells = "".join(map("".join, rows))
            assert name != "a.jsonl" and name != "a.csv" and set("\t\r\n") & set(cells)
            return
        found = load_table(path)[:]
    if name == "a.txt":
        found = {"text": [text.removesuffix("\n") for text in found["text"]]}
        columns = {"text": [text.removesuffix("\n") for text in columns["text"]]}
    assert found == columns


@settings(max_examples=60)
@given(st.lists(st.lists(st.tuples(WORD, WORD), max_size=3), min_size=1, max_size=3))
def test_any_tagged_words_are_read_again_or_refused(rows: list[list[tuple[str, str]]]) -> None:
    columns = {
        "tokens": [[word for word, _ in row] for row in rows],
        "tags": [[tag for _, tag in row] for row in rows],
    }
    table = Dataset.from_dict(
        columns, Features({name: List(Value("string")) for name in ("tokens", "tags")})
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.conll")
        try:
            write_table(table, path)
        except TaskDataError:
            cells = [cell for row in rows for pair in row for cell in pair]
            odd = any(set(cell) & {"\ufeff", *" \t\r\n"} or not cell.strip() for cell in cells)
            assert odd or any(cell != cell.strip() for cell in cells) or not all(rows)
            return
        assert load_table(path)[:] == columns
