"""Windows of contexts as a teacher with another tokenizer reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import List, Value

from hf_distill.alignment import PREFIX
from hf_distill.alignment.characters import END_MAP, LABELS, SEEN, START_MAP
from hf_distill.alignment.offsets import NOWHERE, Span, span_maps

if TYPE_CHECKING:
    from hf_distill.tasks.question_answering.features import WindowCutter

_LONGEST_WORD = 32
"""A window that ends in a word is read to the word's end; where no space is near, it is no word."""


class Window(NamedTuple):
    """What the tokens of a window stand for."""

    context: list[Span | None]
    """Characters of the context; ``None`` for other tokens."""
    question: list[Span | None]
    """Characters of the question."""
    special: list[int]
    """The special tokens."""
    no_answer: int
    """The one that stands for no answer, which is not among them."""

    def moved(self, begin: int) -> Window:
        """Return the window of a part of a context, with characters of the whole."""
        spans = [
            None if span is None else (span[0] + begin, span[1] + begin) for span in self.context
        ]
        return self._replace(context=spans)

    def maps_to(self, student: Window) -> tuple[list[int], list[int]]:
        """Return the student's positions of starts and ends, by token of this window.

        Special tokens are those of the same place, if both have equally many.
        """
        found = span_maps(self.context, student.context)
        asked = span_maps(self.question, student.question)
        pairs = [(self.no_answer, student.no_answer)]
        if len(self.special) == len(student.special):
            pairs += zip(self.special, student.special, strict=True)
        for places, of_question in zip(found, asked, strict=True):
            for token, span in enumerate(self.question):
                if span is not None:
                    places[token] = of_question[token]
            for token, place in pairs:
                places[token] = place
        return found


class TeacherWindows:
    """Encodes, for each window of the student's, the same characters for the teacher.

    Args:
        cutter: cuts contexts with the teacher's tokenizer.
    """

    def __init__(self, cutter: WindowCutter) -> None:
        self._cutter = cutter

    def __call__(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        student: Sequence[Window],
        answers: Sequence[Mapping[str, Any]] | None,
    ) -> dict[str, list[Any]]:
        """Return the columns of ``CharacterAlignment``, one entry per window.

        Args:
            questions: of each window.
            contexts: the whole context of each.
            student: the student's.
            answers: the answers, if they are known.
        """
        cutter = self._cutter
        ranges = [
            _range(context, window.context)
            for context, window in zip(contexts, student, strict=True)
        ]
        pieces = [context[slice(*window)] for context, window in zip(contexts, ranges, strict=True)]
        asked = cutter.cut_questions(list(questions))
        encodings = cutter.encode(asked, pieces)
        sources = encodings["overflow_to_sample_mapping"]
        columns: dict[str, list[Any]] = {f"{PREFIX}{n}": [] for n in cutter.tokenizer_columns}
        more = (START_MAP, END_MAP, SEEN, *(() if answers is None else LABELS))
        columns |= {name: [] for name in more}
        for row, window in enumerate(sources):
            if row and sources[row - 1] == window:
                continue  # more than the teacher takes at once
            for name in cutter.tokenizer_columns:
                columns[f"{PREFIX}{name}"].append(encodings[name][row])
            begin, end = ranges[window]
            theirs, ours = (
                cutter.window(
                    asked[window], pieces[window], encodings, encodings["offset_mapping"], row
                ).moved(begin),
                student[window],
            )
            spans, nothing = theirs.context, theirs.no_answer
            if row + 1 < len(sources) and sources[row + 1] == window:
                end = max((span[1] for span in spans if span is not None), default=begin)
            starts_at, ends_at = theirs.maps_to(ours)
            if not _meet(spans, starts_at) and any(ours.context):
                starts_at = ends_at = [NOWHERE] * len(spans)  # no text to compare
            columns[START_MAP].append(starts_at)
            columns[END_MAP].append(ends_at)
            columns[SEEN].append([int(span is None or span[0] < end) for span in ours.context])
            if answers is not None:
                label = _answer(answers[window], spans, begin, end) or (nothing, nothing)
                for name, position in zip(LABELS, label, strict=True):
                    columns[name].append(position)
        return columns

    def features(self, *, labelled: bool) -> dict[str, Any]:
        """Return the types of the columns."""
        types: dict[str, Any] = {
            f"{PREFIX}{name}": List(Value("int32" if name == "input_ids" else "int8"))
            for name in self._cutter.tokenizer_columns
        }
        types |= {name: List(Value("int32")) for name in (START_MAP, END_MAP)}
        types |= {SEEN: List(Value("int8"))}
        return types | ({name: Value("int64") for name in LABELS} if labelled else {})


def _meet(spans: Sequence[Span | None], places: Sequence[int]) -> bool:
    """Return whether a token of the context has a counterpart."""
    return any(
        span is not None and place != NOWHERE for span, place in zip(spans, places, strict=True)
    )


def _range(context: str, spans: Sequence[Span | None]) -> Span:
    """Return the characters of a window, with the whole of the words at both ends."""
    known = [span for span in spans if span is not None]
    if not known:
        return (0, 0)
    begin, end = min(span[0] for span in known), max(span[1] for span in known)
    left, right = begin, end
    while left > 0 and not context[left - 1].isspace():
        left -= 1
    while right < len(context) and not context[right].isspace():
        right += 1
    return (
        left if begin - left <= _LONGEST_WORD else begin,
        right if right - end <= _LONGEST_WORD else end,
    )


def _answer(
    answers: Mapping[str, Any], spans: Sequence[Span | None], begin: int, end: int
) -> tuple[int, int] | None:
    """Return the first and last token of the first answer; ``None`` if it is not all there."""
    if not answers["text"]:
        return None
    text, first = answers["text"][0], answers["answer_start"][0]
    last = first + len(text.rstrip())
    first += len(text) - len(text.lstrip())
    covering = [
        token
        for token, span in enumerate(spans)
        if span is not None and span[0] < last and span[1] > first
    ]
    there = covering and begin <= first and last <= end
    return (covering[0], covering[-1]) if there else None
