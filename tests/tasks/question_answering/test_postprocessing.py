"""Spans from logits, against a plain search over all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tied_answers import tied_answers

from hf_distill.tasks.question_answering import Answer, postprocess

WORD = "abcd "


def words(count: int, *, outside: int = 2, first: int = 0) -> list[list[int] | None]:
    """Offsets of `count` words of a context that repeats WORD, after `outside` other tokens."""
    spans = [[5 * i, 5 * i + 4] for i in range(first, first + count)]
    return [*[None] * outside, *spans, None]


def tables(windows: list[tuple[str, list[Any]]], no_answer: int = 0) -> tuple[Dataset, Dataset]:
    names = list(dict.fromkeys(name for name, _ in windows))
    longest = max(offset[1] for _, row in windows for offset in [*row, [0, 5]] if offset)
    features = Dataset.from_dict(
        {
            "example_id": [name for name, _ in windows],
            "offset_mapping": [row for _, row in windows],
            "no_answer_position": [no_answer] * len(windows),
        }
    )
    context = (WORD * (longest // 5 + 1))[:longest]
    return Dataset.from_dict({"id": names, "context": [context] * len(names)}), features


def search(
    windows: list[tuple[str, list[Any]]], start: np.ndarray, end: np.ndarray, longest: int
) -> dict[str, list[tuple[float, int, int]]]:
    """All spans of each question, the best first."""
    found: dict[str, dict[tuple[int, int], float]] = {name: {} for name, _ in windows}
    for (name, offsets), starts, ends in zip(windows, start, end, strict=True):
        for i, first in enumerate(offsets):
            for j, last in enumerate(offsets):
                if first is None or last is None or not i <= j < i + longest:
                    continue
                span = (first[0], last[1])
                score = float(starts[i]) + float(ends[j])
                found[name][span] = max(score, found[name].get(span, -np.inf))
    return {
        name: sorted(((score, *span) for span, score in spans.items()), reverse=True)
        for name, spans in found.items()
    }


@given(
    seed=st.integers(0, 2**31),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    n_best=st.integers(1, 25),
    longest=st.integers(1, 14),
    padding=st.integers(0, 5),
)
@settings(max_examples=80)
def test_the_n_best_are_those_of_a_search_over_everything(
    seed: int, counts: list[int], n_best: int, longest: int, padding: int
) -> None:
    random = np.random.default_rng(seed)
    # windows of one question overlap by half
    windows = [(f"q{i // 2}", words(n, first=(i % 2) * (n // 2))) for i, n in enumerate(counts)]
    examples, features = tables(windows)
    width = max(len(row) for _, row in windows) + padding
    start, end = random.normal(size=(2, len(windows), width)).astype(np.float32)
    for row, (_, offsets) in enumerate(windows):
        start[row, len(offsets) :] = end[row, len(offsets) :] = random.choice([-100, 1e4, np.nan])
    predictions = postprocess(
        examples, features, start, end, n_best=n_best, max_answer_length=longest
    )
    everything = search(windows, start, end, longest)
    assert [prediction.id for prediction in predictions] == examples["id"][:]
    for prediction, context in zip(predictions, examples["context"], strict=True):
        wanted = everything[prediction.id][:n_best]
        assert [(a.score, a.start, a.end) for a in prediction.answers] == wanted
        assert all(a.text == context[a.start : a.end] for a in prediction.answers)
        null = min(
            float(s[0]) + float(e[0])
            for (name, _), s, e in zip(windows, start, end, strict=True)
            if name == prediction.id
        )
        assert prediction.no_answer_score == null
        if not wanted:
            assert prediction.text == "" and prediction.no_answer_margin == np.inf
        else:
            assert prediction.no_answer_margin == null - wanted[0][0]
            best = context[wanted[0][1] : wanted[0][2]]
            assert prediction.text == ("" if null > wanted[0][0] else best)


@given(
    seed=st.integers(0, 2**31),
    characters=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    n_best=st.integers(1, 12),
    longest=st.integers(1, 14),
)
@settings(max_examples=150)
def test_ties_and_tokens_of_one_character_follow_a_plain_sort(
    seed: int, characters: list[int], n_best: int, longest: int
) -> None:
    """Few different logits, and characters that are up to four tokens, as with byte-level BPE."""
    random = np.random.default_rng(seed)
    one = [[5 * i, 5 * i + 4] for i, many in enumerate(characters) for _ in range(many)]
    windows = [("q", [None, *one]), ("q", [None, *one[len(one) // 2 :]])]
    examples, features = tables(windows)
    start, end = random.integers(3, size=(2, 2, 1 + len(one))).astype(np.float32)
    [prediction] = postprocess(
        examples, features, start, end, n_best=n_best, max_answer_length=longest
    )
    everything = sorted(
        (-score, first, last) for score, first, last in search(windows, start, end, longest)["q"]
    )
    assert [(-a.score, a.start, a.end) for a in prediction.answers] == everything[:n_best]


def _feature_sets() -> list[str]:
    """What to disable so that NumPy runs its other kernels: the newest first, then all."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    there = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    return [" ".join(there[first:]) for first in range(len(there) - 1, -1, -1)]


def test_ties_are_the_same_under_every_kernel_of_numpy() -> None:
    expected = tied_answers()
    assert expected[0] == [(0, 5 * i + 4) for i in range(20)]
    sets = _feature_sets()
    if not sets:
        pytest.skip("this processor has one kind of kernel only")
    for disabled in {sets[len(sets) // 2], sets[-1]}:
        found = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("tied_answers.py"))],
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert [[tuple(pair) for pair in one] for one in json.loads(found.stdout)] == expected


def one_window(best: float, null: float) -> tuple[Dataset, Dataset, np.ndarray, np.ndarray]:
    windows = [("q", words(3))]
    start = np.full((1, 6), -9.0)
    end = np.full((1, 6), -9.0)
    start[0, 3], end[0, 4] = best, 0.0
    start[0, 0], end[0, 0] = null, 0.0
    return *tables(windows), start, end


@pytest.mark.parametrize(
    ("margin", "threshold", "answered"),
    [
        (0.0, 0.0, True),
        (0.5, 0.0, False),
        (-0.5, 0.0, True),
        (0.5, 0.5, True),
        (0.75, 0.5, False),
        (-0.5, -0.75, False),
        (50.0, None, True),
    ],
)
def test_the_threshold_decides_strictly_above(
    margin: float, threshold: float | None, answered: bool
) -> None:
    [prediction] = postprocess(*one_window(1.0, 1.0 + margin), no_answer_threshold=threshold)
    assert prediction.no_answer_margin == margin
    assert prediction.text == ("abcd abcd" if answered else "")
    assert prediction.answers[0] == Answer("abcd abcd", 5, 14, 1.0)


def test_no_answer_counts_by_the_window_that_believes_in_it_least() -> None:
    windows = [("q", words(3)), ("q", words(3, first=2)), ("r", words(3))]
    start = np.zeros((3, 6))
    start[:, 0] = [8.0, 3.0, -7.0]
    q, r = postprocess(*tables(windows), start, np.zeros((3, 6)))
    assert (q.no_answer_score, r.no_answer_score) == (3.0, -7.0)
    assert (q.text, r.text) == ("", "abcd")


def test_features_may_be_shuffled_selected_and_of_any_order() -> None:
    windows = [("q", words(4)), ("r", words(6)), ("q", words(4, first=4))]
    examples, features = tables(windows)
    start, end = np.random.default_rng(0).normal(size=(2, 3, 9))
    order = [2, 0, 1]
    plain = postprocess(examples, features, start, end)
    assert postprocess(examples, features.select(order), start[order], end[order]) == plain
    assert postprocess(examples.select([1, 0]), features, start, end) == plain[::-1]
    assert postprocess(examples, features.with_format("torch"), start, end) == plain


def test_whitespace_at_the_edge_of_tokens_is_not_part_of_the_answer() -> None:
    context = "in  Wien \n heute"
    examples = Dataset.from_dict({"id": ["q"], "context": [context]})
    features = Dataset.from_dict(
        {
            "example_id": ["q"],
            "offset_mapping": [[None, [0, 3], [3, 11], [11, 16]]],
            "no_answer_position": [0],
        }
    )
    start, end = np.array([[0.0, 1.0, 9.0, 2.0]]), np.array([[0.0, 1.0, 9.0, 2.0]])
    [prediction] = postprocess(examples, features, start, end)
    assert prediction.answers[0] == Answer("Wien", 4, 8, 18.0)
    assert all(context[a.start : a.end] == a.text for a in prediction.answers)


def test_text_is_cut_from_the_context_unchanged() -> None:
    context = "ẞtraße\u00a0e\u0301\u200d𝔘 x"
    examples = Dataset.from_dict({"id": ["q"], "context": [context]})
    features = Dataset.from_dict(
        {
            "example_id": ["q"],
            "offset_mapping": [[None, [0, 6], [7, 9], [10, 11], [12, 13]]],
            "no_answer_position": [0],
        }
    )
    start, end = np.eye(5)[[1]] * 5, np.eye(5)[[3]] * 5
    [prediction] = postprocess(examples, features, start, end)
    assert prediction.text == context[:11]


def test_half_precision_and_torch_logits_are_welcome() -> None:
    import torch

    examples, features, start, end = one_window(2.0, -2.0)
    plain = postprocess(examples, features, start, end)
    for kind in (np.float16, np.float32):
        assert postprocess(examples, features, start.astype(kind), end.astype(kind)) == plain
    assert postprocess(examples, features, torch.tensor(start), torch.tensor(end)) == plain


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["start_logits", "end_logits"])
@pytest.mark.parametrize("token", [0, 3, 5])
def test_logits_that_are_no_numbers_name_the_question(value: float, which: str, token: int) -> None:
    windows = [("fine", words(3)), ("broken", words(3))]
    logits = {name: np.zeros((2, 6)) for name in ("start_logits", "end_logits")}
    logits[which][1, token] = value
    with pytest.raises(ValueError, match=rf"{which}\[1, {token}\] is {value}.*'broken' \(1 of 2"):
        postprocess(*tables(windows), **logits)


def test_minus_infinity_is_a_masked_position() -> None:
    windows = [("q", words(3))]
    start = np.array([[-np.inf, -np.inf, 9.0, 0.0, -np.inf, -np.inf]])
    end = np.array([[0.0, 9.0, -np.inf, 0.0, 1.0, 9.0]])
    [prediction] = postprocess(*tables(windows), start, end)
    assert [(a.start, a.end) for a in prediction.answers] == [(0, 14), (0, 9), (5, 14), (5, 9)]
    assert prediction.no_answer_score == -np.inf
    [nothing] = postprocess(*tables(windows), np.full((1, 6), -np.inf), end)
    assert nothing.answers == () and nothing.text == ""


def test_what_does_not_fit_together_is_refused() -> None:
    examples, features = tables([("q", words(3)), ("r", words(3))])
    good = np.zeros((2, 6))
    for arguments, options, message in (
        ((examples, features, good[:1], good), {}, r"start_logits has the shape \(1, 6\).*\(2, 6"),
        ((examples, features, good, good[:, :5]), {}, r"end_logits has the shape \(2, 5\)"),
        ((examples, features, good[0], good), {}, r"start_logits has the shape \(6,\)"),
        (
            (examples.select([0]), features, good, good),
            {},
            "the question 'r', which examples lacks",
        ),
        ((examples, features.select([0]), good[:1], good[:1]), {}, "'r' has no feature"),
        ((examples.select([0, 0]), features, good, good), {}, "an id twice"),
        ((examples, features.select([]), good, good), {}, "features is empty"),
        (
            (examples, features.remove_columns("offset_mapping"), good, good),
            {},
            "no column offset_mapping; make it with prepare_eval_features",
        ),
        ((examples, features, good, good), {"n_best": 0}, "n_best=0"),
        ((examples, features, good, good), {"max_answer_length": 0}, "max_answer_length=0"),
        ((examples, features, good, good), {"no_answer_threshold": np.nan}, "no_answer_threshold"),
    ):
        with pytest.raises(ValueError, match=message):
            postprocess(*arguments, **options)


def test_five_thousand_windows_take_a_second() -> None:
    count, width = 5_000, 384
    inside = np.tile(np.arange(width) >= 20, (count, 1))
    starts = np.tile(np.arange(width) * 5, (count, 1))[inside]
    lengths = np.concatenate([[0], np.cumsum(2 * inside.reshape(-1))]).astype(np.int32)
    tokens = pa.ListArray.from_arrays(
        pa.array(lengths),
        pa.array(np.stack([starts, starts + 4], axis=1).reshape(-1)),
        mask=pa.array(~inside.reshape(-1)),
    )
    offsets = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * width, tokens)
    names = [str(i) for i in range(count)]
    features = Dataset(
        pa.table(
            {
                "example_id": names,
                "offset_mapping": offsets,
                "no_answer_position": np.zeros(count, dtype=np.int64),
            }
        )
    )
    examples = Dataset.from_dict({"id": names, "context": [WORD * width] * count})
    start, end = np.random.default_rng(0).normal(size=(2, count, width)).astype(np.float32)
    begin = time.process_time()
    predictions = postprocess(examples, features, start, end)
    assert time.process_time() - begin < 3  # 0.5 here; a loop over pairs of tokens takes minutes
    assert len(predictions) == count
