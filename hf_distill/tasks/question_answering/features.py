"""Model inputs for extractive question answering: overlapping windows with span labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import compress
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_distill.alignment import TeacherReader
from hf_distill.alignment.offsets import Span, trimmed_spans
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.question_answering.records import field, misplaced, row_answers
from hf_distill.tasks.question_answering.teacher_windows import TeacherWindows, Window

# A window moves on by at least this share of max_length, however long the question is.
_LEAST_ADVANCE = 1 / 16


def prepare_train_features(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 384,
    doc_stride: int = 128,
    num_proc: int | None = None,
    teacher: TeacherReader | None = None,
) -> Dataset:
    """Cut each question and context into windows and label them with the first answer.

    A window holds the question and as much of the context as fits. Consecutive windows of one
    context share `doc_stride` tokens. The label of a window is the first and the last token of
    the answer (inclusive), or the position that stands for "no answer", if the question has no
    answer or the answer is not wholly inside the window. That position is the classification
    token; without one, the token that begins a text (`bos_token`), else the first token that is
    neither padding nor part of the context.

    A question that leaves a window too little room to advance is cut to its first
    `max_length − special tokens − doc_stride − max(1, max_length // 16)` tokens. White space in
    front of a question is dropped.

    Args:
        dataset: Columns `context`, `question`, `answers`, as from
            `load_question_answering_dataset`, or with a list of objects as `answers`, each with
            `text` and `answer_start`.
        tokenizer: A fast tokenizer (it knows which characters a token stands for).
        max_length: Most tokens in a window, question and special tokens included.
        doc_stride: Tokens that two consecutive windows of one context share.
        num_proc: Processes to work with; by default this one.
        teacher: The tokenizer of a teacher that has another one, and the most tokens that it takes:
            adds its encoding of each window, and to which tokens its answers belong.

    Returns:
        One row per window: `input_ids`, `attention_mask`, `token_type_ids` if the tokenizer gives
        them, `start_positions`, `end_positions`. Rows are not padded: `DataCollatorWithPadding`
        does that for each batch. Only if the tokenizer pads on the left are they padded to
        `max_length` here, because later padding would move the labelled tokens.

    Raises:
        TypeError: The tokenizer is not a fast one.
        ValueError: `max_length` or `doc_stride` is out of range, or `dataset` is empty or lacks
            a column.
        QuestionAnsweringDataError: An answer is not where `answer_start` says, or a value has the
            wrong type.
    """
    windows = WindowCutter(tokenizer, max_length, doc_stride, for_evaluation=False, teacher=teacher)
    return windows.apply(dataset, num_proc)


def prepare_eval_features(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 384,
    doc_stride: int = 128,
    num_proc: int | None = None,
    teacher: TeacherReader | None = None,
) -> Dataset:
    """Like `prepare_train_features`, with what `postprocess` needs to read answers from logits.

    The labels are there too, so that `Trainer` reports `eval_loss`. The additional columns are
    not model inputs; `Trainer` removes them (`remove_unused_columns=True`, its default).

    Args:
        dataset: Columns `id`, `context`, `question` and, for the labels, `answers`; without
            `answers` the features have no labels.
        tokenizer: A fast tokenizer.
        max_length: Most tokens in a window, question and special tokens included.
        doc_stride: Tokens that two consecutive windows of one context share.
        num_proc: Processes to work with; by default this one.
        teacher: The tokenizer of a teacher that has another one, and the most tokens that it takes:
            adds its encoding of each window, and to which tokens its answers belong.

    Returns:
        The columns of `prepare_train_features` and
        `example_id`: the id of the question;
        `offset_mapping`: for each token the first character in the context and the one after
        its last, or None for tokens outside the context (and for those that stand for white space);
        `no_answer_position`: the token that stands for "no answer".

    Raises:
        TypeError: The tokenizer is not a fast one.
        ValueError: `max_length` or `doc_stride` is out of range, or `dataset` is empty or lacks
            a column.
        QuestionAnsweringDataError: An answer is not where `answer_start` says, or a value has the
            wrong type.
    """
    windows = WindowCutter(tokenizer, max_length, doc_stride, for_evaluation=True, teacher=teacher)
    return windows.apply(dataset, num_proc)


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `TypeError` if a tokenizer cannot tell which characters a token stands for."""
    if not tokenizer.is_fast:
        raise TypeError(
            f"tokenizer={type(tokenizer).__name__} is not a fast tokenizer: it cannot tell which "
            "characters a token stands for; use AutoTokenizer.from_pretrained(...)"
        )


class WindowCutter:
    """Cuts batches of examples into windows; a callable object for `Dataset.map`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        doc_stride: int,
        *,
        for_evaluation: bool,
        teacher: TeacherReader | None = None,
    ) -> None:
        check_fast(tokenizer)
        special_tokens = tokenizer.num_special_tokens_to_add(pair=True)
        if doc_stride < 0:
            raise ValueError(f"doc_stride={doc_stride} must be at least 0")
        # at least one token of the question and one more of the context than the overlap
        least = special_tokens + doc_stride + 1 + max(1, int(max_length * _LEAST_ADVANCE))
        if max_length < least:
            raise ValueError(
                f"max_length={max_length} is too small for doc_stride={doc_stride}: it must be at "
                f"least {least} to hold {special_tokens} special tokens, the overlap and something "
                "new; raise max_length or lower doc_stride"
            )
        # A copy, because a fast tokenizer keeps the truncation of its last call.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "right"
        self.max_length = max_length
        self.doc_stride = doc_stride
        self.for_evaluation = for_evaluation
        self.pad_on_left = tokenizer.padding_side == "left"
        self.max_question_length = max_length - least + 1
        # Also leaves the copy in one state whatever was done before: older versions of datasets
        # take the truncation of the last call into the fingerprint of a map.
        encoding = self.encode(["a"], ["a"])
        self.tokenizer_columns = [
            name
            for name in encoding
            if name not in ("offset_mapping", "overflow_to_sample_mapping")
        ]

        self.teacher: TeacherWindows | None = None
        if teacher is not None:
            most = teacher.length(None) or 2 * max_length
            cutter = WindowCutter(teacher.tokenizer, most, 0, for_evaluation=False)
            self.teacher = TeacherWindows(cutter)

    def apply(self, dataset: Dataset, num_proc: int | None) -> Dataset:
        """Return the windows of all rows of `dataset`."""
        needed = ["context", "question", *(["id"] if self.for_evaluation else [])]
        if not self.for_evaluation or "answers" in dataset.column_names:
            needed.append("answers")
        missing = [name for name in needed if name not in dataset.column_names]
        if missing:
            raise ValueError(
                f"dataset has no column {', '.join(missing)}; it has "
                f"{', '.join(dataset.column_names)}"
            )
        if len(dataset) == 0:
            raise ValueError("dataset is empty: there is nothing to make features from")
        return dataset.with_format(None).map(
            self,
            batched=True,
            remove_columns=dataset.column_names,
            features=self.types(labelled="answers" in needed),
            num_proc=num_proc,
            desc="Cutting contexts into windows",
        )

    def __call__(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Turn a batch of rows into a batch of windows."""
        examples = _checked(examples)
        questions = self.cut_questions(examples["question"])
        encodings = self.encode(questions, examples["context"])
        sources = encodings.pop("overflow_to_sample_mapping")
        offset_mapping = encodings.pop("offset_mapping")
        features: dict[str, list[Any]] = dict(encodings)
        contexts = [examples["context"][source] for source in sources]
        count = len(sources)
        inside = [self.in_context(encodings, row) for row in range(count)]
        no_answer = [
            self.no_answer_position(*row)
            for row in zip(features["input_ids"], features["attention_mask"], inside, strict=True)
        ]
        if "answers" in examples:
            tokens = [list(compress(range(len(keep)), keep)) for keep in inside]
            starts, ends = [], []
            for row, source in enumerate(sources):
                # The tokens of the context on either side of the window: a window may begin or end
                # within a character of several tokens.
                before = after = None
                if row > 0 and sources[row - 1] == source:
                    before = offset_mapping[row - 1][tokens[row - 1][-1 - self.doc_stride]]
                if row < count - 1 and sources[row + 1] == source:
                    after = offset_mapping[row + 1][tokens[row + 1][self.doc_stride]]
                answers = examples["answers"][source]
                span = _token_span(answers, tokens[row], offset_mapping[row], before, after)
                starts.append(no_answer[row] if span is None else span[0])
                ends.append(no_answer[row] if span is None else span[1])
            features["start_positions"] = starts
            features["end_positions"] = ends
        if self.for_evaluation:
            features["example_id"] = [str(examples["id"][source]) for source in sources]
            features["offset_mapping"] = [
                _context_offsets(contexts[row], offset_mapping[row], inside[row])
                for row in range(count)
            ]
            features["no_answer_position"] = no_answer
        if self.teacher is not None:
            answers = examples.get("answers")
            features |= self.teacher(
                [questions[source] for source in sources],
                contexts,
                [
                    self.window(questions[source], contexts[row], encodings, offset_mapping, row)
                    for row, source in enumerate(sources)
                ],
                None if answers is None else [answers[source] for source in sources],
            )
        return features

    def types(self, *, labelled: bool) -> Features:
        """Return the types of the columns: guessed ones fail where the first rows are None."""
        types: dict[str, Any] = {
            name: List(Value("int32" if name == "input_ids" else "int8"))
            for name in self.tokenizer_columns
        }
        if labelled:
            types |= {"start_positions": Value("int64"), "end_positions": Value("int64")}
        if self.for_evaluation:
            types |= {
                "example_id": Value("string"),
                "offset_mapping": List(List(Value("int32"))),
                "no_answer_position": Value("int64"),
            }
        if self.teacher is not None:
            types |= self.teacher.features(labelled=labelled)
        return Features(types)

    def cut_questions(self, questions: list[str]) -> list[str]:
        """Drop leading white space, and the end of questions that leave a window no room."""
        stripped = [question.lstrip() for question in questions]
        encodings = self.tokenizer(stripped, add_special_tokens=False, truncation=False)
        return [
            question if len(ids) <= self.max_question_length else self._cut_question(question)
            for question, ids in zip(stripped, encodings["input_ids"], strict=True)
        ]

    def _cut_question(self, question: str) -> str:
        while True:
            offsets = self.tokenizer(
                question, add_special_tokens=False, return_offsets_mapping=True, truncation=False
            )["offset_mapping"]
            if len(offsets) <= self.max_question_length:
                return question
            end = max(last for _, last in offsets[: self.max_question_length])
            # a part of a question may cut into more tokens than it had in the whole
            question = question[: min(end, len(question) - 1)]

    def encode(self, questions: list[str], contexts: list[str]) -> BatchEncoding:
        first, second = (contexts, questions) if self.pad_on_left else (questions, contexts)
        return self.tokenizer(
            first,
            second,
            truncation="only_first" if self.pad_on_left else "only_second",
            max_length=self.max_length,
            stride=self.doc_stride,
            padding="max_length" if self.pad_on_left else False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=True,
        )

    def window(
        self,
        question: str,
        context: str,
        encodings: BatchEncoding,
        offsets: Sequence[Sequence[Span]],
        row: int,
    ) -> Window:
        """Return which characters the tokens of a window stand for."""
        inside, sides = self.in_context(encodings, row), encodings.sequence_ids(row)
        asks = [
            side is not None and not of_context
            for side, of_context in zip(sides, inside, strict=True)
        ]
        ids, mask = encodings["input_ids"][row], encodings["attention_mask"][row]
        nothing = self.no_answer_position(ids, mask, inside)
        return Window(
            trimmed_spans(context, offsets[row], inside),
            trimmed_spans(question, offsets[row], asks),
            [i for i, side in enumerate(sides) if side is None and mask[i] and i != nothing],
            nothing,
        )

    def in_context(self, encodings: BatchEncoding, row: int) -> list[bool]:
        """Return which tokens of a window are those of the context; they stand side by side."""
        side, sides = 0 if self.pad_on_left else 1, encodings.sequence_ids(row)
        count = sides.count(side)
        before = sides.index(side) if count else 0
        after = len(sides) - before - count
        return [False] * before + [True] * count + [False] * after

    def no_answer_position(
        self, input_ids: list[int], attention_mask: list[int], inside: list[bool]
    ) -> int:
        """Find the token that stands for "no answer": never padding, nor part of the context.

        The classification token, else the one that begins a text, else the first token that
        is left (of the question, where the tokenizer adds no special tokens).
        """
        for special in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id):
            for position, token in enumerate(input_ids):
                if token == special and attention_mask[position] and not inside[position]:
                    return position
        places = zip(attention_mask, inside, strict=True)
        return next(
            (i for i, (attended, of_text) in enumerate(places) if attended and not of_text), 0
        )


def _checked(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return a batch of rows with their answers as an object of lists."""
    answers = []
    for row, question in enumerate(examples["question"]):
        values = {name: column[row] for name, column in examples.items()}
        name = f"id {values['id']!r}" if "id" in values else f"question {question!r}"
        where = f"The row with the {name}"
        field(values, "question", str, where)
        field(values, "context", str, where)
        if "answers" in values:
            texts, starts = row_answers(values, where)
            wrong = misplaced(values["context"], texts[:1], starts[:1])
            if wrong:
                raise TaskDataError(f"{where}: {wrong}; validate_answers(dataset) counts such rows")
            answers.append({"text": texts, "answer_start": starts})
    return {**examples, "answers": answers} if answers else examples


def _context_offsets(
    context: str, offsets: list[tuple[int, int]], inside: list[bool]
) -> list[tuple[int, int] | None]:
    """Return the offsets of tokens that an answer can begin or end with, else None."""
    return [
        offset if keep and context[slice(*offset)].strip() else None
        for offset, keep in zip(offsets, inside, strict=True)
    ]


def _token_span(
    answers: dict[str, list[Any]],
    tokens: list[int],
    offsets: Sequence[Span],
    before: Span | None,
    after: Span | None,
) -> tuple[int, int] | None:
    """Return the first and last token of the first answer, or None if it is not in the window.

    Tokens are the positions of the context in the window, offsets the characters of all positions;
    before and after those of the tokens next to it where it is not at the context's start or end.
    """
    if not answers["text"] or not tokens:
        return None
    text, start = answers["text"][0], answers["answer_start"][0]
    end = start + len(text.rstrip())
    start += len(text) - len(text.lstrip())
    # Tokens do not cover every character (white space, what the tokenizer drops), so that the
    # window reaches to the ends of the context even where its tokens do not.
    if before and start < max(offsets[tokens[0]][0], before[1]):
        return None
    if after and end > min(offsets[tokens[-1]][1], after[0]):
        return None
    covering = [token for token in tokens if offsets[token][0] < end and offsets[token][1] > start]
    return (covering[0], covering[-1]) if covering else None
