"""Tokens of two tokenizers that stand for the same characters, and mass that moves between them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

NOWHERE = -1
"""The position of a token that has no counterpart."""

Span = tuple[int, int]
"""First character, and the one after the last."""


def trimmed_spans(text: str, offsets: Sequence[Span], inside: Sequence[bool]) -> list[Span | None]:
    """Return the characters of tokens, without white space at either end.

    Some tokenizers count the space in front of a word as the word's.

    Args:
        text: what the offsets count in.
        offsets: of each token.
        inside: whether a token is one of the text.

    Returns:
        ``None`` for tokens that are not, or that stand for white space or for nothing.
    """
    spans: list[Span | None] = []
    for (begin, end), counts in zip(offsets, inside, strict=True):
        while counts and begin < end and text[begin].isspace():
            begin += 1
        while counts and begin < end and text[end - 1].isspace():
            end -= 1
        spans.append((begin, end) if counts and begin < end else None)
    return spans


def span_maps(
    teacher: Sequence[Span | None], student: Sequence[Span | None]
) -> tuple[list[int], list[int]]:
    """Find, for each token of the teacher, the student's where the same answer starts and ends.

    That is the token of the same characters. Otherwise an answer starts with the first of the
    student's tokens that shares a character with the teacher's, which is the one that covers its
    first character if there is one, and ends with the last. So several tokens inside a longer one
    of the student all go to it, and one that begins inside a longer token of the teacher gets no
    start. Where several tokens on either side stand for the same characters, as the bytes of one
    do, they go to each other in their order if they are equally many.

    Args:
        teacher: the characters of its tokens, in the order of the text; ``None`` for tokens that
            an answer cannot begin or end with.
        student: the same.

    Returns:
        The student's positions of starts and of ends by teacher token; ``NOWHERE`` where there is
        none.
    """
    places = [place for place, span in enumerate(student) if span is not None]
    spans = [span for span in student if span is not None]
    begins, ends = [begin for begin, _ in spans], [end for _, end in spans]
    starts_at, ends_at = [NOWHERE] * len(teacher), [NOWHERE] * len(teacher)
    for first, last, span in _runs(teacher):
        begin, end = span
        left, right = bisect_right(ends, begin), bisect_left(begins, end) - 1
        if left > right:
            continue  # the student's tokenizer drops these characters
        same = [i for i in range(left, right + 1) if spans[i] == span]
        if same:
            left, right = same[0], same[-1]
        one_by_one = len(same) == last - first + 1
        for token in range(first, last + 1):
            moved = same[token - first] if one_by_one else None
            starts_at[token] = places[left if moved is None else moved]
            ends_at[token] = places[right if moved is None else moved]
    return starts_at, ends_at


def _runs(spans: Sequence[Span | None]) -> list[tuple[int, int, Span]]:
    """Return first and last token of neighbours that stand for the same characters."""
    runs: list[tuple[int, int, Span]] = []
    for token, span in enumerate(spans):
        if span is None:
            continue
        if runs and runs[-1][1:] == (token - 1, span):
            runs[-1] = (runs[-1][0], token, span)
        else:
            runs.append((token, token, span))
    return runs


def move_mass(
    logits: Tensor, target: Tensor, size: int, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Move the softened probabilities of positions to other positions, where equal ones add up.

    ``p_j = sum_{i -> j} q_i / sum_{i -> anywhere} q_i`` with ``q = softmax(logits / temperature)``:
    what goes nowhere is dropped, and the rest renormalised.

    Args:
        logits: ``(*rows, length)``; -inf for positions that are none.
        target: ``(*rows, length)``, where each goes: 0 to ``size`` - 1, or ``NOWHERE``.
        size: how many positions there are to go to.
        temperature: T > 0.

    Returns:
        ``T log p``, ``(*rows, size)``, float32, whose softmax at ``temperature`` is p; and the
        share of the mass that was kept, ``(*rows)``. Without any the first is 0.
    """
    scaled = (logits.float() / temperature).log_softmax(dim=-1)
    scaled = scaled.masked_fill(target == NOWHERE, -torch.inf)
    peak = scaled.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    mass = (scaled - peak).exp()
    moved = mass.new_zeros((*mass.shape[:-1], size))
    moved.scatter_add_(-1, target.clamp(min=0), mass)
    total = moved.sum(dim=-1, keepdim=True)
    there = total != 0  # also NaN, which is not to be hidden
    logs = (moved / total.masked_fill(~there, 1.0)).log() * temperature
    return logs.masked_fill(~there, 0.0), (total.log() + peak).exp()[..., 0]
