"""The rows of text files as they stand there: what is not augmented is carried byte for byte.

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

from datasets import Dataset

from hf_distill.augmentation.tables import ending, text_file
from hf_distill.files import write_atomically
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.tables import read_text

# Names a row of the file in the data set that is augmented.
ROW = "row of the file"
_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")
_CONLL_LINE = re.compile(r"([^\n]*?)\r*(\n|\Z)")
_CSV_CELL = re.compile(r'("[^"]*(?:""[^"]*)*"|[^",\r\n][^,\r\n]*|)(,|\r\n|\n|\r|\Z)')
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


class _Kind(NamedTuple):
    """A kind of file.

    Attributes:
        read: splits the text of a file into what stands before the rows, and the rows with the
            places of the given columns.
        decode: turns what stands at a place into a value.
        encode: turns a new value into what is to stand there, given what stood there.
        before_copies: how many line breaks set a copy off from the row before.
    """

    read: Callable[[str, Collection[str]], tuple[str, Iterable[RawRow]]]
    decode: Callable[[str], Any]
    encode: Callable[[Any, str], str]
    before_copies: int = 0


class RawRows:
    """The rows of a file.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl``, ``.json``, ``.txt`` or ``.conll`` file, possibly in
            gzip.
        table: what ``tasks.tables.load_table`` has read from it.
        columns: those that may change, or that decide what does.

    Raises:
        TaskDataError: the file has other rows than the table.
    """

    def __init__(self, path: Path, table: Dataset, columns: Iterable[str]) -> None:
        self._kind = _KINDS[ending(path)]
        text = read_text(path)
        self._columns = [name for name in dict.fromkeys(columns) if name in table.column_names]
        self._features = table.features
        try:
            self._head, rows = self._kind.read(text, self._columns)
            self._rows = list(rows)
        except TaskDataError as error:
            raise TaskDataError(f"{path}: {error}") from None
        if len(self._rows) != len(table):
            raise TaskDataError(
                f"{path} has {len(table)} rows, or {len(self._rows)} where quotes and line breaks "
                "are read strictly; quote cells as in RFC 4180, or write another kind of file."
            )
        line_break = re.search(r"\r\n|\n|\r", text)
        self._line_break = line_break[0] if line_break else "\n"

    @staticmethod
    def can_carry(source: Path, target: Path) -> bool:
        """Tell whether rows of one file can stand in the other as they are."""
        kinds = [ending(path).replace(".jsonl", ".json") for path in (source, target)]
        return source.is_file() and kinds[0] == kinds[1] and ending(source) in _KINDS

    def table(self) -> Dataset:
        """Return the data with the number of each row in the column ``ROW``.

        The columns that were asked for hold what stands in the file; all others are empty.
        """
        rows = len(self._rows)
        columns = {name: [None] * rows for name in self._features}
        for name in self._columns:
            columns[name] = [self._value(row, name) for row in self._rows]
        return Dataset.from_dict({**columns, ROW: list(range(rows))})

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
                file.write(self._head)
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
        pieces = [self._line_break * self._kind.before_copies if changes else row.before]
        last = 0
        for (start, end), new in sorted(changes, key=lambda change: change[0]):
            pieces += [row.text[last:start], self._kind.encode(new, row.text[start:end])]
            last = end
        return "".join([*pieces, row.text[last:], self._line_break])

    def _value(self, row: RawRow, name: str) -> Any:
        place = row.places.get(name)
        if place is None:
            return None
        if isinstance(place, list):
            return [self._kind.decode(row.text[start:end]) for start, end in place]
        return self._kind.decode(row.text[slice(*place)])


def _delimited(
    text: str, columns: Collection[str], split: Callable[[str], Iterator[list[_Place]]],
    decode: Callable[[str], str],
) -> tuple[str, Iterable[RawRow]]:  # fmt: skip
    lines = split(text)
    header = next(lines)
    names = [decode(text[slice(*place)]) for place in header]

    def rows() -> Iterator[RawRow]:
        for cells in lines:
            start = cells[0][0]
            if len(cells) != len(names):
                raise TaskDataError(
                    f"line {_line_number(text, start)} has {len(cells)} cells, and the first line "
                    f"has {len(names)}."
                )
            places = {
                name: (first - start, last - start)
                for name, (first, last) in zip(names, cells, strict=True)
                if name in columns
            }
            yield RawRow(text[start : cells[-1][1]], places)

    after = _LINE.match(text, header[-1][1])
    return text[: after.end() if after else 0], rows()


def _split_csv(text: str) -> Iterator[list[_Place]]:
    place = 0
    while place < len(text):
        cells: list[_Place] = []
        separator = ","
        while separator == ",":
            cell = _CSV_CELL.match(text, place)
            if cell is None:
                raise TaskDataError(
                    f"line {_line_number(text, place)}: a quote is not closed, or is closed before "
                    f"the end of the cell: {text[place : place + 60]!r}."
                )
            cells.append(cell.span(1))
            separator, place = cell[2], cell.end()
        if cells[0][0] < cells[-1][1]:  # an empty line is not a row
            yield cells


def _split_tsv(text: str) -> Iterator[list[_Place]]:
    for line in _lines(text):
        start, end = line.span(1)
        if start < end:
            cells, place = [], start
            for cell in text[start:end].split("\t"):
                cells.append((place, place + len(cell)))
                place += len(cell) + 1
            yield cells


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def _csv_cell(value: str, before: str) -> str:
    if before.startswith('"') or any(character in value for character in ',"\r\n'):
        return '"' + value.replace('"', '""') + '"'
    return value


def _lines(text: str) -> Iterator[re.Match[str]]:
    """The lines of a text, without an empty one at its end."""
    return (line for line in _LINE.finditer(text) if line.start() < len(text))


def _line_number(text: str, place: int) -> int:
    return len(re.findall(r"\r\n|\n|\r", text[:place])) + 1


def _text(text: str, columns: Collection[str]) -> tuple[str, Iterable[RawRow]]:
    places = [name for name in columns if name == "text"]
    return "", (RawRow(line[1], dict.fromkeys(places, (0, len(line[1])))) for line in _lines(text))


def _conll(text: str, columns: Collection[str]) -> tuple[str, Iterable[RawRow]]:
    def rows() -> Iterator[RawRow]:
        start = end = gap = 0
        tokens: list[_Place] = []
        tags: list[_Place] = []
        # Lines end as for ``load_table``.
        lines = (line for line in _CONLL_LINE.finditer(text) if line.start() < len(text))
        for line in (*lines, None):
            content = line[1] if line is not None else ""
            # As in ``load_table``: some tokens of real data are blanks of other kinds than a tab.
            fields = content.split("\t") if "\t" in content else content.split()
            if line is not None and content.strip() and fields[0] != "-DOCSTART-":
                start = start if tokens else line.start()
                end = line.end(1)
                first = line.start() - start + content.index(fields[0])
                tag = fields[-1].strip()
                last = line.start() - start + content.rindex(fields[-1]) + fields[-1].index(tag)
                tokens.append((first, first + len(fields[0])))
                tags.append((last, last + len(tag)))
            elif tokens:
                places = {"tokens": tokens, "tags": tags}
                wanted = {name: places[name] for name in columns}
                yield RawRow(text[start:end], wanted, text[gap:start])
                gap = line.start() if line is not None else end
                tokens, tags = [], []

    return "", rows()


def _json(text: str, columns: Collection[str]) -> tuple[str, Iterable[RawRow]]:
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

    return "", rows()


def _members(text: str) -> Iterator[tuple[str, _Place]]:
    """The names in a JSON object, and where their values are."""
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


def _as_it_is(value: str, before: str = "") -> str:
    return value


_JSON = _Kind(_json, json.loads, _json_value)
_KINDS = {
    ".csv": _Kind(partial(_delimited, split=_split_csv, decode=_unquoted), _unquoted, _csv_cell),
    ".tsv": _Kind(partial(_delimited, split=_split_tsv, decode=str), str, _as_it_is),
    ".jsonl": _JSON,
    ".json": _JSON,
    ".txt": _Kind(_text, str, _as_it_is),
    ".conll": _Kind(_conll, str, _as_it_is, before_copies=1),
}
