"""Writing tables as files of the kinds that ``tasks.tables.load_table`` reads."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import IO, Any

from datasets import ClassLabel, Dataset

from hf_distill.files import write_atomically
from hf_distill.tasks.columns import describe, is_list, is_mixed
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.text_files import ending

_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".conll")


def check_table_path(path: str | Path) -> None:
    """Check the name of a file to write.

    Raises:
        ValueError: it is of no kind that can be written.
    """
    if ending(Path(path)) not in _ENDINGS or Path(path).name.lower().endswith(".parquet.gz"):
        raise ValueError(
            f"output_path={str(path)!r} must end in {', '.join(_ENDINGS)}; all but .parquet also "
            "with .gz."
        )


def check_target(target: Path, source: Path) -> None:
    """Check that a file to write is not the one that is read, which would be lost.

    Raises:
        ValueError: it is.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(
            f"output_path={str(target)!r} is the file that is read, which would be replaced by "
            "its copies; name another."
        )


def check_columns(table: Dataset) -> None:
    """Check that a table can be written at all.

    Raises:
        TaskDataError: a column holds values of several kinds.
    """
    for name, feature in table.features.items():
        if is_mixed(feature):
            raise TaskDataError(
                f"the column {name!r} holds {describe(feature)}, which only .json and .jsonl files "
                "carry on as they are; choose .jsonl for output_path, or leave the column out."
            )


def check_rows(table: Dataset, path: str | Path) -> None:
    """Check that a file can hold the rows, before work whose result is to be written there.

    Raises:
        TaskDataError: it cannot; names the column or the row.
    """
    check_columns(table)
    if ending(Path(path)) != ".parquet":
        deque(_lines(table, Path(path)), maxlen=0)


def write_table(table: Dataset, path: str | Path) -> None:
    """Write a table, row by row, atomically.

    Args:
        table: the rows.
        path: a file; its name tells the kind, as ``load_table`` reads it. Columns of class numbers
            are written as names in ``.conll``, as numbers elsewhere.

    Raises:
        ValueError: the name is of no such kind.
        TaskDataError: the kind of file cannot hold the rows, such as lists in ``.csv``.
        OSError: it cannot be written; what stood there is then still there.
    """
    check_table_path(path)
    path = Path(path).expanduser()
    check_columns(table)
    if ending(path) == ".parquet":
        write_atomically(path, lambda temporary: table.to_parquet(str(temporary)))
        return

    def write(temporary: Path) -> None:
        with text_file(temporary) as file:
            file.writelines(_lines(table, path))

    write_atomically(path, write)


def _lines(table: Dataset, path: Path) -> Iterator[str]:
    writers: dict[str, Callable[[Dataset], Iterator[str]]] = {
        ".jsonl": _jsonl,
        ".csv": partial(_delimited, delimiter=","),
        ".tsv": partial(_delimited, delimiter="\t"),
        ".txt": _txt,
        ".conll": _conll,
    }
    return writers[ending(path)](table)


@contextmanager
def text_file(path: Path) -> Iterator[IO[str]]:
    """Open a text file in UTF-8 to write to; in gzip, without a date, if its name ends so."""
    if path.suffix.lower() != ".gz":
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
    ):
        yield file


def _jsonl(table: Dataset) -> Iterator[str]:
    for number, row in enumerate(table):
        try:
            yield json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
        except (TypeError, ValueError) as error:
            raise TaskDataError(
                f"row {number} has a value that a .jsonl file cannot hold ({error}); choose "
                ".parquet for output_path."
            ) from error


def _delimited(table: Dataset, delimiter: str) -> Iterator[str]:
    buffer = io.StringIO()
    # Python below 3.13 quotes the line breaks of the line's own end only.
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n")
    for cells in _cells(table, ".csv" if delimiter == "," else ".tsv"):
        writer.writerow(cells)
        line = buffer.getvalue().removesuffix("\r\n")
        if delimiter == "\t" and {"\n", "\r"} & {*line}:
            raise TaskDataError(
                f"a .tsv file cannot hold the text {line[:60]!r}, with a line break; choose .csv, "
                ".jsonl or .parquet for output_path."
            )
        yield line + "\n"
        buffer.seek(0)
        buffer.truncate()


def _txt(table: Dataset) -> Iterator[str]:
    if table.column_names != ["text"]:
        raise TaskDataError(
            f"a .txt file holds the column text only, and the data has "
            f"{', '.join(table.column_names)}; choose another kind of file for output_path."
        )
    for number, row in enumerate(table):
        line = None if row["text"] is None else row["text"].removesuffix("\n")
        if line is None or line.startswith("\ufeff") or {"\n", "\r"} & {*line}:
            raise TaskDataError(
                f"the text of row {number} is {row['text']!r:.60}, and a .txt file holds one text "
                "per line; choose .csv, .jsonl or .parquet for output_path."
            )
        yield line + "\n"


def _conll(table: Dataset) -> Iterator[str]:
    lists = [name for name, feature in table.features.items() if is_list(feature)]
    if len(lists) != 2:
        raise TaskDataError(
            "a .conll file holds a list of words and a list of tags, and the lists of the data are "
            f"{', '.join(lists) or 'none'}; choose .jsonl or .parquet for output_path."
        )
    words, tags = lists
    inner = table.features[tags].feature
    for number, row in enumerate(table):
        lines = []
        for word, tag in zip(row[words] or (), row[tags] or (), strict=True):
            shown = inner.int2str(tag) if isinstance(inner, ClassLabel) else str(tag)
            lines.append(f"{word}\t{shown}\n")
            if (
                not lines[-1].strip()
                or any(character in f"{word}{shown}" for character in "\t\n\r")
                or word == "-DOCSTART-"
                or word.startswith("\ufeff")
                or shown != shown.strip()
            ):
                raise TaskDataError(
                    f"row {number} has the word {word!r} with the tag {shown!r}, which a .conll "
                    "file cannot hold; choose .jsonl or .parquet for output_path."
                )
        if not lines:
            raise TaskDataError(
                f"row {number} has no words, and a .conll file cannot hold such a row; choose "
                ".jsonl or .parquet for output_path."
            )
        yield "".join(lines) + "\n"


def _cells(table: Dataset, ending: str) -> Iterator[list[str]]:
    """Yield the names of the columns, and the rows."""
    for name, feature in table.features.items():
        if is_list(feature) or isinstance(feature, dict):
            raise TaskDataError(
                f"the column {name!r} holds lists, which a {ending} file cannot; choose .jsonl or "
                ".parquet for output_path."
            )
    yield table.column_names
    rows: Iterable[Mapping[str, Any]] = table
    for number, row in enumerate(rows):
        try:
            yield [_cell(row[name]) for name in table.column_names]
        except TypeError as error:
            raise TaskDataError(
                f"row {number} has a value that a {ending} file cannot hold ({error}); choose "
                ".parquet for output_path."
            ) from error


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, str | bool | int | float) else _plain(value)


def _plain(value: Any) -> str:
    """A date, a time or a decimal number as text."""
    if isinstance(value, date | time | Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not text, a number or a date")
