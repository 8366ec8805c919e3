"""Text of data files, and its division into rows and cells."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from hf_distill.tasks.errors import TaskDataError

_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")
_ENCLOSED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
# Any cell without quotes; or a quoted one, what follows its end, and the next separator.
_CELLS = {
    delimiter: re.compile(
        rf"({_ENCLOSED.pattern}([^{delimiter}\r\n]*)|[^\"{delimiter}\r\n][^{delimiter}\r\n]*|)"
        rf"({delimiter}|\r\n|\n|\r|\Z)"
    )
    for delimiter in ",\t"
}
# A cell with at least one \" inside, if that does not end it.
_ESCAPED = {
    delimiter: re.compile(
        rf'(?<![^{delimiter}\r\n])"[^"\\]*(?:\\[^"][^"\\]*)*\\"[^"\\]*(?:\\.[^"\\]*)*"'
        rf"(?=[ ]*(?:[{delimiter}\r\n]|\Z))",
        re.DOTALL,
    )
    for delimiter in ",\t"
}
_NAMES = {",": "comma", "\t": "tab"}
_DOCUMENT_START = "-DOCSTART-"


def ending(path: Path) -> str:
    """Return the ending of a file's name that tells its kind, in lower case and without ``.gz``."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def open_file(path: Path) -> gzip.GzipFile | IO[bytes]:
    """Open a file to read, compressed or not."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def read_text(path: Path) -> str:
    """Read a text file, compressed or not.

    Raises:
        TaskDataError: it is not in UTF-8 and does not begin with the mark of UTF-16 or UTF-32.
    """
    try:
        with open_file(path) as file:
            content = file.read()
    except EOFError as error:
        raise TaskDataError(f"{path}: the gzip file is truncated; copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TaskDataError(f"{path} is not a sound gzip file: {error}") from error
    encoding = encoding_of(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TaskDataError(
            f"{path}, line {line} is not text in {encoding.removesuffix('-sig').upper()}; save the "
            "file as UTF-8 (spreadsheets call it “CSV UTF-8”)."
        ) from error


def encoding_of(content: bytes) -> str:
    """Return the encoding that the first bytes of a file mark, else UTF-8."""
    marked = (name for mark, name in _ENCODINGS.items() if content.startswith(mark))
    return next(marked, "utf-8-sig")


def refuse_nul(path: Path, text: str) -> None:
    """Refuse text with the character NUL, which other encodings leave where they are not marked.

    Raises:
        TaskDataError: names the first line with one.
    """
    place = text.find("\0")
    if place >= 0:
        raise TaskDataError(
            f"{path}, line {text.count(chr(10), 0, place) + 1} has the character NUL: the file "
            "looks like UTF-16 without a byte order mark, or is damaged; save it as UTF-8 "
            "(spreadsheets call it “CSV UTF-8”)."
        )


def half_character(text: str) -> str | None:
    """Describe the first half of a surrogate pair in a text, which has no form in UTF-8.

    JSON can hold one as an escape, and an argument in another encoding becomes some.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character, {text[error.start]!r}, at place {error.start}"
    return None


class Delimited(NamedTuple):
    """A table of cells.

    Attributes:
        head: the text of the first line, line break included.
        names: the names of the columns.
        rows: the cells of each row as they are written, quotes included.
        quoted: whether quotes enclose cells; otherwise they are letters.
        delimiter: what separates cells.
    """

    head: str
    names: list[str]
    rows: list[list[str]]
    quoted: bool
    delimiter: str

    def column(self, name: str) -> list[str]:
        """Return what the cells of a column mean."""
        number = self.names.index(name)
        return [
            self.decode(row[number]) if row[number].startswith('"') else row[number]
            for row in self.rows
        ]

    def decode(self, cell: str) -> str:
        """Return what a cell means."""
        found = _ENCLOSED.match(cell) if self.quoted else None
        return found[1].replace('""', '"') + cell[found.end() :] if found else cell

    def encode(self, value: str, before: str) -> str:
        """Return how a value is written in the cell that ``before`` was in."""
        if self.quoted and (before.startswith('"') or {*'"\r\n', self.delimiter} & {*value}):
            return '"' + value.replace('"', '""') + '"'
        return value


def read_delimited(text: str, delimiter: str) -> Delimited:
    r"""Divide a table into cells.

    In files with commas quotes enclose cells (RFC 4180). Files with tabs are written with such
    quotes (by pandas, ``csv`` and spreadsheets) or without (GLUE). Quotes enclose cells there if
    each of them can: it is at the edge of a cell or doubled, and all rows have as many cells as the
    first line. If quotes can also all be letters, they enclose cells where the names in the first
    line are quoted, or where no cell is quoted without need.

    Raises:
        TaskDataError: it has no rows of equal length, a quote is not closed or written as
            ``\"``, or quotes can be read in both ways; names the line.
    """
    if '"' not in text:
        return _divided(text, delimiter, quoted=delimiter == ",")
    letters = quoted = problem = None
    try:
        quoted = _divided(text, delimiter, quoted=True)
    except TaskDataError as error:
        problem = error
    if delimiter != ",":
        try:
            letters = _divided(text, delimiter, quoted=False)
        except TaskDataError as error:
            problem = error
    table = quoted if delimiter == "," else letters
    rows = enumerate(quoted.rows if quoted else ())
    cells = [(row, cell) for row, line in rows for cell in line if '"' in cell]
    names = [name for name in (table.names if table else ()) if '"' in name]
    well_formed = all(map(_ENCLOSED.fullmatch, [*names, *(cell for _, cell in cells)]))
    if quoted is None or not well_formed:
        _check_escapes(text, delimiter, anywhere=letters is None)
        if table is None:
            raise problem or AssertionError
        return table
    if letters is None or len(names) == len(letters.names):
        return quoted
    inner = slice(None) if len(quoted.names) == 1 else slice(1, -1)  # csv writes a lone "" so
    for row, cell in cells:
        if '""' not in cell[inner]:
            raise TaskDataError(
                f"row {row}: the quotes around {cell[1:41]!r} may enclose the cell or belong to "
                "its text. Save the data as .csv or .jsonl; or quote all cells, those of the first "
                "line included, and write quotes inside a cell twice."
            )
    return quoted


def _divided(text: str, delimiter: str, *, quoted: bool) -> Delimited:
    lines: list[list[str]] = []
    head = text
    for start, cells in (_quoted_lines if quoted else _plain_lines)(text, delimiter):
        if len(lines) == 1:
            head = text[:start]
        if lines and len(cells) != len(lines[0]):
            remedy = f"put double quotes around each cell that holds a {_NAMES[delimiter]}"
            if len(cells) < len(lines[0]):
                remedy = "write a separator for each cell that is empty"
            raise TaskDataError(
                f"line {line_number(text, start)} does not have the {len(lines[0])} cells of the "
                f"first line but {len(cells)}: {text[start : start + 60]!r}; {remedy}."
            )
        lines.append(cells)
        other = next((one for one in ";\t,|" if len(lines[0]) == 1 and one in lines[0][0]), None)
        if other not in (None, delimiter):
            raise TaskDataError(
                f"line 1 has the single column {lines[0][0]!r}, in which {other!r} seems to "
                "separate cells; .csv files need commas, and .tsv files tabs."
            )
    table = Delimited(head, [], lines[1:], quoted, delimiter)
    return table._replace(names=[table.decode(cell) for cell in lines[0]])


def _check_escapes(text: str, delimiter: str, *, anywhere: bool) -> None:
    """Refuse quotes that a backslash escapes; if not ``anywhere``, in a line and a cell alone."""
    for found in _ESCAPED[delimiter].finditer(text):
        if anywhere or not {"\n", "\r", delimiter} & {*found[0]}:
            cell = " ".join(found[0].splitlines())[:60]
            raise TaskDataError(
                f"line {line_number(text, found.start())}: the quotes inside {cell} are "
                'written as \\"; write each of them twice, "" instead of \\", or save the data as '
                ".jsonl."
            )


def _plain_lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the place and the cells of each line, empty ones left out."""
    for line in _LINE.finditer(text):
        if line[1]:
            yield line.start(), line[1].split(delimiter)


def _quoted_lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the place and the cells of each row, whose cells may hold line breaks."""
    start = place = 0
    cells: list[str] = []
    for found in _CELLS[delimiter].finditer(text):
        cell, content, rest, separator = found.groups()
        # A stray quote must not make one cell of several rows.
        if found.start() != place or (rest and {"\n", "\r"} & {*content}):
            raise TaskDataError(
                f"line {line_number(text, place)}: the quote before "
                f"{text[place + 1 : place + 41]!r} is not closed at the end of its cell, so the "
                "rows after it cannot be told apart; close it, and write quotes inside a quoted "
                "cell twice."
            )
        cells.append(cell)
        place = found.end()
        if separator != delimiter:
            if cells != [""]:
                yield start, cells
            start, cells = place, []


def line_number(text: str, place: int) -> int:
    """Return the number of the line with a place, counted from 1."""
    return len(re.findall(r"\r\n|\n|\r", text[:place])) + 1


def conll_lines(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the place, text and fields of each line; between sentences and at the end no fields.

    A line in front of a sentence whose first word is # is a comment, and has no fields either, if
    their number is not that of the lines with tokens. Lines end with a line feed, or with a
    carriage return where the text has no line feed.
    """
    lines: list[tuple[int, str, list[str]]] = []
    place, line_break = 0, "\n" if "\n" in text else "\r"
    for line in text.split(line_break):
        content = line.rstrip("\r")
        # Not split() where there are tabs: some tokens of real data are blanks of other kinds.
        fields = content.split("\t") if "\t" in content else content.split()
        between = not content.strip() or fields[0] == _DOCUMENT_START
        lines.append((place, content, [] if between else fields))
        place += len(line) + 1
    width = next((len(fields) for _, _, fields in lines if fields and fields[0] != "#"), None)
    begins = True
    for start, content, fields in lines:
        comment = begins and content.split()[:1] == ["#"] and len(fields) != (width or len(fields))
        begins = comment or not fields
        yield start, content, [] if comment else fields
    yield place, "", []
