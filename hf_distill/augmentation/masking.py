"""Which words are masked together: the forward passes that a text needs.

A text longer than the model's input is cut into overlapping windows, and each word is predicted in
the window in which it has most text on both sides. The words of a window are masked in one pass or
several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MASKINGS = ("grouped", "single")
# BERT was trained with this share of its tokens hidden (Devlin et al. 2019, §3.1).
MASKED_SHARE = 0.15


class Window(NamedTuple):
    """Tokens ``[start, end)`` of a text, of which those in ``[first, last)`` are predicted here."""

    start: int
    end: int
    first: int
    last: int


class Pass(NamedTuple):
    """A piece of a text with some tokens masked: one row of a batch.

    Attributes:
        text: the index of the text.
        window: the tokens that it has.
        tokens: those of them that are masked, by their place in the text.
    """

    text: int
    window: Window
    tokens: tuple[int, ...]


def windows(length: int, longest: int) -> list[Window]:
    """Cut a text into windows.

    Args:
        length: its tokens, without special ones.
        longest: the most tokens of a window.

    Returns:
        One window for a short text. Otherwise windows of exactly ``longest`` tokens that share at
        least half of them with the next; each token is predicted in exactly one, at least a
        quarter of ``longest`` away from both ends unless the text ends there.
    """
    if length <= longest:
        return [Window(0, length, 0, length)]
    margin = longest // 4
    stride = max(longest - 2 * margin, 1)
    found: list[Window] = []
    first = 0
    while first < length:
        start = min(max(first - margin, 0), length - longest)
        end = start + longest
        last = length if end == length else min(max(end - margin, first + stride), end)
        found.append(Window(start, end, first, last))
        first = last
    return found


def passes(
    text: int, length: int, places: Sequence[int], *, longest: int, masking: str
) -> list[Pass]:
    """The passes that predict some tokens of a text.

    Args:
        text: the index of the text.
        length: its tokens, without special ones.
        places: the tokens to predict, in order.
        longest: the most tokens of a pass, without special ones.
        masking: ``single``: each alone, so that the model sees all other words. ``grouped``: as
            many together as make 15 % of the window's tokens, and always far apart: of n groups,
            every nth word goes into the same one.

    Returns:
        The passes; each place is in exactly one.
    """
    found = []
    for window in windows(length, longest):
        here = [place for place in places if window.first <= place < window.last]
        size = 1
        if masking == "grouped":
            size = max(int(MASKED_SHARE * (window.end - window.start)), 1)
        groups = -(-len(here) // size)
        found += [Pass(text, window, tuple(here[group::groups])) for group in range(groups)]
    return found


def whole_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The token at each place of a text, for tokens that share no character with another.

    Args:
        text: the text.
        offsets: the first character of each token and the one after its last; the space before a
            word may be counted to it.

    Returns:
        Token indices by (start, end), the space left out.
    """
    found: dict[tuple[int, int], int] = {}
    previous = 0
    for index, (start, end) in enumerate(offsets):
        while start < end and text[start].isspace():
            start += 1
        if start < end and start >= previous:
            found[start, end] = index
        previous = max(previous, end)
    return found
