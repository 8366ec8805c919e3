"""From start and end logits of windows to answers in the text of the context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

# Windows worked on at a time: keeps the working arrays at some tens of megabytes.
_CHUNK = 512
WINDOW_COLUMNS = ["example_id", "offset_mapping", "no_answer_position"]
_OFFSETS = pa.list_(pa.list_(pa.int64()))
# Whether a character is white space; none beyond the ideographic space is.
_BLANK = np.array([chr(code).isspace() for code in range(0x3002)])


@dataclass(frozen=True)
class Answer:
    """A piece of a context.

    Attributes:
        text: `context[start:end]`, unchanged.
        start: The first character.
        end: The character after the last one.
        score: Start logit + end logit; from `QuestionAnswerer`, a probability.
    """

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """A model's answers to one question.

    Attributes:
        id: The id of the question.
        text: The answer, "" for "the context does not answer this".
        answers: The best non-empty answers, the best one first; no two with the same span.
        no_answer_score: Start logit + end logit of "no answer", the lowest of all windows.
    """

    id: str
    text: str
    answers: tuple[Answer, ...]
    no_answer_score: float

    @property
    def no_answer_margin(self) -> float:
        """`no_answer_score` less the score of the best answer; +inf if there is none."""
        return self.no_answer_score - self.answers[0].score if self.answers else float("inf")


def postprocess(
    examples: Dataset,
    features: Dataset,
    start_logits: npt.ArrayLike,
    end_logits: npt.ArrayLike,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    no_answer_threshold: float | None = 0.0,
) -> list[Prediction]:
    """Find the best spans of each question over all its windows.

    A span (i, j) of context tokens with i ≤ j < i + `max_answer_length` scores
    `start_logits[i] + end_logits[j]`. The `n_best` spans are exact: every span is considered, not
    only those between the best starts and the best ends. A span that two windows share counts
    once, with its better score. "No answer" scores
    `start_logits[p] + end_logits[p]` at `no_answer_position` p, and of all windows of a question
    the lowest such score counts, since one window that holds an answer is enough.

    Args:
        examples: Columns `id` and `context`.
        features: From `prepare_eval_features(examples, …)`, in the order of the logits.
        start_logits: `(len(features), width)`. Width is at least the length of the longest
            feature; what lies beyond the length of a feature is ignored, whatever it holds
            (`Trainer` fills up with −100).
        end_logits: The same for the last token of the answer.
        n_best: Most answers to return for a question.
        max_answer_length: Most tokens in an answer.
        no_answer_threshold: The answer is "" if `no_answer_score` exceeds the best score by more
            than this (in logits). None: never predict "no answer", as SQuAD v1.1 requires.

    Returns:
        One prediction per example, in the order of `examples`. Without any valid span (an empty
        context), `answers` is empty and `text` is "".

    Raises:
        ValueError: A logit of a feature is NaN or +inf (names the question), the shapes do not
            fit, examples and features do not belong together, or an option is out of range.
    """
    missing = [name for name in WINDOW_COLUMNS if name not in features.column_names]
    if missing:
        raise ValueError(
            f"features has no column {', '.join(missing)}; make it with prepare_eval_features"
        )
    return postprocess_windows(
        [str(name) for name in examples["id"]],
        examples["context"][:],
        features.select_columns(WINDOW_COLUMNS).with_format("arrow")[:],
        np.asarray(start_logits),
        np.asarray(end_logits),
        n_best=n_best,
        max_answer_length=max_answer_length,
        no_answer_threshold=no_answer_threshold,
    )


def postprocess_windows(
    ids: list[str],
    contexts: list[str],
    table: pa.Table,
    start_logits: npt.NDArray[np.floating],
    end_logits: npt.NDArray[np.floating],
    *,
    n_best: int,
    max_answer_length: int,
    no_answer_threshold: float | None,
) -> list[Prediction]:
    """Do what `postprocess` does, with columns instead of data sets, which are slow to make."""
    if n_best < 1:
        raise ValueError(f"n_best={n_best} must be at least 1")
    if max_answer_length < 1:
        raise ValueError(f"max_answer_length={max_answer_length} must be at least 1 token")
    if no_answer_threshold is not None and np.isnan(no_answer_threshold):
        raise ValueError("no_answer_threshold=nan must be a number, or None to always answer")
    windows = _WindowTable.from_features(table)
    windows.check_logits(start_logits, "start_logits")
    windows.check_logits(end_logits, "end_logits")
    owners = _owners(ids, windows.example_ids)
    windows.trim([contexts[owner] for owner in owners])

    no_answer_scores = np.full(len(ids), np.inf)
    rows = np.arange(len(owners))
    no_answer = windows.no_answer_positions
    np.minimum.at(
        no_answer_scores,
        owners,
        start_logits[rows, no_answer].astype(np.float64) + end_logits[rows, no_answer],
    )
    spans = list(_best_spans(windows, start_logits, end_logits, n_best, max_answer_length))
    window, first, last, score = (np.concatenate(column) for column in zip(*spans, strict=True))
    owner = owners[window]
    start, end = windows.starts[window, first], windows.ends[window, last]
    order = np.lexsort((end, start, -score, owner))
    bounds = np.searchsorted(owner[order], np.arange(len(ids) + 1))
    columns = [column[order].tolist() for column in (start, end, score)]
    predictions = []
    for index, context in enumerate(contexts):
        part = slice(bounds[index], bounds[index + 1])
        starts, ends, scores = (column[part] for column in columns)
        answers = _answers(context, starts, ends, scores, n_best)
        prediction = Prediction(ids[index], "", answers, float(no_answer_scores[index]))
        keep = no_answer_threshold is None or prediction.no_answer_margin <= no_answer_threshold
        if answers and keep:
            prediction = Prediction(
                prediction.id, answers[0].text, answers, prediction.no_answer_score
            )
        predictions.append(prediction)
    return predictions


@dataclass(frozen=True)
class _WindowTable:
    """Features as arrays.

    Attributes:
        example_ids: The question of each window.
        lengths: `(windows,)` tokens.
        inside: `(windows, longest)` whether a token belongs to the context.
        starts: `(windows, longest)` first character of a token.
        ends: `(windows, longest)` the character after its last.
        no_answer_positions: `(windows,)`.
    """

    example_ids: list[str]
    lengths: npt.NDArray[np.int64]
    inside: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    no_answer_positions: npt.NDArray[np.int64]

    @classmethod
    def from_features(cls, table: pa.Table) -> _WindowTable:
        if table.num_rows == 0:
            raise ValueError("features is empty; make it with prepare_eval_features")
        # the cast is for contexts without tokens, which leave Arrow to guess the type
        offsets = table["offset_mapping"].combine_chunks().cast(_OFFSETS)
        # Arrow, not Python lists: ten thousand features hold four million pairs.
        lengths = np.diff(offsets.offsets.to_numpy())
        tokens = offsets.flatten()
        real = np.arange(lengths.max()) < lengths[:, None]
        inside = np.zeros(real.shape, dtype=bool)
        inside[real] = tokens.is_valid().to_numpy(zero_copy_only=False)
        pairs = tokens.flatten().to_numpy().reshape(-1, 2)
        starts = np.zeros(real.shape, dtype=np.int64)
        ends = np.zeros(real.shape, dtype=np.int64)
        starts[inside], ends[inside] = pairs[:, 0], pairs[:, 1]
        return cls(
            example_ids=[str(name) for name in table["example_id"].to_pylist()],
            lengths=lengths,
            inside=inside,
            starts=starts,
            ends=ends,
            no_answer_positions=table["no_answer_position"].to_numpy(),
        )

    def trim(self, contexts: list[str]) -> None:
        """Leave the white space at the edges of tokens out, which some tokenizers count in."""
        for row, context in enumerate(contexts):
            inside = self.inside[row] & (self.starts[row] < self.ends[row])
            starts, ends = self.starts[row, inside], self.ends[row, inside]
            characters = np.frombuffer(context.encode("utf-32-le", "surrogatepass"), np.uint32)
            blank = _BLANK[np.minimum(characters, len(_BLANK) - 1)]
            if blank[starts].any() or blank[ends - 1].any():
                places = np.arange(len(blank))
                following = np.where(blank, len(blank), places)[::-1]
                self.starts[row, inside] = np.minimum.accumulate(following)[::-1][starts]
                before = np.maximum.accumulate(np.where(blank, -1, places))
                self.ends[row, inside] = before[ends - 1] + 1

    def check_logits(self, logits: npt.NDArray[np.floating], name: str) -> None:
        """Raise if `logits` do not belong to these windows or are not numbers."""
        count, width = self.inside.shape
        if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] < width:
            raise ValueError(
                f"{name} has the shape {logits.shape}, but the {count} features are up to {width} "
                f"tokens long: it must be ({count}, {width} or more), in the order of features"
            )
        real = np.arange(width) < self.lengths[:, None]
        bad = (np.isnan(logits[:, :width]) | np.isposinf(logits[:, :width])) & real
        if bad.any():
            row, token = np.argwhere(bad)[0]
            raise ValueError(
                f"{name}[{row}, {token}] is {logits[row, token]}: the model gave no usable logits "
                f"for the question {self.example_ids[row]!r} ({bad.any(axis=1).sum()} of {count} "
                "features are affected); try float32 or bfloat16 instead of float16"
            )


def _owners(ids: list[str], example_ids: list[str]) -> npt.NDArray[np.int64]:
    rows = {name: row for row, name in enumerate(ids)}
    if len(rows) != len(ids):
        raise ValueError("examples has an id twice; ids must be unique")
    unknown = next((name for name in example_ids if name not in rows), None)
    if unknown is not None:
        raise ValueError(
            f"features has the question {unknown!r}, which examples lacks; make features from "
            "these examples"
        )
    owners = np.array([rows[name] for name in example_ids], dtype=np.int64)
    without = np.setdiff1d(np.arange(len(ids)), owners)
    if without.size:
        raise ValueError(
            f"the question {ids[without[0]]!r} has no feature ({without.size} of {len(ids)} have "
            "none); make features from these examples"
        )
    return owners


def _best_spans(
    windows: _WindowTable,
    start_logits: npt.NDArray[np.floating],
    end_logits: npt.NDArray[np.floating],
    n_best: int,
    max_answer_length: int,
) -> Iterator[tuple[npt.NDArray, npt.NDArray, npt.NDArray, npt.NDArray]]:
    """Yield (window, first token, last token, score) of the best spans, chunk by chunk.

    The n best spans begin at the n starts whose own best span is best: n starts with a better one
    would give n better spans. So it is enough to look at n starts in full, at no loss. Of equal
    scores the first comes first, by start, then by end.

    Several tokens may stand for one character (byte-level tokenizers), so that several spans are
    one text. Windows whose spans are too few texts are searched again for twice as many spans.
    """
    count, width = windows.inside.shape
    length = min(max_answer_length, width)
    for begin in range(0, count, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        inside = windows.inside[part]
        starts = np.where(inside, start_logits[part, :width].astype(np.float64), -np.inf)
        ends = np.where(inside, end_logits[part, :width].astype(np.float64), -np.inf)
        padded = np.pad(ends, ((0, 0), (0, length - 1)), constant_values=-np.inf)
        reachable = np.lib.stride_tricks.sliding_window_view(padded, length, axis=1)
        best = starts + reachable.max(axis=2)
        pending, wanted = np.arange(len(best)), n_best
        while pending.size:
            row = pending[:, None]
            first = _largest(best[pending], wanted)
            scores = starts[row, first][:, :, None] + reachable[row, first]
            scores = scores.reshape(len(pending), -1)
            chosen = _largest(scores, wanted)
            score = np.take_along_axis(scores, chosen, axis=1)
            start = np.take_along_axis(first, chosen // length, axis=1)
            end = np.minimum(start + chosen % length, width - 1)
            valid = score > -np.inf
            texts = _distinct(
                windows.starts[row + begin, start], windows.ends[row + begin, end], valid
            )
            done = (texts >= n_best) | ~valid.all(axis=1) | (wanted >= width * length)
            keep = valid & done[:, None]
            yield (
                np.broadcast_to(row + begin, keep.shape)[keep],
                start[keep],
                end[keep],
                score[keep],
            )
            pending, wanted = pending[~done], 2 * wanted


def _largest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Return where the largest values of each row are, of equal ones the first, by position."""
    if count >= values.shape[1]:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    # Which of equal values argpartition takes depends on the processor; the value does not.
    least = np.partition(values, -count, axis=1)[:, [-count]]
    above, equal = values > least, values == least
    missing = count - above.sum(axis=1, keepdims=True)
    keep = above | (equal & (equal.cumsum(axis=1) <= missing))
    return keep.nonzero()[1].reshape(len(values), count)


def _distinct(
    starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Count the different valid (start, end) of each row, blank ones apart."""
    valid = valid & (starts < ends)
    keys = np.sort(np.where(valid, starts * (ends.max(initial=0) + 1) + ends, -1), axis=1)
    return (np.diff(keys, axis=1, prepend=-1) != 0).sum(axis=1)


def _answers(
    context: str, starts: list[int], ends: list[int], scores: list[float], n_best: int
) -> tuple[Answer, ...]:
    """Return the first `n_best` distinct, non-blank spans. The lists are sorted."""
    found: dict[tuple[int, int], Answer] = {}
    for start, end, score in zip(starts, ends, scores, strict=True):
        if len(found) == n_best:
            break
        if start < end and (start, end) not in found:
            found[start, end] = Answer(context[start:end], start, end, score)
    return tuple(found.values())
