"""One question with its context and answers: from files, from rows, and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.tasks.cells import folded
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.text_files import half_character, read_text


@dataclass(frozen=True)
class Record:
    """One question.

    Attributes:
        where: The place in the source, for messages: `data[0].paragraphs[0].qas[0]` or `row 0`.
        id: Identifies the question.
        title: Title of the article, or "".
        context: The text that holds the answer.
        question: The question.
        answers: The accepted ones, two lists of equal length: `text`, empty if the context does
            not answer the question, and `answer_start`, where each begins in `context`.
    """

    where: str
    id: str
    title: str
    context: str
    question: str
    answers: dict[str, list[Any]]


def read_squad_json(path: Path, *, answers: bool = True) -> Iterator[Record]:
    """Read the questions of a file, one by one.

    The layout is `{"data": [{"paragraphs": [{"context": …, "qas": [{"id": …, "question": …,
    "answers": [{"text": …, "answer_start": …}]}]}]}]}`. v1.1 and v2.0 have a `title` next to
    `paragraphs`; v2.0 has `is_impossible` next to `question`, and then `answers` may be missing;
    GermanQuAD has numbers as ids. `data` may also hold the rows of the Hub's `squad` (`id`,
    `context`, `question`, `answers`), as the example scripts of transformers read them. Other
    fields (`plausible_answers`, `answer_id`, `document_id`, `version` …) are not read.
    """
    document = _parse(path)
    if not isinstance(document, dict) or "data" not in document:
        raise TaskDataError(
            "not in the layout of SQuAD: there must be an object with the field 'data' outside"
        )
    for a, article in enumerate(field(document, "data", list, "the document")):
        place = f"data[{a}]"
        if isinstance(article, dict) and "context" in article and "paragraphs" not in article:
            name, context = article_title(article, place), field(article, "context", str, place)
            yield _question(article, place, name, context, answers)
            continue
        paragraphs = field(article, "paragraphs", list, place)
        name = article_title(article, place)
        for p, paragraph in enumerate(paragraphs):
            place = f"data[{a}].paragraphs[{p}]"
            context = field(paragraph, "context", str, place)
            for q, question in enumerate(field(paragraph, "qas", list, place)):
                yield _question(question, f"{place}.qas[{q}]", name, context, answers)


def _question(question: Any, where: str, title: str, context: str, answers: bool) -> Record:
    field(question, "id", (str, int), where)
    if answers and "is_impossible" in question:
        impossible = field(question, "is_impossible", bool, where)
        if impossible and question.get("answers") is None:
            question = {**question, "answers": []}
    return row_record(question, where, title=title, context=context, answers=answers)


def _parse(path: Path) -> Any:
    text = read_text(path)
    if not text.strip():
        raise TaskDataError("the file is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = " (the file ends there: is it truncated?)" if _at_end(error, text) else ""
        raise TaskDataError(
            f"line {error.lineno}, column {error.colno}: malformed JSON: {error.msg}{cut}"
        ) from error
    except RecursionError as error:
        raise TaskDataError("malformed JSON: nested too deeply") from error


def _at_end(error: json.JSONDecodeError, text: str) -> bool:
    return error.msg.startswith("Unterminated string") or not text[error.pos + 1 :].strip()


def field(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return `record[name]` if it is of the kind; `bool` never counts as `int`."""
    if not isinstance(record, Mapping):
        raise TaskDataError(f"{where} must be an object, not {_shown(record)}")
    if name not in record:
        error = MissingLabelsError if name == "answers" else TaskDataError
        raise error(
            f"{where} has no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}"
        )
    value = record[name]
    if value is None and name == "answers":
        raise TaskDataError(
            f"{where}.answers is null; a question without an answer has an empty list"
        )
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(one.__name__ for one in kinds)
        raise TaskDataError(f"{where}.{name} must be {wanted}, not {_shown(value)}")
    return value


def row_record(
    row: Mapping[str, Any],
    where: str,
    *,
    title: str | None = None,
    context: str | None = None,
    answers: bool = True,
) -> Record:
    """Turn a row of the Hub's `squad` into a record, types checked.

    `title` and `context` replace those of the row. Without `answers` these are not read.
    """
    texts, starts = row_answers(row, where) if answers else ([], [])
    if answers and row.get("is_impossible") is not None:
        impossible = field(row, "is_impossible", bool, where)
        if impossible == bool(texts):
            raise TaskDataError(
                f"{where} (id {str(row.get('id'))!r}) has is_impossible={str(impossible).lower()} "
                f"and {len(texts)} answers; change one of the two"
            )
    return Record(
        where=where,
        id=str(field(row, "id", (str, int), where)),
        title=article_title(row, where) if title is None else title,
        context=field(row, "context", str, where) if context is None else context,
        question=field(row, "question", str, where),
        answers={"text": texts, "answer_start": starts},
    )


def article_title(record: Mapping[str, Any], where: str) -> str:
    """Return the title of an article or a row, or "" if there is none."""
    return field(record, "title", str, where) if record.get("title") is not None else ""


def row_answers(
    row: Mapping[str, Any], where: str, column: str = "answers"
) -> tuple[list[str], list[int]]:
    """Return the texts and starts of a row's answers, an object of lists or a list of objects."""
    answers, place = field(row, column, (dict, list), where), f"{where}.{column}"
    if isinstance(answers, dict):
        texts = field(answers, "text", list, place)
        starts = field(answers, "answer_start", list, place)
        if len(texts) != len(starts):
            raise TaskDataError(f"{place} has {len(texts)} text and {len(starts)} answer_start")
        answers = [
            {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
        ]
    return answer_lists(answers, place)


def answer_lists(answers: Sequence[Any], where: str) -> tuple[list[str], list[int]]:
    """Split a list of objects with `text` and `answer_start`, types checked; no text is blank."""
    texts, starts = [], []
    for index, answer in enumerate(answers):
        place = f"{where}[{index}]"
        text = field(answer, "text", str, place)
        if not folded(text) and half_character(text) is None:
            raise TaskDataError(
                f"{place}.text is blank ({text!r}); a question without an answer has an empty list"
            )
        texts.append(text)
        starts.append(field(answer, "answer_start", int, place))
    return texts, starts


def check_records(records: Iterable[Record], source: str) -> list[Record]:
    """Check answers, ids and that there are any records.

    Misplaced answers are counted before the first is named.
    """
    try:
        checked = list(records)
    except TaskDataError as error:
        raise type(error)(f"{source}: {error}") from None
    if not checked:
        raise TaskDataError(f"{source} is empty: it has no question")
    places: dict[str, str] = {}
    for record in checked:
        texts = {name: getattr(record, name) for name in ("id", "title", "context", "question")}
        for name, text in {**texts, "text": "\n".join(record.answers["text"])}.items():
            half = half_character(text)
            if half:
                raise TaskDataError(
                    f"{source}: {record.where} (id {record.id!r}): the {name} "
                    f"holds {half}; write the whole character (in JSON as a pair, such as "
                    "\\ud83d\\ude00), or leave it out"
                )
        if record.id in places:
            raise TaskDataError(
                f"{source}: the id {record.id!r} of {record.where} is also that of "
                f"{places[record.id]}; ids must be unique"
            )
        places[record.id] = record.where
    wrong = [
        (record, message)
        for record in checked
        if (message := misplaced(record.context, *record.answers.values()))
    ]
    if wrong:
        record, message = wrong[0]
        raise TaskDataError(
            f"{source}: {record.where} (id {record.id!r}): {message}. Answers do not match their "
            f"context in {len(wrong)} of {len(checked)} rows; correct answer_start, which counts "
            "characters from 0"
        )
    return checked


def misplaced(context: str, texts: Sequence[str], starts: Sequence[int]) -> str | None:
    """Describe the first answer that is not where it claims to be."""
    for text, start in zip(texts, starts, strict=True):
        if start < 0:
            return f"answer_start={start} of {_shown(text)} is negative"
        found = context[start : start + len(text)]
        if found != text:
            return f"expected {_shown(text)} at answer_start={start} but found {_shown(found)}"
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:77]}..."
    return f"{type(value).__name__} {text}" if not isinstance(value, str) else text
