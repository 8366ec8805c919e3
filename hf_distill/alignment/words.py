"""Token classification: a word's tag is at its first token, in either encoding."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_distill.alignment.base import INPUT_IDS, PREFIX, Alignment, TokenColumn
from hf_distill.alignment.offsets import NOWHERE
from hf_distill.heads.base import IGNORED, Batch
from hf_distill.step import AlignedLogits

TOKEN_MAP = f"{PREFIX}token_map"
"""For each token of the student that begins a word the teacher's that begins it."""


class WordAlignment(Alignment):
    """Tags of words, of which the first token counts on either side.

    Words that one of the two tokenizers cuts off or drops are left out.
    """

    unit = "words"
    counterparts = TOKEN_MAP
    token_columns: ClassVar[Mapping[str, TokenColumn]] = {
        TOKEN_MAP: TokenColumn(axis="student", positions_of="teacher")
    }

    def teacher_labels(self, batch: Batch) -> dict[str, Any]:
        """Return labels at the teacher's tokens; without labels 0 where a word begins."""
        target, counts, labels = batch[TOKEN_MAP], self._counts(batch), batch.get("labels")
        values = torch.zeros_like(target) if labels is None else labels
        theirs = torch.full_like(batch[INPUT_IDS], IGNORED)
        rows = torch.arange(len(target), device=target.device)[:, None].expand_as(target)
        theirs[rows[counts], target[counts]] = values[counts].to(theirs.dtype)
        return {"labels": theirs}

    def count_rows(self, batch: Batch) -> int | Tensor:
        """Count the words of both sides that have a label, or all where there are none."""
        return self._counts(batch).sum()

    def align(
        self, batch: Batch, student: Tensor, teacher: Tensor, temperature: float
    ) -> AlignedLogits:
        """Return the teacher's logits of each word at the student's first token of it."""
        target = batch[TOKEN_MAP].clamp(min=0)[..., None].expand(-1, -1, teacher.shape[-1])
        student, teacher = self.head.align(student, teacher.gather(1, target))
        counts = self._counts(batch)
        return AlignedLogits(student, teacher, None, counts, counts.sum())

    @staticmethod
    def _counts(batch: Batch) -> Tensor:
        labels, there = batch.get("labels"), batch[TOKEN_MAP] != NOWHERE
        return there if labels is None else there & (labels != IGNORED)


def word_map(student: Mapping[int, int], teacher: Mapping[int, int], length: int) -> list[int]:
    """Return ``TOKEN_MAP`` of a row.

    Args:
        student: the first token of each word, by the word's index.
        teacher: the same in the teacher's encoding.
        length: how many tokens the student's has.
    """
    found = [NOWHERE] * length
    for word, token in student.items():
        found[token] = teacher.get(word, NOWHERE)
    return found


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Find the first token of each word of a text, in which spaces join the words.

    Args:
        words: the words.
        offsets: for each token its first character and the one after its last; special tokens
            have none (two equal numbers).

    Returns:
        The token by the word, in order. A word that was cut off, or of which the tokenizer keeps
        nothing, is left out.
    """
    begins = []
    place = 0
    for word in words:
        begins.append(place)
        place += len(word) + 1
    found: dict[int, int] = {}
    for token, (begin, end) in enumerate(offsets):
        # Its last character: some tokenizers count the space before a word in.
        index = bisect_right(begins, end - 1) - 1
        if end > begin and end - 1 < begins[index] + len(words[index]):
            found.setdefault(index, token)
    return found
