"""Files in the JSON layout of SQuAD v1.1, SQuAD v2.0 and GermanQuAD."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_distill.tasks.question_answering.errors import QuestionAnsweringDataError
from hf_distill.tasks.question_answering.records import (
    Record,
    article_title,
    check_impossible,
    field,
    row_answers,
)
from hf_distill.tasks.tables import read_text


def read_squad_json(path: Path, *, answers: bool = True) -> Iterator[Record]:
    """Read the questions of a file, one by one.

    The layout is `{"data": [{"paragraphs": [{"context": …, "qas": [{"id": …, "question": …,
    "answers": [{"text": …, "answer_start": …}]}]}]}]}`. v1.1 and v2.0 have a `title` beside
    `paragraphs`; v2.0 has `is_impossible` beside `question`, and then `answers` may be missing;
    GermanQuAD has numbers as ids. `data` may also hold the rows of the Hub's `squad` (`id`,
    `context`, `question`, `answers`), as the example scripts of transformers read them. Other
    fields (`plausible_answers`, `answer_id`, `document_id`, `version` …) are not read.

    Args:
        path: A `.json` file, or `.json.gz`.
        answers: Whether to read the answers, and whether a question has any.

    Yields:
        The records, types checked.

    Raises:
        QuestionAnsweringDataError: The file is truncated, is no JSON (with line and column),
            misses a field, has a value of another type (with the path of the record), or says
            `is_impossible` of a question with answers, or the reverse.
    """
    document = _parse(path)
    if not isinstance(document, dict) or "data" not in document:
        raise QuestionAnsweringDataError(
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


def _question(question: Any, where: str, article: str, context: str, with_answers: bool) -> Record:
    key = field(question, "id", (str, int), where)
    texts, starts = _answers(question, where) if with_answers else ([], [])
    return Record(
        where=where,
        id=str(key),
        title=article,
        context=context,
        question=field(question, "question", str, where),
        texts=texts,
        starts=starts,
    )


def _answers(question: Any, where: str) -> tuple[list[str], list[int]]:
    impossible = None
    if "is_impossible" in question:
        impossible = field(question, "is_impossible", bool, where)
    texts: list[str] = []
    starts: list[int] = []
    if not impossible or question.get("answers") is not None:
        texts, starts = row_answers(question, where)
    if impossible is not None:
        check_impossible(question, texts, where)
    return texts, starts


def _parse(path: Path) -> Any:
    text = read_text(path)
    if not text.strip():
        raise QuestionAnsweringDataError("the file is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = " (the file ends there: is it truncated?)" if _at_end(error, text) else ""
        raise QuestionAnsweringDataError(
            f"line {error.lineno}, column {error.colno}: malformed JSON: {error.msg}{cut}"
        ) from error
    except RecursionError as error:
        raise QuestionAnsweringDataError("malformed JSON: nested too deeply") from error


def _at_end(error: json.JSONDecodeError, text: str) -> bool:
    return error.msg.startswith("Unterminated string") or not text[error.pos + 1 :].strip()
