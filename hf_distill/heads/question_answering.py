"""Extractive question answering."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_distill.heads.base import (
    IGNORED,
    Batch,
    TaskHead,
    attention_mask,
    main_input,
    not_padding,
    output,
)


class QuestionAnsweringHead(TaskHead):
    """Two distributions over the positions of a sequence, start and end.

    Rows are ``(batch, 2)``; the mean over rows is the average of both, as in Hugging Face's
    ``run_squad_w_distillation.py``. Padded positions are no classes. Labels outside the sequence (a
    truncated answer) do not count, as in the models' own loss.
    """

    task = "question-answering"
    auto_model = "AutoModelForQuestionAnswering"
    needs_token_types = True
    label_names = ("start_positions", "end_positions")
    logit_names = ("start_logits", "end_logits")

    def logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Start and end logits, ``(batch, 2, length)``."""
        return torch.stack((output(outputs, "start_logits"), output(outputs, "end_logits")), dim=1)

    def class_mask(self, batch: Batch) -> Tensor | None:
        """The attention mask, ``(batch, 1, length)``."""
        mask = attention_mask(batch)
        return None if mask is None else mask[:, None, :]

    def compared_positions(self, batch: Batch) -> Tensor:
        """All but padding."""
        return not_padding(batch)

    def outputs(self, logits: Tensor) -> dict[str, Tensor]:
        """Start and end apart."""
        return {"start_logits": logits[:, 0], "end_logits": logits[:, 1]}

    def count_rows(self, batch: Batch) -> int:
        """Two a sequence."""
        return 2 * main_input(batch).shape[0]

    def count_labelled(self, batch: Batch) -> int | Tensor:
        """The mean of starts and ends inside the sequence: the models average both losses."""
        gold = self.gold(batch)
        return 0 if gold is None else (gold != IGNORED).sum() / 2

    def gold(self, batch: Batch) -> Tensor | None:
        """Positions of start and end, ``(batch, 2)``."""
        start, end = batch.get("start_positions"), batch.get("end_positions")
        if start is None or end is None:
            return None
        positions = torch.stack((start.flatten(), end.flatten()), dim=1)
        return positions.masked_fill(positions >= main_input(batch).shape[1], IGNORED)
