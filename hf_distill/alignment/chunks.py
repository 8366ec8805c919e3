"""Chunks of a text that both tokenizers cut out: as short as can be, from cut to cut of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

UNALIGNED = -1
"""The chunk of a token that is in none."""

_BLANKS = ("Ġ", "▁")
"""Characters that byte-level tokenizers and SentencePiece write for a blank."""

_LONGEST_GAP = 1
"""Characters that one side may leave out: the blank in front of a word, an accent."""


class TokenSpans(NamedTuple):
    """The tokens of a text in order, and the characters ``[begin, end)`` that each stands for."""

    tokens: Sequence[str]
    spans: NDArray[np.int64]
    """``(tokens, 2)``, characters of the original text. Tokens that share a character, as
    byte-level ones do, all have the whole of it."""
    special: NDArray[np.bool_]
    """``(tokens,)``: those that stand for no text."""
    unknown: NDArray[np.bool_]
    """``(tokens,)``: those that stand for any text that is not in the vocabulary."""

    def part(self, which: slice) -> TokenSpans:
        """Return some of the tokens."""
        return TokenSpans(
            self.tokens[which], self.spans[which], self.special[which], self.unknown[which]
        )


class Chunks(NamedTuple):
    """Tokens of student and teacher by the part of a text that they stand for."""

    student: NDArray[np.int64]
    """``(tokens,)``: the chunk of each token, from 0 in the order of the text; ``UNALIGNED``."""
    teacher: NDArray[np.int64]
    """The same of the teacher's tokens."""
    dropped: int
    """The student's tokens that stand for text and are in no chunk."""


def token_spans(encoding: Any, tokenizer: PreTrainedTokenizerBase, row: int = 0) -> TokenSpans:
    """Read the tokens of a row from what a fast tokenizer returned for it.

    Args:
        encoding: the tokenizer's output.
        tokenizer: the one that made it.
        row: which text of several.

    Raises:
        ValueError: the tokenizer is not a fast one, and so knows no characters of a token.
    """
    if not encoding.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so the characters of a token are "
            "not known and two tokenizers cannot be aligned; load it with use_fast=True."
        )
    one = encoding.encodings[row]
    ids = np.array(one.ids, dtype=np.int64)
    special = np.isin(ids, special_ids(tokenizer)) | np.array(one.special_tokens_mask, dtype=bool)
    unknown = np.isin(ids, [i for i in (tokenizer.unk_token_id,) if i is not None])
    spans = np.array(one.offsets, dtype=np.int64).reshape(-1, 2)
    # Some tokenizers leave the blanks that a token begins with out of its characters.
    blank = np.array([token.startswith(_BLANKS) for token in one.tokens], dtype=bool) & ~special
    before = np.maximum.accumulate(np.append(0, np.where(special, 0, spans[:, 1])))[:-1]
    spans[blank, 0] = np.minimum(spans[blank, 0], before[blank])
    return TokenSpans(one.tokens, spans, special, unknown & ~special)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that stand for no text: all special ones but that of unknown words."""
    # GPT-2 has one token for the end of a text and for what is unknown, which nothing is there.
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    unknown = {tokenizer.unk_token_id} - {*ends}
    return [i for i in tokenizer.all_special_ids if i not in unknown]


def align_chunks(student: TokenSpans, teacher: TokenSpans) -> Chunks:
    """Cut a text wherever both tokenizers have the end of a token, and number the pieces.

    A chunk is left out where its two sides stand for different characters (more than one in a row
    that only one side has: line breaks that a tokenizer drops, for example), or where one of its
    tokens is an unknown one. Text behind the last common cut is in no chunk. Where both sides have
    the same tokens in a chunk, pieces of one character, each is a chunk.
    """
    sides = (student, teacher)
    cuts = [_cuts(side) for side in sides]
    common = sorted(cuts[0].keys() & cuts[1].keys())
    keep = ~np.isin(np.arange(len(common)), _differing(sides, common))
    members = [
        _members(side, [ends[at] for at in common]) for side, ends in zip(sides, cuts, strict=True)
    ]
    for side, (places, found) in zip(sides, members, strict=True):
        keep[found[side.unknown[places]]] = False
    sizes = keep.astype(np.int64)
    counts = [np.bincount(found, minlength=len(common)) for _, found in members]
    for chunk in np.flatnonzero(keep & (counts[0] == counts[1]) & (counts[0] > 1)):
        names = [
            [side.tokens[i] for i in places[found == chunk]]
            for side, (places, found) in zip(sides, members, strict=True)
        ]
        if names[0] == names[1]:
            sizes[chunk] = len(names[0])
    begins = sizes.cumsum() - sizes
    results = []
    for side, (places, found) in zip(sides, members, strict=True):
        rank = np.arange(len(found)) - np.searchsorted(found, found)
        result = np.full(len(side.tokens), UNALIGNED)
        kept = keep[found]
        result[places[kept]] = (begins[found] + rank * (sizes[found] > 1))[kept]
        results.append(result)
    dropped = int(((results[0] == UNALIGNED) & ~student.special).sum())
    return Chunks(results[0], results[1], dropped)


def _members(side: TokenSpans, ends: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of text up to the last cut, and the chunk of each."""
    places = np.flatnonzero(~side.special)
    found = np.searchsorted(np.array(ends, dtype=np.int64), places, side="right")
    inside = found < len(ends)
    return places[inside], found[inside]


def _cuts(side: TokenSpans) -> dict[int, int]:
    """Return how many tokens stand for the text up to a position, by each that cuts no token."""
    places = np.flatnonzero(~side.special)
    if not len(places):
        return {}
    begins, ends = side.spans[places].T
    until = np.maximum.accumulate(ends)
    following = np.append(np.minimum.accumulate(begins[::-1])[::-1][1:], until[-1])
    return {
        int(position): int(place) + 1
        for position, place, begin in zip(until, places, following, strict=True)
        if position <= begin
    }


def _differing(sides: tuple[TokenSpans, TokenSpans], cuts: Sequence[int]) -> NDArray[np.int64]:
    """Return the chunks with a run of characters that only one side stands for."""
    length = max(int(side.spans.max(initial=0)) for side in sides)
    covered = []
    for side in sides:
        edges = np.zeros(length + 1, dtype=np.int64)
        begins, ends = side.spans[~side.special].T
        np.add.at(edges, begins, 1)
        np.add.at(edges, ends, -1)
        covered.append(edges.cumsum() > 0)
    alone = np.append(covered[0] != covered[1], False).astype(np.int8)
    starts, stops = (np.flatnonzero(np.diff(alone, prepend=0) == sign) for sign in (1, -1))
    long = stops - starts > _LONGEST_GAP
    inside = [
        place
        for start, stop in zip(starts[long], stops[long], strict=True)
        for place in range(start, stop)
    ]
    return np.unique(np.searchsorted(np.array(cuts), np.array(inside, np.int64), side="right"))
