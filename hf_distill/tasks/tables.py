"""Tables of any origin as a ``datasets.Dataset``: files, saved folders and the Hub.

Nothing that is read here can run code: no scripts, no pickle.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset, load_from_disk

from hf_distill.console import log_rank_0
from hf_distill.files import file_hash
from hf_distill.loading import hub_tried_once
from hf_distill.tasks.columns import mixed_type
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.text_files import (
    conll_lines,
    encoding_of,
    ending,
    half_character,
    open_file,
    read_delimited,
    read_text,
    refuse_nul,
)

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_CHUNK = 10_000
_START = 1000
_JSON_KINDS = {
    str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "object"
}  # fmt: skip


def load_table(
    source: str | Path,
    *,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    keep_line_breaks: bool = False,
) -> Dataset:
    """Load a table, with the columns that it has.

    Args:
        source: One of
            a ``.csv`` (comma, quotes as in RFC 4180) or ``.tsv`` file (tab, with such quotes or
            without; see ``read_delimited``) with the names of the columns in the first line; every
            cell is text, as it is written;
            a ``.jsonl`` or ``.json`` file, one object per line or a list of objects; a column with
            values of several kinds (numbers and texts, say) is refused by whoever reads it;
            a ``.parquet`` file;
            a ``.txt`` file: the column ``text`` has its lines;
            a ``.conll`` file: a token and its tag per line, the tag last, an empty line between
            sentences; the columns are ``tokens`` and ``tags``;
            a folder written by ``Dataset.save_to_disk``;
            the id of a data set on the Hub.
            All files but Parquet may be compressed (``.gz``). Text is UTF-8, or UTF-16 or UTF-32
            with a byte order mark.
        split: the split to take. Needed when the source has several; a file has none.
        config_name: the configuration of a Hub data set.
        revision: the branch, tag or commit of a Hub data set.
        keep_line_breaks: the lines of a ``.txt`` file end with their line break.

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
        table = _from_file(path, keep_line_breaks=keep_line_breaks)
    if len(table) == 0:
        raise TaskDataError(f"{source} is empty: it has no rows.")
    check_characters(table, str(source))
    return table.with_format(None)


def evenly_spaced(examples: Dataset, most: int, name: str = "most") -> Dataset:
    """Select at most ``most`` examples at even distances: no seed, and no topic is left out.

    Data sets are often ordered by article; their first rows would all be about one thing. ``name``
    is what the error calls ``most``.
    """
    if most < 1:
        raise ValueError(f"{name}={most} must be at least 1; leave it out to use all.")
    total = len(examples)
    return examples if most >= total else examples.select([i * total // most for i in range(most)])


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


def _from_file(path: Path, *, keep_line_breaks: bool) -> Dataset:
    if path.stat().st_size == 0:
        raise TaskDataError(f"{path} is empty: it has no rows.")
    reader = _READERS.get(ending(path))
    if reader is None or (reader is _parquet and path.suffix == ".gz"):
        raise TaskDataError(
            f"{path}: data files end in {', '.join(_READERS)} (all but .parquet also with .gz); "
            "rename or convert the file."
        )
    try:
        return _text(path, keep_line_breaks) if reader is _text else reader(path)
    except TaskDataError as error:
        if str(path) in str(error):
            raise
        raise TaskDataError(f"{path}, {error}") from None
    except Exception as error:  # datasets wraps the reason differently for each reader
        reason = error.__cause__ or error
        raise TaskDataError(f"{path} cannot be read: {reason or type(reason).__name__}") from error


def _delimited(path: Path, delimiter: str) -> Dataset:
    """Read a table of texts: what a cell means is for the reader of its column to decide."""
    text = read_text(path)
    refuse_nul(path, text)
    if not text.strip("\r\n"):
        raise TaskDataError(f"{path} is empty: it has no rows.")
    table = read_delimited(text, delimiter)
    names = table.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskDataError(f"{path} has two columns {twice[0]!r}; rename one in the first line.")
    # The reader of datasets guesses types, and fills short lines with nothing.
    return Dataset(pa.table({name: pa.array(table.column(name), pa.string()) for name in names}))


def _json(path: Path, mixed: frozenset[str] = frozenset()) -> Dataset:
    """Read objects; the columns ``mixed``, whose values have no common type, as ``mixed_type``."""
    # The reader of datasets makes dates of texts that look like dates.
    rows = json_rows(path)
    parts: list[pa.Table] = []
    failed: set[str] = set()
    kinds: dict[str, dict[str, int]] = {name: {} for name in mixed}
    while chunk := list(islice(rows, _CHUNK)):
        columns = {}
        for name in dict.fromkeys(name for row in chunk for name in row):
            values = [row.get(name) for row in chunk]
            if name in mixed:
                for number, value in enumerate(values, start=len(parts) * _CHUNK):
                    kinds[name].setdefault(_JSON_KINDS.get(type(value), ""), number)
                values = [None if value is None else json.dumps(value) for value in values]
            try:
                columns[name] = _array(values)
            except (pa.ArrowException, OverflowError):
                failed.add(name)
        parts.append(pa.table(columns))
    if not parts:
        raise TaskDataError(f"{path} is empty: it has no rows.")
    for name in {name: None for part in parts for name in part.column_names}:
        fields = [part.schema.field(name) for part in parts if name in part.column_names]
        try:
            pa.unify_schemas([pa.schema([one]) for one in fields], promote_options="permissive")
        except pa.ArrowException:
            failed.add(name)
    if failed:
        return _json(path, mixed | failed)
    table = pa.concat_tables(parts, promote_options="permissive")
    for name in mixed:
        texts = table[name].combine_chunks()
        kept = pa.StructArray.from_arrays([texts], names=[mixed_type(kinds[name])])
        table = table.set_column(table.column_names.index(name), name, kept)
    return Dataset(table)


def _array(values: list[Any]) -> pa.Array:
    if any(isinstance(value, int) and value.bit_length() > 63 for value in values):
        values = [str(value) if isinstance(value, int) else value for value in values]
    return pa.array(values)


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


# Where datasets keeps what it read of a file depends on path and time, which a new file can share
# (cp -p, rsync -a, tar --mtime). The name of the configuration is part of that place.
def _parquet(path: Path) -> Dataset:
    schema = pq.read_schema(path)
    if not any(pa.types.is_string_view(kind) for kind in schema.types):
        return Dataset.from_parquet(str(path), config_name=file_hash(path))
    # Which older versions of datasets cannot read, nor tokenizers.
    plain = [
        field.with_type(pa.string()) if pa.types.is_string_view(field.type) else field
        for field in schema
    ]
    return Dataset(pq.read_table(path).cast(pa.schema(plain)))


def _text(path: Path, keep_line_breaks: bool = False) -> Dataset:
    with open_file(path) as file:
        start = file.read(_START)
        encoding = encoding_of(start)
    refuse_nul(path, start.decode(encoding, errors="ignore"))
    return Dataset.from_text(
        str(path),
        keep_linebreaks=keep_line_breaks,
        encoding=encoding,
        config_name=file_hash(path),
    )


def _conll(path: Path) -> Dataset:
    columns: dict[str, list[list[str]]] = {"tokens": [], "tags": []}
    tokens: list[str] = []
    tags: list[str] = []
    width, comments = 0, list[str]()
    doubtful, known = list[tuple[str, str]](), set[str]()
    for number, (_, line, fields) in enumerate(conll_lines(read_text(path)), start=1):
        width = width or len(fields)
        if fields and (len(fields) != width or width < 2):
            raise TaskDataError(
                f"{path}, line {number}: {line!r} has {len(fields)} columns"
                + (f", the lines before have {width}" if width > 1 else "")
                + "; each line must be a token and its tag, with a tab or a space between."
            )
        if fields:
            if fields[0] == "#" and not tokens and "\t" not in line:
                doubtful.append((f"line {number}: {line!r}", fields[-1].strip()))
            else:
                known.add(fields[-1].strip())
            tokens.append(fields[0])
            tags.append(fields[-1].strip())
        else:
            comments += [f"line {number}: {line!r}"] if line.lstrip().startswith("#") else []
            if tokens:
                columns["tokens"].append(tokens)
                columns["tags"].append(tags)
                tokens, tags = [], []
    _refuse_conll_u(path, columns["tokens"], width)
    if width > 2 and columns["tags"] and not any(map(any, columns["tags"])):
        raise TaskDataError(
            f"{path}: the last of its {width} columns, which holds the tags, is empty in every "
            "line. Remove the tabs at the ends of its lines, or add tags."
        )
    for where, tag in doubtful:
        if tag not in known:
            raise TaskDataError(
                f"{path}, {where} may be a comment or the token '#': it has as many columns as "
                f"other lines, and its tag, {tag!r}, is in none of them. Remove comments, or "
                "separate the columns by tabs."
            )
    if comments:
        log_rank_0(
            f"{path.name}: comments are left out, {len(comments)} of its lines ({comments[0]})."
        )
    return Dataset.from_dict(columns)


def _refuse_conll_u(path: Path, sentences: list[list[str]], width: int) -> None:
    """Refuse CoNLL-U, whose first column numbers the tokens."""
    first = sentences[0] if sentences else []
    if width == 10 and first == [str(number) for number in range(1, len(first) + 1)]:
        raise TaskDataError(
            f"{path} is CoNLL-U: ten columns, of which the first numbers the tokens. Write a file "
            "with two columns, the token and the tag to learn."
        )


_READERS: dict[str, Callable[[Path], Dataset]] = {
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
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
