"""Augmented copies of SQuAD files, with the answers in their places."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.augmentation.drawing import Copy, copy_marker, distinct_copies, moved
from hf_distill.augmentation.options import SquadAugmentationOptions
from hf_distill.augmentation.parts import Item, StoredCandidates
from hf_distill.augmentation.processes import computed_candidates
from hf_distill.augmentation.tables import check_target, text_file
from hf_distill.files import write_atomically
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.question_answering.records import (
    answer_lists,
    check_records,
    misplaced,
    read_squad_json,
)
from hf_distill.tasks.text_files import half_character, read_text

# Not a character: no text has it.
_MARK = "\ufdd0"
_MARKED = re.compile(f'"{_MARK}([-+.0-9eE]+)"')
_ANSWERS = ("answers", "plausible_answers")


@dataclass
class AugmentationSummary:
    """Counts of what ``augment_squad`` wrote.

    Attributes:
        paragraphs: paragraphs of the input.
        questions: questions of the input.
        copies: augmented copies of paragraphs.
        written_questions: questions of the output.
        duplicates: copies that were dropped, because they were the original or another copy.
        replaced: words that were replaced, in all copies together.
    """

    paragraphs: int = 0
    questions: int = 0
    copies: int = 0
    written_questions: int = 0
    duplicates: int = 0
    replaced: int = 0


def augment_squad(
    squad_path: str | Path,
    output_path: str | Path,
    **options: Any,
) -> AugmentationSummary | None:
    """Write a SQuAD file with augmented copies of its paragraphs.

    A copy of a paragraph has other words in its context (Jiao et al. 2020, TinyBERT, §3.3), but
    not in an answer to one of its questions, plausible ones included; ``answer_start`` follows.
    The copies come right after the paragraph; copy 3 of question ``q`` has the id ``q-aug3``
    (``q-aug2.3`` in a file that has copies already).
    Everything else in the file stays. Which words are replaced depends on the text, ``seed`` and
    the number of the copy only. The output is written as it is made, under another name until it
    is whole.

    Args:
        squad_path: a file in the layout of SQuAD v1.1 or v2.0, ``.json`` or ``.json.gz``.
        output_path: the file to write, ``.json`` or ``.json.gz``. Until it is done, a folder
            next to it holds what was computed.
        **options: those of ``SquadAugmentationOptions``.

    Returns:
        What was written; ``None`` in all processes of ``accelerate launch`` but the first.

    Raises:
        TaskDataError: the input is not such a file, or an answer is not in its place.
        FileNotFoundError: the file does not exist.
        ValueError: an option is wrong, or is not that of the run to resume, or the output would
            replace the input.
        OSError: the model or a file cannot be read, or the output not be written; what stood at
            ``output_path`` is then still there.
    """
    settings = SquadAugmentationOptions(**options)
    source, target = Path(squad_path).expanduser(), Path(output_path).expanduser()
    if not source.is_file():
        raise FileNotFoundError(f"squad_path={str(squad_path)!r}: there is no such file.")
    if not target.name.lower().endswith((".json", ".json.gz")) or target.is_dir():
        raise ValueError(
            f"output_path={str(output_path)!r} must be a file that ends in .json or .json.gz."
        )
    check_target(target, source)
    document = _read(source)
    copier = SquadCopier(settings)
    folder = target.with_name(f".{target.name}.parts")
    with computed_candidates(folder, lambda: copier.items(document), settings) as candidates:
        if candidates is None:
            return None
        write_atomically(target, lambda path: copier.write(document, candidates, path))
    return copier.summary


def _read(path: Path) -> dict[str, Any]:
    """Read a document and check it."""
    check_records(read_squad_json(path), str(path))
    # 1.10 stays 1.10: numbers with decimals are marked texts until they are written.
    document: dict[str, Any] = json.loads(read_text(path), parse_float=_MARK.__add__)
    for a, article in enumerate(document["data"]):
        for p, paragraph in enumerate(_paragraphs(article)):
            for q, question in enumerate(paragraph["qas"]):
                if question.get("plausible_answers") is not None:
                    where = f"{path}: data[{a}].paragraphs[{p}].qas[{q}].plausible_answers"
                    answers = answer_lists(question["plausible_answers"], where)
                    wrong = misplaced(paragraph["context"], *answers)
                    if wrong:
                        raise TaskDataError(f"{where}: {wrong}")
    return document


class SquadCopier:
    """Makes the copies of a document."""

    def __init__(self, settings: SquadAugmentationOptions) -> None:
        self._settings = settings
        self.summary = AugmentationSummary()
        self._marker = "aug"

    def items(self, document: Mapping[str, Any]) -> Iterator[Item]:
        """Yield all texts in which words are replaced."""
        for article in document["data"]:
            for paragraph in _paragraphs(article):
                yield from self._items(paragraph)

    def _items(self, paragraph: Mapping[str, Any]) -> list[Item]:
        questions = paragraph["qas"] if self._settings.augment_questions else []
        return [Item(paragraph["context"]), *(Item(one["question"]) for one in questions)]

    def write(self, document: Mapping[str, Any], candidates: StoredCandidates, path: Path) -> None:
        """Write the document with the copies of its paragraphs."""
        self._marker = copy_marker(
            question["id"]
            for article in document["data"]
            for paragraph in _paragraphs(article)
            for question in paragraph["qas"]
        )
        with text_file(path) as file:
            file.write("{" + _fields(document, "data") + '"data": [')
            separator = ""
            for article in document["data"]:
                for text in self._written(article, candidates):
                    file.write(separator + text)
                    separator = ", "
            file.write("]}\n")

    def _written(self, article: Mapping[str, Any], candidates: StoredCandidates) -> Iterator[str]:
        versions = (v for p in _paragraphs(article) for v in self.versions(p, candidates))
        if "paragraphs" in article:
            texts = ", ".join(map(_json, versions))
            yield "{" + _fields(article, "paragraphs") + f'"paragraphs": [{texts}]}}'
        else:
            yield from (_json(_row(article, version)) for version in versions)

    def versions(
        self, paragraph: Mapping[str, Any], candidates: StoredCandidates
    ) -> Iterator[Mapping[str, Any]]:
        """Make the versions of a paragraph, and count them."""
        questions = paragraph["qas"]
        self.summary.paragraphs += 1
        self.summary.questions += len(questions)
        self.summary.duplicates += self._settings.copies
        if self._settings.include_original:
            self.summary.written_questions += len(questions)
            yield paragraph
        items = self._items(paragraph)
        keep = () if self._settings.drop_answers else _answer_places(questions)
        copies = distinct_copies(
            [item.text for item in items],
            [candidates(item) for item in items],
            [keep, *[()] * (len(items) - 1)],
            copies=self._settings.copies,
            replace_probability=self._settings.replace_probability,
            seed=self._settings.seed,
        )
        for copy in copies:
            self.summary.duplicates -= 1
            self.summary.copies += 1
            self.summary.written_questions += len(questions)
            self.summary.replaced += sum(map(len, copy.replacements))
            texts = copy.texts[1:] or [question["question"] for question in questions]
            yield {
                **paragraph,
                "context": copy.texts[0],
                "qas": [
                    self._question(question, text, copy)
                    for question, text in zip(questions, texts, strict=True)
                ],
            }

    def _question(self, question: Mapping[str, Any], text: str, copy: Copy) -> dict[str, Any]:
        name = f"{question['id']}-{self._marker}{copy.number}"
        new = {**question, "id": name, "question": text}
        if self._settings.drop_answers:
            new.pop("plausible_answers", None)
            new["answers"] = []
            if "is_impossible" in question:
                new["is_impossible"] = True
            return new
        for field in _ANSWERS:
            if question.get(field):
                new[field] = [_moved(answer, copy) for answer in question[field]]
        return new


def _paragraphs(article: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the paragraphs of an article; a row of the Hub's layout is one with one question."""
    if "paragraphs" in article:
        found: list[dict[str, Any]] = article["paragraphs"]
        return found
    question = {name: value for name, value in article.items() if name != "context"}
    if isinstance(question.get("answers"), dict):
        columns = (question["answers"][name] for name in ("text", "answer_start"))
        question["answers"] = [
            {"text": text, "answer_start": start} for text, start in zip(*columns, strict=True)
        ]
    return [{"context": article["context"], "qas": [question]}]


def _row(article: Mapping[str, Any], version: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a version of the only paragraph of a row into a row again."""
    row = {"context": version["context"], **version["qas"][0]}
    if isinstance(article.get("answers"), dict):
        columns = {key: [one[key] for one in row["answers"]] for key in ("text", "answer_start")}
        row["answers"] = {**article["answers"], **columns}
    return {name: row[name] for name in article if name in row}


def _answer_places(questions: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    return sorted(
        {
            (answer["answer_start"], answer["answer_start"] + len(answer["text"]))
            for question in questions
            for field in _ANSWERS
            for answer in question.get(field) or ()
        }
    )


def _moved(answer: Mapping[str, Any], copy: Copy) -> dict[str, Any]:
    start = moved(answer["answer_start"], copy.replacements[0])
    text = answer["text"]
    if copy.texts[0][start : start + len(text)] != text:
        raise AssertionError(f"the answer {text!r} was lost in a copy")
    return {**answer, "answer_start": start}


def _fields(content: Mapping[str, Any], last: str) -> str:
    return "".join(f"{_json(k)}: {_json(v)}, " for k, v in content.items() if k != last)


def _json(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False)
    if half_character(text):
        # In a field that nobody reads. It has a form in JSON only.
        text = json.dumps(content).replace(json.dumps(_MARK)[1:-1], _MARK)
    return _MARKED.sub(r"\1", text)
