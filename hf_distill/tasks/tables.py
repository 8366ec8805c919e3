"""Tables of any origin as a ``datasets.Dataset``: files, saved folders and the Hub.

Nothing that is read here can run code: no scripts, no pickle.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset, load_from_disk
from pyarrow import csv as arrow_csv

from hf_distill.loading import hub_tried_once
from hf_distill.tasks.errors import TaskDataError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_DOCUMENT_START = "-DOCSTART-"
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CHUNK = 10_000
# Any cell without quotes; a quoted one, and what stands between its end and the next separator.
_CSV_CELL = re.compile(r'[^",\r\n][^,\r\n]*|"([^"]*(?:""[^"]*)*)("[^,\r\n]*|\Z)')


def load_table(
    source: str | Path,
    *,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """Load a table, with the columns that it has.

    Args:
        source: One of
            a ``.csv`` (comma, quotes as in RFC 4180) or ``.tsv`` file (tab, no quotes) with the
            names of the columns in the first line; every cell is text, as it is written;
            a ``.jsonl`` or ``.json`` file, one object per line or a list of objects;
            a ``.parquet`` file;
            a ``.txt`` file: the column ``text`` has its lines, line breaks included;
            a ``.conll`` file: a token and its tag per line, the tag last, an empty line between
            sentences; the columns are ``tokens`` and ``tags``;
            a folder written by ``Dataset.save_to_disk``;
            the id of a data set on the Hub.
            All files but Parquet may be compressed (``.gz``). Text is UTF-8, or UTF-16 or UTF-32
            with a byte order mark.
        split: the split to take. Needed when the source has several; a file has none.
        config_name: the configuration of a Hub data set.
        revision: the branch, tag or commit of a Hub data set.

    Returns:
        At least one row.

    Raises:
        TaskDataError: the file's name has another ending, it cannot be read, is empty or has
            lines of unequal length; the message names the line.
        FileNotFoundError: ``source`` looks like a path and nothing is there.
        ValueError: ``split`` or ``config_name`` does not fit the source.
    """
    path = Path(source).expanduser()
    if not path.exists():
        table = _from_hub(str(source), split, config_name, revision)
    elif config_name is not None or revision is not None:
        raise ValueError(
            f"config_name={config_name!r} and revision={revision!r} are for data sets on the Hub, "
            f"but {path} is on this machine; leave both out."
        )
    elif path.is_dir():
        table = _from_folder(path, split)
    elif split is not None:
        raise ValueError(f"{path} is a file and has no splits; leave out split={split!r}.")
    else:
        table = _from_file(path)
    if len(table) == 0:
        raise TaskDataError(f"{source} is empty: it has no rows.")
    check_characters(table, str(source))
    return table.with_format(None)


def check_characters(table: Dataset, source: str) -> None:
    """Check that the texts of Arrow data are UTF-8, which nothing else does until they are read.

    Raises:
        TaskDataError: names the column and the row.
    """
    for name in table.column_names:
        start = 0
        for chunk in table.data.column(name).chunks:
            try:
                chunk.validate(full=True)
            except pa.ArrowInvalid as error:
                raise TaskDataError(
                    f"{source}: the column {name!r} holds text that is not UTF-8 ({error}, counted "
                    f"from row {start}), such as half a character; write the data again."
                ) from error
            start += len(chunk)


def _from_file(path: Path) -> Dataset:
    if path.stat().st_size == 0:
        raise TaskDataError(f"{path} is empty: it has no rows.")
    name = path.name.lower().removesuffix(".gz")
    reader = _READERS.get(Path(name).suffix)
    if reader is None or (reader is _parquet and path.suffix == ".gz"):
        raise TaskDataError(
            f"{path}: data files end in {', '.join(_READERS)} (all but .parquet also with .gz); "
            "rename or convert the file."
        )
    try:
        return reader(path)
    except TaskDataError:
        raise
    except Exception as error:  # datasets wraps the reason differently for each reader
        reason = error.__cause__ or error
        raise TaskDataError(f"{path} cannot be read: {reason or type(reason).__name__}") from error


def _delimited(path: Path, delimiter: str, *, quotes: bool) -> Dataset:
    """Read a table of texts: what a cell means is for the reader of its column to decide."""
    text = read_text(path)
    content = text.encode()
    if b"\0" in content[:100]:
        raise TaskDataError(
            f"{path} looks like UTF-16 without a byte order mark; save it as UTF-8 (spreadsheets "
            "call it “CSV UTF-8”)."
        )
    quoting: Any = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    names = next((row for row in rows if row), [])
    if not names:
        raise TaskDataError(f"{path} is empty: it has no rows.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskDataError(f"{path} has two columns {twice[0]!r}; rename one in the first line.")
    other = next((one for one in ";\t,|" if len(names) == 1 and one in names[0]), None)
    if other not in (None, delimiter):
        raise TaskDataError(
            f"{path} has the single column {names[0]!r}, in which {other!r} seems to separate "
            "cells; .csv files need commas, and .tsv files tabs."
        )
    if quotes:
        _check_quotes(path, text)
    # The reader of datasets guesses types, and fills short lines with nothing.
    table = arrow_csv.read_csv(
        io.BytesIO(content),
        # One thread and one block, for line numbers in errors.
        read_options=arrow_csv.ReadOptions(use_threads=False, block_size=2**31 - 1),
        parse_options=arrow_csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if quotes else False, newlines_in_values=quotes
        ),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    if table.column_names != names:
        raise TaskDataError(f"{path}: the names of the columns in the first line cannot be read.")
    return Dataset(table)


def _check_quotes(path: Path, text: str) -> None:
    """Check that no stray quote makes one cell of several rows, which Arrow reads in silence."""
    for cell in _CSV_CELL.finditer(text) if '"' in text else ():
        content, end = cell.groups()
        if end == "" or (end not in (None, '"') and {"\n", "\r"} & {*content}):
            line = len(re.findall(r"\r\n|\n|\r", text[: cell.start()])) + 1
            raise TaskDataError(
                f"{path}, line {line}: the quote before {content[:40]!r} is not closed at the end "
                "of its cell, so the rows after it cannot be told apart; close it, and write "
                "quotes inside a quoted cell twice."
            )


def _json(path: Path) -> Dataset:
    # The reader of datasets makes dates of texts that look like dates.
    rows = json_rows(path)
    parts = []
    while chunk := list(islice(rows, _CHUNK)):
        names = dict.fromkeys(name for row in chunk for name in row)
        parts.append(
            pa.table({name: _array(path, name, [row.get(name) for row in chunk]) for name in names})
        )
    if not parts:
        raise TaskDataError(f"{path} is empty: it has no rows.")
    return Dataset(pa.concat_tables(parts, promote_options="permissive"))


def _array(path: Path, name: str, values: list[Any]) -> pa.Array:
    if any(isinstance(value, int) and value.bit_length() > 63 for value in values):
        values = [str(value) if isinstance(value, int) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        reason = f"{error}".partition("\n")[0]
        raise TaskDataError(
            f"{path}: the values of {name!r} are not all of one kind that can be read: {reason}"
        ) from error


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one object per line, or with a list of objects.

    Raises:
        TaskDataError: it holds something else; names the line.
    """
    text = read_text(path)
    escapes = re.search(r"\\u[dD][89a-fA-F]", text)
    if re.match(r"\s*\[", text):
        rows: Iterable[Any] = json.loads(text, object_pairs_hook=_object)
    else:
        rows = _json_lines(path, text)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise TaskDataError(f"{path}: value {number} is not an object with named columns.")
        half = half_character(json.dumps(row, ensure_ascii=False)) if escapes else None
        if half:
            raise TaskDataError(
                f"{path}: row {number} holds {half} of its JSON; write the whole character, or "
                "leave it out."
            )
        yield row


def half_character(text: str) -> str | None:
    """Describe the first half of a surrogate pair in a text, which has no form in UTF-8.

    JSON can hold one as an escape, and an argument in another encoding becomes some.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character, {text[error.start]!r}, at place {error.start}"
    return None


def _json_lines(path: Path, text: str) -> Iterator[Any]:
    # Not splitlines(): texts may hold other line separators as they are.
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line, object_pairs_hook=_object)
        except (json.JSONDecodeError, TaskDataError) as error:
            raise TaskDataError(
                f"{path} cannot be read: line {number} is not a JSON object ({error}); a JSON file "
                "has one object per line, or is one list of objects."
            ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskDataError(f"the key {twice!r} occurs twice in one object")
    return found


def _parquet(path: Path) -> Dataset:
    schema = pq.read_schema(path)
    if not any(pa.types.is_string_view(kind) for kind in schema.types):
        return Dataset.from_parquet(str(path))
    # Which older versions of datasets cannot read, nor tokenizers.
    plain = [
        field.with_type(pa.string()) if pa.types.is_string_view(field.type) else field
        for field in schema
    ]
    return Dataset(pq.read_table(path).cast(pa.schema(plain)))


def _text(path: Path) -> Dataset:
    with open_file(path) as file:
        encoding = _encoding(file.read(4))
    return Dataset.from_text(str(path), keep_linebreaks=True, encoding=encoding)


def _conll(path: Path) -> Dataset:
    columns: dict[str, list[list[str]]] = {"tokens": [], "tags": []}
    for tokens, tags in _sentences(path):
        columns["tokens"].append(tokens)
        columns["tags"].append(tags)
    return Dataset.from_dict(columns)


def _sentences(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    tokens: list[str] = []
    tags: list[str] = []
    width = 0
    text = read_text(path)
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        # Not split() where there are tabs: some tokens of real data are blanks of other kinds.
        fields = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if not line.strip() or fields[0] == _DOCUMENT_START:
            if tokens:
                yield tokens, tags
            tokens, tags = [], []
            continue
        width = width or len(fields)
        if len(fields) != width or width < 2:
            raise TaskDataError(
                f"{path}, line {number}: {line!r} has {len(fields)} columns"
                + (f", the lines before have {width}" if width > 1 else "")
                + "; each line must be a token and its tag, with a tab or a space between."
            )
        tokens.append(fields[0])
        tags.append(fields[-1].strip())


def read_text(path: Path) -> str:
    """Read a text file, compressed or not.

    Raises:
        TaskDataError: it is not in UTF-8, nor begins with the mark of UTF-16 or UTF-32.
    """
    try:
        with open_file(path) as file:
            content = file.read()
    except EOFError as error:
        raise TaskDataError(f"{path}: the gzip file is truncated; copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TaskDataError(f"{path} is not a sound gzip file: {error}") from error
    encoding = _encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TaskDataError(
            f"{path}, line {line} is not text in {encoding.removesuffix('-sig').upper()}; save the "
            "file as UTF-8 (spreadsheets call it “CSV UTF-8”)."
        ) from error


def _encoding(content: bytes) -> str:
    marked = (name for mark, name in _ENCODINGS.items() if content.startswith(mark))
    return next(marked, "utf-8-sig")


def open_file(path: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


_READERS: dict[str, Callable[[Path], Dataset]] = {
    ".csv": partial(_delimited, delimiter=",", quotes=True),
    ".tsv": partial(_delimited, delimiter="\t", quotes=False),
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _text,
    ".conll": _conll,
}


def _from_folder(path: Path, split: str | None) -> Dataset:
    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise TaskDataError(
            f"the folder {path} holds no data set; name a folder written by Dataset.save_to_disk, "
            "or a file inside the folder."
        )
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # a damaged folder fails in many ways inside datasets
        raise TaskDataError(f"the data set in {path} cannot be read: {error}") from error
    if split is None:
        return _only_split(loaded, str(path))
    if not isinstance(loaded, Mapping):
        raise ValueError(f"the data set in {path} has no splits; leave out split={split!r}.")
    if split not in loaded:
        raise ValueError(f"split={split!r} is not in {path}; splits there: {sorted(loaded)}.")
    return loaded[split]


def _from_hub(
    source: str, split: str | None, config_name: str | None, revision: str | None
) -> Dataset:
    if not _HUB_ID.fullmatch(source) or Path(source).suffix in {*_READERS, ".gz", ".arrow"}:
        raise FileNotFoundError(
            f"no file or folder {source!r}; name an existing path or the id of a data set on the "
            "Hub (name or owner/name)."
        )
    try:
        with hub_tried_once(source):
            loaded = load_dataset(source, name=config_name, split=split, revision=revision)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"{source} is a script on the Hub, which datasets no longer runs; the Hub also keeps "
            "its data as Parquet: choose revision='refs/convert/parquet'."
        ) from error
    return _only_split(loaded, source)


def _only_split(loaded: Any, source: str) -> Dataset:
    if not isinstance(loaded, Mapping):
        return loaded
    if len(loaded) != 1:
        raise ValueError(f"{source} has the splits {sorted(loaded)}; choose one with split=…")
    return next(iter(loaded.values()))
