"""Question-answering data: files, saved folders and Hub data sets in one checked layout.

Whatever the source, the result has the columns of the Hub's `squad` and `squad_v2`:
`id`, `title`, `context`, `question` and `answers` (`text` and `answer_start`, two lists of equal
length). A row without an answer is a question that its context does not answer.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.question_answering.records import (
    Record,
    check_records,
    read_squad_json,
    row_answers,
    row_record,
)
from hf_distill.tasks.tables import check_characters, load_table
from hf_distill.tasks.text_files import open_file

FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)
REQUIRED_COLUMNS = ("id", "context", "question", "answers")


def load_question_answering_dataset(
    source: str | Path,
    *,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    answers: bool = True,
) -> Dataset:
    """Load and check a question-answering data set.

    Args:
        source: One of
            a `.json` or `.json.gz` file in the layout of SQuAD v1.1, SQuAD v2.0 or GermanQuAD, or
            with the columns of the Hub's `squad` in its `data`;
            a `.jsonl` or `.parquet` file with the columns of the Hub's `squad`, or a `.json` file
            with such rows, one per line or in a list;
            a folder written by `Dataset.save_to_disk`;
            the id of a data set on the Hub, such as `"squad"`.
        split: The split to take. Needed when the source has several; a file has none.
        config_name: The configuration of a Hub data set.
        revision: The branch, tag or commit of a Hub data set.
        answers: False if they do not matter and may be missing: they are not read, and no row
            has any.

    Returns:
        A data set with the columns `id` (unique, a string even where the source has numbers),
        `title` (empty where the source has none), `context`, `question` and `answers`
        (`text: list[str]`, `answer_start: list[int]`, counted in characters). In v2.0 files the
        `plausible_answers` of impossible questions are left out.

    Raises:
        QuestionAnsweringDataError: The source is empty, malformed, truncated or not a
            question-answering data set; an answer is not where `answer_start` says; an id occurs
            twice; `is_impossible` contradicts the answers. The message names the record.
        FileNotFoundError: `source` looks like a path and nothing is there.
        ValueError: `split`, `config_name` or `revision` does not fit the source.
    """
    path = Path(source).expanduser()
    if path.is_file() and (split, config_name, revision) == (None, None, None):
        name = path.name.lower()
        in_json = name.endswith((".json", ".json.gz"))
        if in_json and not _has_rows(path):
            return _from_records(read_squad_json(path, answers=answers), str(path))
        if not in_json and not name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
            raise TaskDataError(
                f"{path} is not a question-answering data set: the name must end in .json, "
                ".json.gz, .jsonl, .jsonl.gz or .parquet"
            )
    table = load_table(source, split=split, config_name=config_name, revision=revision)
    return _from_records(_records(table, str(source), answers=answers), str(source))


def validate_answers(dataset: Dataset) -> None:
    """Check that `dataset` is question-answering data whose answers are where they claim to be.

    `load_question_answering_dataset` has done this for what it returns; it is for data from
    elsewhere. Required columns: `id`, `context`, `question`, `answers`.

    Args:
        dataset: The data to check.

    Raises:
        QuestionAnsweringDataError: `dataset` is empty or lacks a column, a value has the wrong
            type, `context[start : start + len(text)]` is not `text` for some answer (the message
            counts the rows), or an id occurs twice.
    """
    check_records(_records(dataset, "the data set"), "the data set")


def is_v2(dataset: Dataset) -> bool:
    """Tell whether some question of `dataset` has no answer, as in SQuAD v2.0.

    Args:
        dataset: Data with the column `answers`.

    Returns:
        True if at least one row has an empty list of answers.
    """
    rows = enumerate(dataset["answers"])
    return any(not row_answers({"answers": one}, f"row {row}")[0] for row, one in rows)


def _has_rows(path: Path) -> bool:
    """Tell lines or a list of objects from the one object that SQuAD files have."""
    try:
        with open_file(path) as file:
            lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in file)
            first, second = next(filter(None, lines), b""), next(filter(None, lines), b"")
    except (OSError, EOFError, zlib.error):
        return False
    return first.startswith(b"[") or (first[:1] + first[-1:] + second[:1] == b"{}{")


def _records(rows: Dataset, source: str, *, answers: bool = True) -> Iterable[Record]:
    required = [name for name in REQUIRED_COLUMNS if answers or name != "answers"]
    missing = [name for name in required if name not in rows.column_names]
    if missing:
        error = MissingLabelsError if missing == ["answers"] else TaskDataError
        raise error(
            f"{source} is not a question-answering data set: no column {', '.join(missing)}; "
            f"it has {', '.join(rows.column_names)}"
        )
    wanted = [name for name in (*required, "title", "is_impossible") if name in rows.column_names]
    plain = rows.select_columns(wanted).with_format(None)
    check_characters(plain, source)
    return (row_record(row, f"row {index}", answers=answers) for index, row in enumerate(plain))


def _from_records(records: Iterable[Record], source: str) -> Dataset:
    checked = check_records(records, source)
    columns: dict[str, list[Any]] = {
        name: [getattr(record, name) for record in checked] for name in FEATURES
    }
    return Dataset.from_dict(columns, features=FEATURES)
