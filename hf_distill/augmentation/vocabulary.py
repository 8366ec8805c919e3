"""Which tokens of a tokenizer are whole words, and how they are written."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_distill.augmentation.words import is_plain_word

_WORD_STARTS = ("Ġ", "▁")


class WholeWords(NamedTuple):
    """The tokens of a vocabulary that are words by themselves.

    Attributes:
        texts: by token id: the word, or "" for a special token, a piece of a word, a number or a
            punctuation mark.
        after_space: (vocabulary,) bool: may stand where a word does that has a space before it.
        anywhere: (vocabulary,) bool: may stand at the start of a text or after a bracket. The two
            differ only where the vocabulary marks the space (byte-level BPE, SentencePiece).
    """

    texts: list[str]
    after_space: Tensor
    anywhere: Tensor

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, size: int) -> WholeWords:
        """Those of a tokenizer.

        Args:
            tokenizer: a fast one.
            size: how many logits the model has; it may pad its vocabulary.
        """
        tokens: list[str] = [""] * size
        for token, index in tokenizer.get_vocab().items():
            if index < size:
                tokens[index] = token
        special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        marker = _marker(tokens)
        texts = [""] * size
        starts = torch.zeros(size, dtype=torch.bool)
        for index, token in enumerate(tokens):
            if not token or index in special or (not marker and token.startswith("##")):
                continue
            text = _decoded(tokenizer, token).strip()
            if is_plain_word(text):
                texts[index] = text
                starts[index] = not marker or token.startswith(marker)
        whole = {text for text, is_start in zip(texts, starts.tolist(), strict=True) if is_start}
        anywhere = torch.tensor([bool(text) and text in whole for text in texts])
        return cls(texts, starts, anywhere)


def _marker(tokens: list[str]) -> str:
    """What a token begins with that stands at the start of a word, if the vocabulary marks it."""
    firsts = Counter(token[:1] for token in tokens if len(token) > 1)
    return next((m for m in _WORD_STARTS if firsts[m] > 0.05 * sum(firsts.values())), "")


def _decoded(tokenizer: PreTrainedTokenizerBase, token: str) -> str:
    decoder = tokenizer.backend_tokenizer.decoder
    return token if decoder is None else str(decoder.decode([token]))
