"""One label for each token."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hf_distill.heads.base import IGNORED, Batch, attention_mask, main_input, not_padding, output
from hf_distill.heads.classification import LabelledHead


class TokenClassificationHead(LabelledHead):
    """One distribution a token, ``(batch, length, classes)``.

    Where there are labels, the tokens that have one count (the first piece of each word, usually:
    the teacher was not trained on the others); where there are none, all but padding.
    """

    task = "token-classification"
    auto_model = "AutoModelForTokenClassification"

    def logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The logits of all tokens."""
        return output(outputs, "logits")

    def row_mask(self, batch: Batch) -> Tensor | None:
        """Tokens with a label, or all but padding."""
        return token_mask(batch)

    def compared_positions(self, batch: Batch) -> Tensor:
        """The tokens that count."""
        mask = self.row_mask(batch)
        return not_padding(batch) if mask is None else mask

    def count_rows(self, batch: Batch) -> int | Tensor:
        """The tokens that count."""
        return count(self.row_mask(batch), main_input(batch))

    def count_labelled(self, batch: Batch) -> int | Tensor:
        """Tokens with a label."""
        gold = self.gold(batch)
        return 0 if gold is None else (gold != IGNORED).sum()

    def gold(self, batch: Batch) -> Tensor | None:
        """The labels."""
        return batch.get("labels")


def token_mask(batch: Batch) -> Tensor | None:
    """True for tokens that have a label; where there are no labels, for all but padding."""
    labels = batch.get("labels")
    if labels is not None:
        return labels != IGNORED
    return attention_mask(batch)


def count(mask: Tensor | None, tokens: Tensor) -> int | Tensor:
    """How many tokens a mask lets through; all of ``(batch, length, …)`` without one."""
    return tokens.shape[0] * tokens.shape[1] if mask is None else mask.sum()
