"""What was not to be augmented is afterwards as it was before, byte for byte."""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_distill.augmentation import WordSubstituter, augment_dataset
from hf_distill.augmentation.drawing import copy_marker
from hf_distill.augmentation.raw_rows import RawRows
from hf_distill.cli.main import main
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.tables import load_table

TEXT = "the big river in the old town"
CELLS = st.one_of(
    st.sampled_from(
        [
            "",
            "007",
            "1.10",
            "1e3",
            "12:30",
            "NA",
            "null",
            "TRUE",
            "2024-01-05",
            "9" * 20,
            " x ",
            '"',
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | CELLS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(CELLS, inner, max_size=2),
    max_leaves=4,
)


def rewritten(path: Path, table: Dataset | None = None) -> tuple[bytes, bytes]:
    """The file written again, and with a copy of each row whose `text` has more to it."""
    raw = RawRows(path, table or load_table(path), ["text"])
    rows: list[Any] = list(raw.table())
    outputs = []
    for copies in (False, True):
        versions = [
            {**row, "text": row["text"] + suffix}
            for row in rows
            for suffix in ["", ' "new"'][: 1 + copies]
        ]
        target = path.with_name(f"out{path.suffix}")
        raw.write(versions, target)
        outputs.append(target.read_bytes())
    return outputs[0], outputs[1]


@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_csv(rows: list[tuple[str, ...]], quoting: Any, end: str, mark: str) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=quoting, lineterminator="\r\n")
    writer.writerows([("a", "text", "b"), *rows])
    # The ends of the lines only: cells with a line break are quoted, and would be changed as well.
    assume(end == "\r\n" or not any("\r\n" in cell for row in rows for cell in row))
    content = (mark + buffer.getvalue().replace("\r\n", end)).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.csv")
        path.write_bytes(content)
        same, copies = rewritten(path)
    assert same == content.removeprefix(b"\xef\xbb\xbf")
    found = list(csv.reader(io.StringIO(copies.decode("utf-8-sig"), newline="")))
    new = [(row, (row[0], row[1] + ' "new"', row[2])) for row in rows]
    assert found[1:] == [list(one) for pair in new for one in pair]


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=4))
def test_tsv_without_quoting(rows: list[tuple[str, ...]]) -> None:
    """A quote inside a cell shows that quotes are letters."""
    rows = [tuple(re.sub(r"[\t\r\n]", "", cell) for cell in row) for row in rows]
    rows = [*rows, ("", '5" disk', "")]
    lines = ["\t".join(row) for row in [("a", "text", "b"), *rows]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.tsv")
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
        assert load_table(path)["text"][:] == [row[1] for row in rows]
        same, copies = rewritten(path)
    assert same.decode() == "\n".join(lines) + "\n"
    new = [[*row[:1], row[1] + ' "new"', row[2]] for row in rows]
    assert copies.decode().split("\n")[2::2] == ["\t".join(row) for row in new]


@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_tsv_with_quoting(rows: list[tuple[str, ...]], quoting: Any) -> None:
    """As pandas and the module csv write it."""
    rows = [*rows, ("", 'a "b"\t\nc', "")]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=quoting, delimiter="\t", lineterminator="\r\n")
    writer.writerows([("a", "text", "b"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.tsv")
        path.write_bytes(buffer.getvalue().encode())
        table = load_table(path)
        assert [tuple(row.values()) for row in table] == rows
        same, copies = rewritten(path)
    assert same.decode() == buffer.getvalue()
    found = list(csv.reader(io.StringIO(copies.decode(), newline=""), delimiter="\t"))
    assert found[2::2] == [[row[0], row[1] + ' "new"', row[2]] for row in rows]


@pytest.mark.parametrize("layout", ["lines", "list", "indented"])
@given(
    rows=st.lists(st.fixed_dictionaries({"text": CELLS}, optional={"a": JSON_VALUES, "b": CELLS}))
)
@settings(max_examples=50)
def test_json(layout: str, rows: list[dict[str, Any]]) -> None:
    texts = [json.dumps(row, indent=2 if layout == "indented" else None) for row in rows]
    content = "\n".join(texts) if layout == "lines" else f"[{', '.join(texts)} ]"
    table = Dataset.from_list([{"text": row["text"]} for row in rows])
    assume(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.jsonl")
        path.write_text(content, encoding="utf-8")
        same, copies = rewritten(path, table)
    if layout != "indented":
        assert same.decode() == "\n".join(texts) + "\n"
    found = [json.loads(line) for line in copies.decode().removesuffix("\n").split("\n")]
    assert found[::2] == rows
    assert found[1::2] == [{**row, "text": row["text"] + ' "new"'} for row in rows]


@pytest.mark.parametrize("other", [3, "x"])
def test_numbers_longer_than_the_table_has_them(other: Any, tmp_path: Path) -> None:
    """The table has such a column as text; the file keeps its numbers."""
    path = tmp_path / "rows.jsonl"
    ids = [10**30, other]
    path.write_text("".join(json.dumps({"text": "a", "id": one}) + "\n" for one in ids))
    raw = RawRows(path, load_table(path), ["text", "id"])
    rows: list[Any] = list(raw.table())
    copy = {**rows[0], "id": f"{rows[0]['id']}-aug1"}
    raw.write([*rows, copy], tmp_path / "out.jsonl")
    written = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").open()]
    assert written == [*ids, f"{10**30}-aug1"]


def test_a_column_of_several_kinds_is_named(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": true}\n')
    out = str(tmp_path / "out.jsonl")
    words = ["--train_file", str(path), "--text_columns", "text", "--output_path", out]
    assert main(["augment", "--multiplication_factor", "2", *words]) == 2
    assert "text_columns='text'" in capsys.readouterr().err


@pytest.fixture
def augmented(saved_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(name: str, content: str, *options: str) -> str:
        (tmp_path / name).write_bytes(content.encode())
        target = tmp_path / f"out{Path(name).suffix}"
        status = main([
            "augment", "--train_file", str(tmp_path / name), "--output_path", str(target),
            "--model", saved_model, "--device", "cpu", "--multiplication_factor", "3", *options,
        ])  # fmt: skip
        assert status in (None, 0), capsys.readouterr().err
        return target.read_bytes().decode()

    return run


def test_conll(augmented: Any) -> None:
    """Columns between word and tag, and the lines between sentences."""
    first = "the DT x O\nbig  JJ x O\nriver NN x O\nParis NNP x B-LOC"
    content = f"-DOCSTART- -X- O O\n\n{first}\n\n-DOCSTART- -X- O O\n\n. . . O\n"
    found = augmented("a.conll", content, "--text_columns", "tokens", "--tag_column", "tags")
    copy = r"the DT x O\n\w+  JJ x O\n\w+ NN x O\nParis NNP x B-LOC"
    start, rest = content.split(first)
    pattern = f"{re.escape(start + first)}(\n\n{copy})+{re.escape(rest)}"
    assert re.fullmatch(pattern, found), found


@given(st.text(st.sampled_from("aO# \t\n\r\u2028"), max_size=20))
@settings(max_examples=100)
def test_conll_is_read_as_by_load_table(content: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.conll")
        path.write_bytes(f"a\t O \nO O\n{content}".encode())
        try:
            table = load_table(path)
        except TaskDataError:
            return
        found = RawRows(path, table, ["tokens", "tags"]).table()
    for name in ("tokens", "tags"):
        assert found[name][:] == table[name][:]


def test_lines_of_text(augmented: Any) -> None:
    found = augmented("a.txt", f"{TEXT}\r\n\r\n007\r\nno", "--text_columns", "text")
    assert found.split("\r\n")[0] == TEXT
    assert found.split("\r\n")[3:] == ["", "007", "no", ""]


def test_cells_that_look_like_numbers(augmented: Any) -> None:
    """On the command line, from end to end."""
    first, last = "007,1.10,12:30,12345678901234567890,NA,", ",TRUE\r\n"
    found = augmented(
        "a.csv",
        f"id,n,at,big,gap,text,flag\r\n{first}{TEXT}{last}" + '"010",,2024-01-05,1e3,"",no,0\r\n',
        "--text_columns", "text",
    ).splitlines(keepends=True)  # fmt: skip
    assert found[1] == f"{first}{TEXT}{last}" and found[-1] == '"010",,2024-01-05,1e3,"",no,0\r\n'
    for number, line in enumerate(found[2:-1], start=1):
        assert re.fullmatch(f"007-aug{number}{re.escape(first[3:])}the .*{last}", line)
    assert len(found) == 5


def test_text_after_a_closed_quote(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('text,n\n"a" b,1\n')
    assert load_table(path)["text"][:] == ["a b"]
    same, copies = rewritten(path)
    assert same.decode() == 'text,n\n"a" b,1\n'
    assert copies.decode().splitlines()[2] == '"a b ""new""",1'


def test_arrow_values(substituter: WordSubstituter) -> None:
    """Values that Python has no exact form of."""
    columns = {
        "text": pa.array([TEXT, None]),
        "ns": pa.array([1704448800000000123, None], pa.timestamp("ns", tz="Europe/Berlin")),
        "u64": pa.array([2**64 - 1, None], pa.uint64()),
        "time": pa.array([123456789, None], pa.time64("ns")),
        "f32": pa.array([1.1, float("nan")], pa.float32()),
        "decimal": pa.array([Decimal("1.10"), None]),
        "bytes": pa.array([b"\xff\0", None]),
        "date": pa.array([datetime.date(2024, 1, 5), None]),
    }
    table = Dataset(pa.table(columns))
    found = augment_dataset(table, ["text"], substituter=substituter, multiplication_factor=2)
    assert found is not None and found.features == table.features and len(set(found["text"])) == 3
    indices = pa.array([0, 0, 1])
    for name in columns.keys() - {"text"}:
        before = table.data.column(name).take(indices).combine_chunks()
        # NaN does not equal itself: compare the buffers.
        assert found.data.column(name).combine_chunks().buffers() == before.buffers(), name


def test_ids_of_copies_of_copies(substituter: WordSubstituter) -> None:
    table = Dataset.from_dict({"id": ["q", "r-aug1x", "2024-aug-01"], "text": [TEXT] * 3})
    for generation in range(3):
        again = augment_dataset(table, ["text"], substituter=substituter, multiplication_factor=3)
        assert again is not None and len(set(again["id"])) == len(again) > 2 * len(table)
        assert f"q-aug{['', '2.', '3.'][generation]}1" in again["id"]
        table = again


IDS = st.from_regex(r"[ab](-aug([0-9]\.)?[0-9]?)*", fullmatch=True)


@given(st.sets(IDS | st.text(max_size=3), max_size=9))
@settings(max_examples=40)
def test_no_id_occurs_twice(ids: set[str]) -> None:
    marker = copy_marker(ids)
    names = [f"{one}-{marker}{copy}" for one in ids for copy in range(1, 13)]
    assert len({*names, *ids}) == 13 * len(ids)
