"""Augmented copies of the rows of any data set: labels carried, tags aligned."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from datasets.fingerprint import get_temporary_cache_files_directory

from hf_distill.augmentation.drawing import Copy, copy_marker, distinct_copies, moved
from hf_distill.augmentation.options import AugmentationOptions, CandidateOptions
from hf_distill.augmentation.parts import Item, StoredCandidates
from hf_distill.augmentation.processes import Rank, computed_candidates
from hf_distill.augmentation.substitution import WordSubstituter
from hf_distill.augmentation.words import Span, word_spans
from hf_distill.files import write_atomically
from hf_distill.tasks.columns import describe, is_list, is_text
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.question_answering.records import misplaced, row_answers

_OUTSIDE = "O"
_ROWS = 1000


class _Text(NamedTuple):
    """A text of a row, places where its words must stay, and where the words of a list begin."""

    item: Item
    keep: Sequence[tuple[int, int]] = ()
    starts: Sequence[int] | None = None


class _Version(NamedTuple):
    """A row or a copy of it, and by column what is not as in the row."""

    row: int
    changes: Mapping[str, Any]


def augment_dataset(
    dataset: Dataset,
    text_columns: Sequence[str],
    *,
    tag_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    substituter: WordSubstituter | None = None,
    work_folder: str | Path | None = None,
    cache_file_name: str | Path | None = None,
    **options: Any,
) -> Dataset | None:
    """Make a data set with augmented copies of the rows of another.

    The copies of a row come right after it. In each, words of the text columns are replaced, in
    every column for itself; everything else, labels above all, is as in the row.

    Args:
        dataset: the rows. Augment the training split only.
        text_columns: the columns with texts, or with lists of words, of which each is replaced by
            one word, so that tags and other lists stay aligned.
        tag_column: the list of tags of a list of words. Words with a tag other than ``O`` are
            kept: another name is often of another kind.
        answer_column: answers as in SQuAD (``text`` and ``answer_start``) in the first of
            ``text_columns``. They are kept and their places follow.
        id_column: a column that names the rows: copy 3 of ``q`` is ``q-aug3``, or ``q-aug2.3``
            where some rows are copies already; copies of rows with whole numbers get the numbers
            after the largest. By default ``id``, if there is such a column.
        substituter: finds the candidates. By default it is made from ``options``.
        work_folder: holds what was computed until all is; by default a temporary folder. A run
            with ``resume=True`` in the same folder resumes from it.
        cache_file_name: the Arrow file to write; by default a temporary one of ``datasets``,
            which is deleted when Python ends.
        **options: those of ``AugmentationOptions``.

    Returns:
        The rows and their copies, memory-mapped; ``None`` in all processes of ``accelerate
        launch`` but the first.

    Raises:
        TaskDataError: a column is not there or holds something else, or a row has more or fewer
            tags than words.
        TypeError: ``dataset`` is something else, such as a dictionary of splits.
        ValueError: an option is wrong, or is not that of the run to resume.
        OSError: the model or a file cannot be read, or a file not be written.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}; pass one datasets.Dataset, such as the "
            "training split."
        )
    settings = AugmentationOptions(**options)
    fixed = {*(f.name for f in fields(CandidateOptions)), "device", "resume"}
    if substituter is not None and not fixed.isdisjoint(options):
        given = ", ".join(name for name in options if name in fixed)
        raise ValueError(
            f"{given}: a substituter is passed, which cannot be changed or compared with that of "
            "an earlier run; pass either, not both."
        )
    if work_folder is None and (settings.resume or Rank.here().of > 1):
        raise ValueError(
            "work_folder=None: a run to resume, or of several processes, needs a folder that is "
            "known to all; name one."
        )
    table = dataset.with_format(None)
    columns = _Columns.of(table, text_columns, tag_column, answer_column, id_column)
    needed = table.select_columns(columns.names)
    with ExitStack() as stack:
        if work_folder is None:
            work_folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-distill-"))
        candidates = stack.enter_context(
            computed_candidates(
                Path(work_folder).expanduser() / "candidates",
                lambda: (text.item for row in needed for text in columns.texts(row) if text),
                settings,
                substituter,
            )
        )
        if candidates is None:
            return None
        rows = columns.versions(needed, candidates, settings)
        if cache_file_name is None:
            folder = tempfile.mkdtemp(dir=get_temporary_cache_files_directory())
            cache_file_name = Path(folder) / "augmented.arrow"
        path = write_atomically(
            Path(cache_file_name).expanduser(),
            lambda temporary: _write(temporary, table, rows),
        )
        return Dataset.from_file(str(path))


def _write(path: Path, table: Dataset, versions: Iterator[_Version]) -> None:
    """Write versions of the rows of a table; what did not change is carried as Arrow has it."""
    arrow = table.with_format("arrow")
    with ArrowWriter(features=table.features, path=str(path)) as writer:
        while batch := list(islice(versions, _ROWS)):
            rows = arrow[[version.row for version in batch]]
            for name in {name: None for version in batch for name in version.changes}:
                values = [
                    version.changes.get(name, old)
                    for version, old in zip(batch, rows[name].to_pylist(), strict=True)
                ]
                place = rows.column_names.index(name)
                kind = rows.schema.field(name).type
                rows = rows.set_column(place, name, pa.array(values, kind))
            writer.write_table(rows)
        writer.finalize()


class _Columns(NamedTuple):
    """The role of each column, checked."""

    texts_in: tuple[str, ...]
    tags: str | None
    outside: Any
    answers: str | None
    ids: str | None

    @classmethod
    def of(
        cls,
        table: Dataset,
        text_columns: Sequence[str],
        tag_column: str | None,
        answer_column: str | None,
        id_column: str | None,
    ) -> _Columns:
        if isinstance(text_columns, str):
            text_columns = [text_columns]
        features = table.features
        named = {
            "text_columns": text_columns,
            "tag_column": [tag_column],
            "answer_column": [answer_column],
            "id_column": [id_column],
        }
        for option, columns in named.items():
            for column in columns:
                if column is not None and column not in features:
                    raise TaskDataError(
                        f"{option}={column!r}: the data has no such column; it has "
                        f"{', '.join(features)}."
                    )
        if not text_columns:
            raise TaskDataError(
                f"text_columns is empty; name one or more of {', '.join(features)}."
            )
        for column in text_columns:
            feature = features[column]
            if not is_text(feature) and not (is_list(feature) and is_text(feature.feature)):
                raise TaskDataError(
                    f"text_columns={column!r} holds {describe(feature)}, neither texts nor lists "
                    "of words."
                )
        if tag_column is not None and not any(is_list(features[c]) for c in text_columns):
            raise TaskDataError(
                f"tag_column={tag_column!r} needs a column with lists of words in text_columns."
            )
        if id_column is None and (
            features.get("id") == Value("string") or _is_whole_number(features.get("id"))
        ):
            id_column = "id"
        if id_column is not None and not (
            is_text(features[id_column]) or _is_whole_number(features[id_column])
        ):
            raise TaskDataError(
                f"id_column={id_column!r} holds {describe(features[id_column])}; it must hold "
                "text or whole numbers, for copies have names such as 'q-aug3' or new numbers."
            )
        return cls(
            tuple(dict.fromkeys(text_columns)),
            tag_column,
            _outside(features, tag_column),
            answer_column,
            id_column,
        )

    @property
    def names(self) -> list[str]:
        """The columns that change, or that decide what changes."""
        names = (*self.texts_in, self.tags, self.answers, self.ids)
        return list(dict.fromkeys(name for name in names if name is not None))

    def texts(self, row: Mapping[str, Any]) -> list[_Text | None]:
        """Return the texts of a row; ``None`` for one that is missing."""
        found: list[_Text | None] = []
        for index, column in enumerate(self.texts_in):
            value = row[column]
            if value is None:
                found.append(None)
            elif isinstance(value, str):
                kept = self.answers is not None and index == 0
                places = self._answer_places(row, str(self.answers)) if kept else []
                found.append(_Text(Item(value), places))
            else:
                found.append(self._words(row, column))
        return found

    def _words(self, row: Mapping[str, Any], column: str) -> _Text:
        words = [word or "" for word in row[column]]
        starts = list(accumulate((len(word) + 1 for word in words), initial=0))[:-1]
        spans = [Span(start, start + len(word)) for start, word in zip(starts, words, strict=True)]
        keep: list[Span] = []
        if self.tags is not None:
            tags = row[self.tags]
            if tags is None or len(tags) != len(words):
                raise TaskDataError(
                    f"A row has {len(words)} words ({column}) and {len(tags or ())} tags "
                    f"({self.tags}); each word needs one tag."
                )
            keep = [s for s, tag in zip(spans, tags, strict=True) if tag != self.outside]
        whole = [s for s, w in zip(spans, words, strict=True) if word_spans(w) == [(0, len(w))]]
        return _Text(Item(" ".join(words), whole), keep, starts)

    def _answer_places(self, row: Mapping[str, Any], column: str) -> list[tuple[int, int]]:
        if row[column] is None:
            return []
        texts, starts = row_answers(row, "A row", column)
        wrong = misplaced(row[self.texts_in[0]], texts, starts)
        if wrong:
            raise TaskDataError(f"An answer ({column}) is not in {self.texts_in[0]!r}: {wrong}.")
        return [(start, start + len(text)) for text, start in zip(texts, starts, strict=True)]

    def versions(
        self, table: Dataset, candidates: StoredCandidates, settings: AugmentationOptions
    ) -> Iterator[_Version]:
        """Make the rows and their copies."""
        name = self._copy_names(table, settings.copies)
        for number, row in enumerate(table):
            if settings.include_original:
                yield _Version(number, {})
            texts = self.texts(row)
            copies = distinct_copies(
                [text.item.text if text else "" for text in texts],
                [candidates(text.item) if text else [] for text in texts],
                [text.keep if text else [] for text in texts],
                copies=settings.copies,
                replace_probability=settings.replace_probability,
                seed=settings.seed,
            )
            for copy in copies:
                changes = self._changes(row, texts, copy)
                if self.ids is not None and row[self.ids] is not None:
                    changes[self.ids] = name(row[self.ids], number, copy.number)
                yield _Version(number, changes)

    def _copy_names(self, table: Dataset, copies: int) -> Callable[[Any, int, int], Any]:
        """Return what maps the id of a row, its number and a copy's to the id of the copy."""
        if self.ids is None or not _is_whole_number(table.features[self.ids]):
            marker = "" if self.ids is None else copy_marker(row[self.ids] for row in table)
            return lambda name, row, copy: f"{name}-{marker}{copy}"
        kind = table.features[self.ids].dtype
        largest = max((row[self.ids] for row in table if row[self.ids] is not None), default=0)
        if largest + copies * len(table) > np.iinfo(kind).max:
            raise TaskDataError(
                f"id_column={self.ids!r} holds {kind}, which is too small for the ids of the "
                f"copies, the {copies * len(table):,} numbers after {largest}; make it text, or "
                "int64."
            )
        return lambda name, row, copy: largest + 1 + (copy - 1) * len(table) + row

    def _changes(
        self, row: Mapping[str, Any], texts: Sequence[_Text | None], copy: Copy
    ) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        for column, text, new, replacements in zip(
            self.texts_in, texts, copy.texts, copy.replacements, strict=True
        ):
            if text is None:
                continue
            changed[column] = new
            if text.starts is not None:
                words = {one.start: one.word for one in replacements}
                old = zip(text.starts, row[column], strict=True)
                changed[column] = [words.get(start, word) for start, word in old]
        if self.answers is not None and row[self.answers] is not None:
            answers = row[self.answers]
            if isinstance(answers, list):
                changed[self.answers] = [
                    {**one, "answer_start": moved(one["answer_start"], copy.replacements[0])}
                    for one in answers
                ]
            else:
                starts = [moved(start, copy.replacements[0]) for start in answers["answer_start"]]
                changed[self.answers] = {**answers, "answer_start": starts}
        return changed


def _is_whole_number(feature: Any) -> bool:
    return isinstance(feature, Value) and "int" in feature.dtype


def _outside(features: Features, tag_column: str | None) -> Any:
    """Find the tag of words that are not part of an entity."""
    if tag_column is None:
        return None
    feature = features[tag_column]
    if is_list(feature):
        if isinstance(feature.feature, ClassLabel) and _OUTSIDE in feature.feature.names:
            return feature.feature.str2int(_OUTSIDE)
        if is_text(feature.feature):
            return _OUTSIDE
    raise TaskDataError(
        f"tag_column={tag_column!r} holds {describe(feature)}; it must hold lists of tags by name, "
        f"one of them {_OUTSIDE!r}. Leave it out for other lists: they are carried as they are."
    )
