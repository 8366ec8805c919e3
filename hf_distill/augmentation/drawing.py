"""Draw the copies of texts: each by its own number, the same wherever it is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

_COPY = re.compile(r"-aug(?:([0-9]{1,9})\.)?[0-9]+\Z")


class WordCandidates(NamedTuple):
    """The word ``text[start:end]`` and what may stand there instead, best first."""

    start: int
    end: int
    words: Sequence[str]


class Replacement(NamedTuple):
    """``text[start:end]`` becomes ``word``."""

    start: int
    end: int
    word: str


class Copy(NamedTuple):
    """A copy of texts that belong together, and what was replaced in each."""

    number: int
    texts: list[str]
    replacements: list[list[Replacement]]


def distinct_copies(
    texts: Sequence[str],
    candidates: Sequence[Sequence[WordCandidates]],
    keep: Sequence[Sequence[tuple[int, int]]],
    *,
    copies: int,
    replace_probability: float,
    seed: int,
) -> Iterator[Copy]:
    """Draw copies of texts that belong together; those like the texts or each other are left out.

    Args:
        texts: the texts.
        candidates: the words of each, as for ``draw``.
        keep: places of each where no character may change.
        copies: how many to draw.
        replace_probability: between 0 and 1.
        seed: another one gives other copies.
    """
    seen = {tuple(texts)}
    for number in range(1, copies + 1):
        drawn = [
            draw(
                text,
                words,
                replace_probability=replace_probability,
                seed=seed,
                copy=number,
                keep=kept,
            )
            for text, words, kept in zip(texts, candidates, keep, strict=True)
        ]
        new = [apply(text, replacements) for text, replacements in zip(texts, drawn, strict=True)]
        if tuple(new) not in seen:
            seen.add(tuple(new))
            yield Copy(number, new, drawn)


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
    seed, the text, the place of the word and the number of the copy and on nothing else: not on the
    order of the texts, nor on which process it happens in. A word that is kept, or that has no
    candidates (without word vectors, say), changes no other word.

    Args:
        text: the text.
        candidates: its words, in order, not overlapping.
        replace_probability: between 0 and 1.
        seed: another one gives other copies.
        copy: the number of the copy.
        keep: places where no character may change.
    """
    content = text.encode("utf-8", errors="surrogatepass")
    key = blake2b(b"%d|%d|" % (seed, copy) + content, digest_size=16).digest()
    replacements = []
    for start, end, words in candidates:
        drawn = blake2b(b"%d" % start, key=key, digest_size=16).digest()
        replaced, choice = _uniform(drawn[:8]), _uniform(drawn[8:])
        kept = any(start < last and first < end for first, last in keep)
        if replaced < replace_probability and words and not kept:
            replacements.append(Replacement(start, end, words[int(choice * len(words))]))
    return replacements


def _uniform(number: bytes) -> float:
    """8 random bytes as a number in [0, 1)."""
    return (int.from_bytes(number, "big") >> 11) / 2**53


def apply(text: str, replacements: Iterable[Replacement]) -> str:
    """Replace words; every other character stays as it is."""
    pieces = []
    last = 0
    for start, end, word in replacements:
        pieces += [text[last:start], word]
        last = end
    return "".join([*pieces, text[last:]])


def moved(place: int, replacements: Iterable[Replacement]) -> int:
    """Return the new place of a character that was not replaced, or of the end of the text."""
    return place + sum(
        len(word) - (end - start) for start, end, word in replacements if end <= place
    )


def copy_marker(ids: Iterable[object]) -> str:
    """Find what to put between ``q-`` and 3 to name copy 3 of ``q``, so that no name occurs twice.

    It is ``aug``; where some of ``ids`` end in ``-aug1`` already, ``aug2.``, and so on.
    """
    found = (_COPY.search(str(one)) for one in ids)
    last = max((int(copy[1] or 1) for copy in found if copy), default=0)
    return f"aug{last + 1}." if last else "aug"
