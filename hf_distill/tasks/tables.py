"""Tables of any origin as a ``datasets.Dataset``: files, saved folders and the Hub.

Nothing that is read here can run code: no scripts, no pickle.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, load_dataset, load_from_disk
from pyarrow import csv

from hf_distill.tasks.errors import TaskDataError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_DOCUMENT_START = "-DOCSTART-"


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
            names of the columns in the first line;
            a ``.jsonl`` or ``.json`` file, one object a line or a list of objects;
            a ``.parquet`` file;
            a ``.txt`` file: the column ``text`` has its lines, line breaks included;
            a ``.conll`` file: a token and its tag a line, the tag last, an empty line between
            sentences; the columns are ``tokens`` and ``tags``;
            a folder written by ``Dataset.save_to_disk``;
            the id of a data set on the Hub.
            All files but Parquet may end in ``.gz``, too.
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
    return table.with_format(None)


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


def _csv(path: Path) -> Dataset:
    return _delimited(path, csv.ParseOptions(delimiter=",", newlines_in_values=True))


def _tsv(path: Path) -> Dataset:
    return _delimited(path, csv.ParseOptions(delimiter="\t", quote_char=False))


def _delimited(path: Path, parse_options: csv.ParseOptions) -> Dataset:
    # The reader of datasets fills short lines with nothing; this one names the line.
    table = csv.read_csv(
        io.BytesIO(_read(path)),
        # One thread and one block: a type for the whole column, and line numbers in errors.
        read_options=csv.ReadOptions(use_threads=False, block_size=2**31 - 1),
        parse_options=parse_options,
        convert_options=csv.ConvertOptions(
            null_values=["", "NaN", "nan", "NA", "null"], timestamp_parsers=["never"]
        ),
    )
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskDataError(f"{path} has two columns {twice[0]!r}; rename one in the first line.")
    for field in table.schema:
        if pa.types.is_binary(field.type):
            raise TaskDataError(f"{path}: the column {field.name!r} is not text in UTF-8.")
        if pa.types.is_temporal(field.type):
            place = table.schema.get_field_index(field.name)
            table = table.set_column(place, field.name, table[field.name].cast(pa.string()))
    return Dataset(table)


def _json(path: Path) -> Dataset:
    return Dataset.from_json(str(path))


def _parquet(path: Path) -> Dataset:
    return Dataset.from_parquet(str(path))


def _text(path: Path) -> Dataset:
    return Dataset.from_text(str(path), keep_linebreaks=True)


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
    text = _read(path).decode("utf-8-sig")
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


def _read(path: Path) -> bytes:
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as file:
            return file.read()
    return path.read_bytes()


_READERS: dict[str, Callable[[Path], Dataset]] = {
    ".csv": _csv,
    ".tsv": _tsv,
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
    suffix = Path(source.removesuffix(".gz")).suffix
    if not _HUB_ID.fullmatch(source) or suffix in _READERS:
        raise FileNotFoundError(
            f"no file or folder {source!r}; name an existing path or the id of a data set on the "
            "Hub (name or owner/name)."
        )
    try:
        loaded = load_dataset(source, name=config_name, split=split, revision=revision)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"{source} is a script on the Hub, which datasets no longer runs; look for a copy of "
            "the data set as Parquet there."
        ) from error
    return _only_split(loaded, source)


def _only_split(loaded: Any, source: str) -> Dataset:
    if not isinstance(loaded, Mapping):
        return loaded
    if len(loaded) != 1:
        raise ValueError(f"{source} has the splits {sorted(loaded)}; choose one with split=…")
    return next(iter(loaded.values()))
