"""Augmented copies of the rows of any data set: labels carried, tags aligned."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from datasets.fingerprint import get_temporary_cache_files_directory

from hf_distill.augmentation.drawing import Replacement, apply, copy_marker, draw, moved
from hf_distill.augmentation.parts import Item, StoredCandidates
from hf_distill.augmentation.processes import Rank, computed_candidates
from hf_distill.augmentation.substitution import WordSubstituter, check_probability
from hf_distill.augmentation.words import Span, word_spans
from hf_distill.files import write_atomically
from hf_distill.tasks.columns import describe, is_list, is_text
from hf_distill.tasks.errors import TaskDataError

_OUTSIDE = "O"
_ROWS = 1000


class _Text(NamedTuple):
    """What is replaced in a column of a row: a text, and where its words must stay."""

    item: Item
    keep: list[tuple[int, int]]
    words: int | None
    """How many words it has, if the column holds lists of them."""


class _Version(NamedTuple):
    """A row, or a copy of it."""

    row: int
    changes: Mapping[str, Any]
    """By column, what is not as in the row."""


def augment_dataset(
    dataset: Dataset,
    text_columns: Sequence[str],
    *,
    tag_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    multiplication_factor: int = 20,
    replace_probability: float = 0.4,
    include_original: bool = True,
    seed: int = 42,
    substituter: WordSubstituter | None = None,
    num_proc: int = 1,
    resume: bool = False,
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
        id_column: a column of strings that names the rows: copy 3 of ``q`` is ``q-aug3``, or
            ``q-aug2.3`` where some rows are copies already. By default ``id``, if there is such a
            column.
        multiplication_factor: how many versions of each row there are, original included. There
            are fewer where copies come out the same.
        replace_probability: that of a word to be replaced.
        include_original: keep the rows themselves, too.
        seed: another one gives other copies.
        substituter: finds the candidates. By default it is made from ``options``.
        num_proc: processes to compute in. Under ``accelerate launch`` its processes share the
            work instead.
        resume: go on with what an interrupted run in the same ``work_folder`` had computed.
        work_folder: holds what was computed until all is; by default a temporary folder.
        cache_file_name: the Arrow file to write; by default a temporary one of ``datasets``,
            which is deleted when Python ends.
        **options: as for ``WordSubstituter.from_pretrained``.

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
    check_probability(replace_probability)
    if multiplication_factor < 1:
        raise ValueError(f"multiplication_factor={multiplication_factor} must be at least 1.")
    if substituter is not None and (options or resume):
        given = ", ".join([*options, *["resume"] * resume])
        raise ValueError(
            f"{given}: a substituter is passed, which cannot be changed or compared with that of "
            "an earlier run; pass either, not both."
        )
    if work_folder is None and (resume or Rank.here().of > 1):
        raise ValueError(
            "work_folder=None: a run to resume, or of several processes, needs a folder that is "
            "known to all; name one."
        )
    if options.get("stop_words") is not None:
        options["stop_words"] = sorted(options["stop_words"])
    table = dataset.with_format(None)
    columns = _Columns.of(table, text_columns, tag_column, answer_column, id_column)
    needed = table.select_columns(columns.names)
    device = options.pop("device", None)
    with ExitStack() as stack:
        if work_folder is None:
            work_folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-distill-"))
        candidates = stack.enter_context(
            computed_candidates(
                Path(work_folder).expanduser() / "candidates",
                lambda: (text.item for row in needed for text in columns.texts(row) if text),
                options,
                substituter=substituter,
                device=device,
                num_proc=num_proc,
                resume=resume,
            )
        )
        if candidates is None:
            return None
        rows = columns.versions(
            needed,
            candidates,
            copies=multiplication_factor - bool(include_original),
            include_original=include_original,
            replace_probability=replace_probability,
            seed=seed,
        )
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
    """Which column is what, checked."""

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
        if id_column is None and features.get("id") == Value("string"):
            id_column = "id"
        if id_column is not None and not is_text(features[id_column]):
            raise TaskDataError(
                f"id_column={id_column!r} holds {describe(features[id_column])}; copies have "
                "names such as 'q-aug3', so it must hold text."
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
        """The columns that decide what changes, or that do."""
        names = (*self.texts_in, self.tags, self.answers, self.ids)
        return list(dict.fromkeys(name for name in names if name is not None))

    def texts(self, row: Mapping[str, Any]) -> list[_Text | None]:
        """The texts of a row; ``None`` for one that is missing."""
        found: list[_Text | None] = []
        for index, column in enumerate(self.texts_in):
            value = row[column]
            if value is None:
                found.append(None)
            elif isinstance(value, str):
                kept = self.answers is not None and index == 0
                places = self._answer_places(row, str(self.answers)) if kept else []
                found.append(_Text(Item(value), places, None))
            else:
                found.append(self._words(row, column))
        return found

    def _words(self, row: Mapping[str, Any], column: str) -> _Text:
        words = [word or "" for word in row[column]]
        ends = list(accumulate((len(word) + 1 for word in words), initial=0))
        spans = [Span(start, start + len(word)) for start, word in zip(ends, words, strict=False)]
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
        return _Text(Item(" ".join(words), whole), [(s.start, s.end) for s in keep], len(words))

    def _answer_places(self, row: Mapping[str, Any], column: str) -> list[tuple[int, int]]:
        answers = row[column]
        if answers is None:
            return []
        pairs = zip(answers["answer_start"], answers["text"], strict=True)
        places = [(start, start + len(text)) for start, text in pairs]
        for (start, end), text in zip(places, answers["text"], strict=True):
            found = row[self.texts_in[0]][max(start, 0) : end]
            if found != text:
                raise TaskDataError(
                    f"The answer {text!r} ({column}) is not at answer_start={start} of "
                    f"{self.texts_in[0]!r}; there is {found!r}."
                )
        return places

    def versions(
        self,
        table: Iterable[Mapping[str, Any]],
        candidates: StoredCandidates,
        *,
        copies: int,
        include_original: bool,
        replace_probability: float,
        seed: int,
    ) -> Iterator[_Version]:
        """The rows and their copies."""
        marker = "" if self.ids is None else copy_marker(row[self.ids] for row in table)
        for number, row in enumerate(table):
            if include_original:
                yield _Version(number, {})
            texts = self.texts(row)
            words = [candidates(text.item) if text else [] for text in texts]
            seen = {tuple(text.item.text if text else None for text in texts)}
            for copy in range(1, copies + 1):
                drawn = [
                    draw(
                        text.item.text,
                        found,
                        replace_probability=replace_probability,
                        seed=seed,
                        copy=copy,
                        keep=text.keep,
                    )
                    if text
                    else []
                    for text, found in zip(texts, words, strict=True)
                ]
                new = tuple(
                    apply(text.item.text, one) if text else None
                    for text, one in zip(texts, drawn, strict=True)
                )
                if new not in seen:
                    seen.add(new)
                    yield _Version(number, self._changes(row, f"-{marker}{copy}", texts, drawn))

    def _changes(
        self,
        row: Mapping[str, Any],
        suffix: str,
        texts: Sequence[_Text | None],
        drawn: Sequence[Sequence[Replacement]],
    ) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        for column, text, replacements in zip(self.texts_in, texts, drawn, strict=True):
            if text is None:
                continue
            if text.words is None:
                changed[column] = apply(text.item.text, replacements)
                continue
            words = list(row[column])
            places = list(accumulate((len(word or "") + 1 for word in words), initial=0))
            by_start = {one.start: one.word for one in replacements}
            changed[column] = [
                by_start.get(place, word) for place, word in zip(places, words, strict=False)
            ]
        if self.answers is not None and row[self.answers] is not None:
            answers = row[self.answers]
            starts = [moved(start, drawn[0]) for start in answers["answer_start"]]
            changed[self.answers] = {**answers, "answer_start": starts}
        if self.ids is not None and row[self.ids] is not None:
            changed[self.ids] = f"{row[self.ids]}{suffix}"
        return changed


def _outside(features: Features, tag_column: str | None) -> Any:
    """The tag of words that are part of nothing."""
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
