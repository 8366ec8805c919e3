"""Writing tables as files of the kinds that ``tasks.tables.load_table`` reads."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from datasets import ClassLabel, Dataset

from hf_distill.reporting.files import write_atomically
from hf_distill.tasks.columns import is_list
from hf_distill.tasks.errors import TaskDataError

_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".conll")
_FORBIDDEN_IN_TSV = ("\t", "\n", "\r")


def check_table_path(path: str | Path) -> None:
    """Check the name of a file to write.

    Raises:
        ValueError: it is of no kind that can be written.
    """
    if _ending(Path(path)) not in _ENDINGS or Path(path).name.lower().endswith(".parquet.gz"):
        raise ValueError(
            f"output_path={str(path)!r} must end in {', '.join(_ENDINGS)}; all but .parquet also "
            "with .gz."
        )


def write_table(table: Dataset, path: str | Path) -> None:
    """Write a table, row by row, atomically.

    Args:
        table: the rows.
        path: a file; its name says the kind, as ``load_table`` reads it. Columns of class numbers
            are written as names in ``.conll``, as numbers elsewhere.

    Raises:
        ValueError: the name is of no such kind.
        TaskDataError: the kind of file cannot hold the rows, such as lists in ``.csv``.
        OSError: it cannot be written; what stood there is then still there.
    """
    check_table_path(path)
    path = Path(path).expanduser()
    ending = _ending(path)
    if ending == ".parquet":
        write_atomically(path, lambda temporary: table.to_parquet(str(temporary)))
        return
    lines = {
        ".jsonl": _jsonl,
        ".csv": _csv,
        ".tsv": _tsv,
        ".txt": _txt,
        ".conll": _conll,
    }[ending]

    def write(temporary: Path) -> None:
        with text_file(temporary) as file:
            file.writelines(lines(table))

    write_atomically(path, write)


@contextmanager
def text_file(path: Path) -> Iterator[IO[str]]:
    """A text file in UTF-8 to write to; in gzip, without a date, if its name says so."""
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


def _ending(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _jsonl(table: Dataset) -> Iterator[str]:
    for row in table:
        yield json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _csv(table: Dataset) -> Iterator[str]:
    _check_flat(table, ".csv")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for values in _rows(table):
        writer.writerow(values)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _tsv(table: Dataset) -> Iterator[str]:
    _check_flat(table, ".tsv")
    for values in _rows(table):
        cells = ["" if value is None else str(value) for value in values]
        for cell in cells:
            if any(character in cell for character in _FORBIDDEN_IN_TSV):
                raise TaskDataError(
                    f"a .tsv file cannot hold the text {cell[:60]!r}, with a tab or a line break; "
                    "choose .csv, .jsonl or .parquet for output_path."
                )
        yield "\t".join(cells) + "\n"


def _txt(table: Dataset) -> Iterator[str]:
    if table.column_names != ["text"]:
        raise TaskDataError(
            f"a .txt file holds the column text only, and the data has "
            f"{', '.join(table.column_names)}; choose another kind of file for output_path."
        )
    for row in table:
        yield row["text"] if row["text"].endswith("\n") else row["text"] + "\n"


def _conll(table: Dataset) -> Iterator[str]:
    lists = [name for name, feature in table.features.items() if is_list(feature)]
    if len(lists) != 2:
        raise TaskDataError(
            "a .conll file holds a list of words and a list of tags, and the lists of the data are "
            f"{', '.join(lists) or 'none'}; choose .jsonl or .parquet for output_path."
        )
    words, tags = lists
    inner = table.features[tags].feature
    for row in table:
        for word, tag in zip(row[words], row[tags], strict=True):
            shown = inner.int2str(tag) if isinstance(inner, ClassLabel) else tag
            yield f"{word}\t{shown}\n"
        yield "\n"


def _rows(table: Dataset) -> Iterator[list[Any]]:
    yield table.column_names
    rows: Iterable[Mapping[str, Any]] = table
    for row in rows:
        yield [row[name] for name in table.column_names]


def _check_flat(table: Dataset, ending: str) -> None:
    for name, feature in table.features.items():
        if is_list(feature) or isinstance(feature, dict):
            raise TaskDataError(
                f"the column {name!r} holds lists, which a {ending} file cannot; choose .jsonl or "
                ".parquet for output_path."
            )
