"""Drawing the replacements of a copy: by a number of its own, the same wherever it is computed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

_COPY = re.compile(r"-aug(?:([0-9]{1,9})\.)?[0-9]+\Z")


class WordCandidates(NamedTuple):
    """The word ``text[start:end]`` and what may stand in its place, best first."""

    start: int
    end: int
    words: Sequence[str]


class Replacement(NamedTuple):
    """``text[start:end]`` becomes ``word``."""

    start: int
    end: int
    word: str


def draw(
    text: str,
    candidates: Iterable[WordCandidates],
    *,
    replace_probability: float,
    seed: int,
    copy: int,
    keep: Sequence[tuple[int, int]] = (),
) -> list[Replacement]:
    """Draw the replacements of one copy of a text.

    Each word is replaced with the probability ``replace_probability``, independently, by one of
    its candidates, all equally likely (Jiao et al. 2020, algorithm 1). The draw depends on the
    seed, the text and the number of the copy and on nothing else: not on the order of the texts,
    nor on which process it happens in. That a word is kept changes no other word.

    Args:
        text: the text.
        candidates: its words, in order, not overlapping.
        replace_probability: between 0 and 1.
        seed: another one gives other copies.
        copy: the number of the copy.
        keep: places where no character may change.

    Returns:
        The replacements, in order.
    """
    content = text.encode("utf-8", errors="surrogatepass")
    key = blake2b(b"%d|%d|" % (seed, copy) + content, digest_size=16).digest()
    generator = random.Random(int.from_bytes(key, "big"))
    replacements = []
    for start, end, words in candidates:
        # Both are drawn for every word, so that the next word's are the same in any case.
        replaced, choice = generator.random(), generator.random()
        if replaced < replace_probability and words and not _overlaps(start, end, keep):
            replacements.append(Replacement(start, end, words[int(choice * len(words))]))
    return replacements


def apply(text: str, replacements: Iterable[Replacement]) -> str:
    """Replace words; every other character stays as it is."""
    pieces = []
    last = 0
    for start, end, word in replacements:
        pieces += [text[last:start], word]
        last = end
    return "".join([*pieces, text[last:]])


def moved(place: int, replacements: Iterable[Replacement]) -> int:
    """Where a character that was not replaced is afterwards.

    Args:
        place: its place before, or the end of the text.
        replacements: as for ``apply``.
    """
    return place + sum(
        len(word) - (end - start) for start, end, word in replacements if end <= place
    )


def copy_marker(ids: Iterable[object]) -> str:
    """Find what to put between ``q-`` and 3 to name copy 3 of ``q``, so that no name occurs twice.

    Args:
        ids: all names that there are.

    Returns:
        ``aug``; where names end in ``-aug1`` already, ``aug2.``, and so on.
    """
    found = (_COPY.search(str(one)) for one in ids)
    last = max((int(copy[1] or 1) for copy in found if copy), default=0)
    return f"aug{last + 1}." if last else "aug"


def _overlaps(start: int, end: int, keep: Sequence[tuple[int, int]]) -> bool:
    return any(start < last and first < end for first, last in keep)
