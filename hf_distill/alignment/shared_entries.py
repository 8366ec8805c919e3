"""Entries of two vocabularies that are the same piece of text."""

from __future__ import annotations

import torch
from tokenizers import decoders
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_distill.alignment.chunks import special_ids

_FEWEST = 0.1
"""The share of the smaller vocabulary that must be shared."""


def shared_entries(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor]:
    """Find the entries of two vocabularies with the same text and the same place in a word.

    Returns:
        The student's ids, ascending, and the teacher's of the same entries.

    Raises:
        ValueError: less than a tenth of the smaller vocabulary is shared; says how much.
    """
    ours, theirs = entries(student), entries(teacher)
    found = sorted((ours[key], theirs[key]) for key in ours.keys() & theirs.keys())
    smaller = min(len(ours), len(theirs))
    if len(found) < _FEWEST * smaller or not found:
        raise ValueError(
            f"Teacher and student share {len(found)} entries of their vocabularies, "
            f"{len(found) / max(smaller, 1):.1%} of the smaller one; their predictions of masked "
            f"words are compared over shared entries, and {_FEWEST:.0%} is the least. Choose a "
            "teacher_model of the same language, or one with the student's tokenizer."
        )
    student_ids, teacher_ids = torch.tensor(found).T
    return student_ids, teacher_ids


def entries(tokenizer: PreTrainedTokenizerBase) -> dict[tuple[bool, str], int]:
    """Return the ids of a vocabulary by text and by whether a word begins with it.

    However the tokenizer writes that: ``the`` and ``##ing`` (WordPiece), ``Ġthe`` and ``ing``
    (bytes), ``▁the`` and ``ing`` (SentencePiece). Special tokens and parts of letters are left out.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    special = {*special_ids(tokenizer)}
    words = [(token, i) for token, i in vocabulary if i not in special]
    mark = max("Ġ", "▁", "##", key=lambda one: sum(t.startswith(one) for t, _ in words))
    bytes_of = decoders.ByteLevel()
    found: dict[tuple[bool, str], int] = {}
    for token, i in words:
        text = token.removeprefix(mark)
        begins = text != token
        if mark == "Ġ":
            text = bytes_of.decode([text])
        elif mark == "##":
            # Punctuation is cut off by its look, whatever stands in front of it.
            begins = not begins and text[:1].isalnum()
        if text and "\ufffd" not in text:
            found.setdefault((begins, text), i)
    return found
