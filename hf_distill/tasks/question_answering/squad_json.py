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
    field,
    row_record,
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
