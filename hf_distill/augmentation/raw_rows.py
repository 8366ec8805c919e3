"""Rows of text files as they stand there: what is not augmented is carried byte for byte.

A reader with types would take ``007`` for a number and ``2024-01-05`` for a date, and write them in
its own way. Here a row is a piece of the file, in which the values of some columns are replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, concatenate_datasets

from hf_distill.augmentation.tables import text_file
from hf_distill.files import write_atomically
from hf_distill.tasks.columns import is_mixed, is_text
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.text_files import conll_lines, ending, read_delimited, read_text

# Names a row of the file in the data set that is augmented.
ROW = "row of the file"
_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

_Place = tuple[int, int]


class RawRow(NamedTuple):
    """A row of a file.

    Attributes:
        text: the row, without the line break at its end.
        places: where in the text the value of a column stands; the values, if it is a list.
        before: what stands between this row and the one before; copies do not repeat it.
    """

    text: str
    places: Mapping[str, _Place | list[_Place]]
    before: str = ""


class _File(NamedTuple):
    """Text of a file.

    Attributes:
        head: what stands before the rows.
        rows: the rows, with the places of the columns that were asked for.
        decode: turns what stands at a place into a value.
        encode: turns a new value into what is to stand there, given what stood there.
        before_copies: how many line breaks set a copy off from the row before.
    """

    head: str
    rows: Iterator[RawRow]
    decode: Callable[[str], Any] = str
    encode: Callable[[Any, str], str] = lambda value, before: value
    before_copies: int = 0


class RawRows:
    """Rows of a file.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl``, ``.json``, ``.txt`` or ``.conll`` file, possibly in
            gzip.
        table: what ``tasks.tables.load_table`` has read from it.
        columns: those that may change, or that decide what does.

    Raises:
        TaskDataError: the file has other rows than the table.
    """

    def __init__(self, path: Path, table: Dataset, columns: Iterable[str]) -> None:
        text = read_text(path)
        self._columns = [name for name in dict.fromkeys(columns) if name in table.column_names]
        self._table = table
        self._file = _READERS[ending(path)](text, self._columns)
        self._rows = list(self._file.rows)
        if len(self._rows) != len(table):
            raise TaskDataError(
                f"{path} has {len(table)} rows, or {len(self._rows)} where line breaks are read "
                "strictly; write another kind of file."
            )
        line_break = re.search(r"\r\n|\n|\r", text)
        self._line_break = line_break[0] if line_break else "\n"

    @staticmethod
    def can_carry(source: Path, target: Path) -> bool:
        """Tell whether rows of one file can stand in the other as they are."""
        kinds = [ending(path).replace(".jsonl", ".json") for path in (source, target)]
        return source.is_file() and kinds[0] == kinds[1] and ending(source) in _READERS

    def table(self) -> Dataset:
        """Return the data with the number of each row in the column ``ROW``.

        The columns that were asked for hold what stands in the file; all others are empty.
        """
        rows = len(self._rows)
        # Values of several kinds are nothing that augmentation can read, which says so.
        mixed = [name for name in self._columns if is_mixed(self._table.features[name])]
        columns = {name: [None] * rows for name in self._table.features if name not in mixed}
        for name in self._columns:
            if name not in mixed:
                columns[name] = [self._value(row, name) for row in self._rows]
        made = Dataset.from_dict({**columns, ROW: list(range(rows))})
        if not mixed:
            return made
        return concatenate_datasets([made, self._table.select_columns(mixed)], axis=1)

    def write(self, rows: Iterable[Mapping[str, Any]], path: Path) -> None:
        """Write rows of ``table`` and copies of them, atomically.

        Args:
            rows: the values of the columns, and ``ROW``.
            path: a file of the same kind as this one.

        Raises:
            OSError: it cannot be written; what stood there is then still there.
        """

        def write(temporary: Path) -> None:
            with text_file(temporary) as file:
                file.write(self._file.head)
                file.writelines(self._written(self._rows[row[ROW]], row) for row in rows)

        write_atomically(path, write)

    def _written(self, row: RawRow, values: Mapping[str, Any]) -> str:
        changes: list[tuple[_Place, Any]] = []
        for name, places in row.places.items():
            old, new = self._value(row, name), values[name]
            if not isinstance(places, list):
                places, old, new = [places], [old], [new]
            for place, before, after in zip(places, old, new, strict=True):
                if after != before:
                    changes.append((place, after))
        pieces = [self._line_break * self._file.before_copies if changes else row.before]
        last = 0
        for (start, end), new in sorted(changes, key=lambda change: change[0]):
            pieces += [row.text[last:start], self._file.encode(new, row.text[start:end])]
            last = end
        return "".join([*pieces, row.text[last:], self._line_break])

    def _value(self, row: RawRow, name: str) -> Any:
        place = row.places.get(name)
        if place is None:
            return None
        if isinstance(place, list):
            return [self._file.decode(row.text[start:end]) for start, end in place]
        value = self._file.decode(row.text[slice(*place)])
        # The table has numbers of more than 63 bits as text.
        is_long = isinstance(value, int) and is_text(self._table.features[name])
        return str(value) if is_long else value


def _delimited(text: str, columns: Collection[str], delimiter: str) -> _File:
    table = read_delimited(text, delimiter)

    def rows() -> Iterator[RawRow]:
        for cells in table.rows:
            places, start = {}, 0
            for name, cell in zip(table.names, cells, strict=True):
                if name in columns:
                    places[name] = (start, start + len(cell))
                start += len(cell) + 1
            yield RawRow(delimiter.join(cells), places)

    return _File(table.head, rows(), table.decode, table.encode)


def _text(text: str, columns: Collection[str]) -> _File:
    places = [name for name in columns if name == "text"]
    lines = (line[1] for line in _LINE.finditer(text) if line.start() < len(text))
    return _File("", (RawRow(line, dict.fromkeys(places, (0, len(line)))) for line in lines))


def _conll(text: str, columns: Collection[str]) -> _File:
    def rows() -> Iterator[RawRow]:
        start = end = gap = 0
        tokens: list[_Place] = []
        tags: list[_Place] = []
        for place, content, fields in conll_lines(text):
            if fields:
                start = start if tokens else place
                end = place + len(content)
                first = place - start + content.index(fields[0])
                tag = fields[-1].strip()
                last = place - start + content.rindex(fields[-1]) + fields[-1].index(tag)
                tokens.append((first, first + len(fields[0])))
                tags.append((last, last + len(tag)))
            elif tokens:
                places = {"tokens": tokens, "tags": tags}
                wanted = {name: places[name] for name in columns}
                yield RawRow(text[start:end], wanted, text[gap:start])
                gap = min(place, len(text))
                tokens, tags = [], []

    return _File("", rows(), before_copies=1)


def _json(text: str, columns: Collection[str]) -> _File:
    def rows() -> Iterator[RawRow]:
        place = _after_space(text, 0)
        if text.startswith("[", place):
            place = _after_space(text, place + 1)
        while place < len(text) and text[place] != "]":
            _, end = _DECODER.raw_decode(text, place)
            # Between the lines of an object there is only space: a string has no line break.
            row = re.sub(r"[\r\n]", " ", text[place:end])
            yield RawRow(row, {k: v for k, v in _members(row) if k in columns})
            place = _after_space(text, end)
            if text.startswith(",", place):
                place = _after_space(text, place + 1)

    return _File("", rows(), json.loads, _json_value)


def _members(text: str) -> Iterator[tuple[str, _Place]]:
    """Yield the names in a JSON object, and where their values are."""
    place = _after_space(text, 1)
    while text[place] != "}":
        name, place = _DECODER.raw_decode(text, place)
        place = _after_space(text, _after_space(text, place) + 1)
        _, end = _DECODER.raw_decode(text, place)
        yield name, (place, end)
        place = _after_space(text, end)
        if text[place] == ",":
            place = _after_space(text, place + 1)


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None
    return found.end()


def _json_value(value: Any, before: str) -> str:
    return json.dumps(value, ensure_ascii=False)


_READERS: dict[str, Callable[[str, Collection[str]], _File]] = {
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".jsonl": _json,
    ".json": _json,
    ".txt": _text,
    ".conll": _conll,
}
