"""Language models with different tokenizers: chunks of text, and pieces that both sides have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_distill.alignment.base import INPUT_IDS, Alignment, TokenColumn
from hf_distill.alignment.shared_entries import shared_entries
from hf_distill.heads.base import IGNORED, Batch, TaskHead
from hf_distill.losses.aligned_chunks import binarised, chunk_sums, token_log_probs
from hf_distill.step import AlignedLogits

CHUNKS = "teacher_chunks"
"""The column with the chunk of each of the teacher's tokens."""
STUDENT_CHUNKS = "student_chunks"
"""The same for the student's tokens."""


class ChunkAlignment(Alignment):
    """Causal models: the probabilities of chunks of the text (``losses.aligned_chunks``).

    A row is a chunk. It counts if all of the student's tokens in it do.
    """

    unit = "chunks of text"
    uses_own_tokens_only = True
    encoder = "encode_texts_for_teacher"
    token_columns: ClassVar[Mapping[str, TokenColumn]] = {
        CHUNKS: TokenColumn("teacher", None),
        STUDENT_CHUNKS: TokenColumn("student", None),
    }

    def teacher_labels(self, batch: Batch) -> dict[str, Any]:
        """Return the teacher's tokens that are in a chunk."""
        return {"labels": batch[INPUT_IDS].masked_fill(batch[CHUNKS] < 0, IGNORED)}

    def count_rows(self, batch: Batch) -> Tensor:
        """Count the chunks whose probabilities are compared."""
        return self._row_mask(batch).sum()

    def align(
        self, batch: Batch, student: Tensor, teacher: Tensor, temperature: float
    ) -> AlignedLogits:
        """Return the logits of "this chunk" and "other text", ``(batch, chunks, 2)``."""
        row_mask, count = self._row_mask(batch), _most_chunks(batch)
        sides = (
            (student, batch["input_ids"], batch[STUDENT_CHUNKS]),
            (teacher, batch[INPUT_IDS], batch[CHUNKS]),
        )
        student, teacher = (
            binarised(_chunk_log_probs(*side, count), temperature) for side in sides
        )
        return AlignedLogits(
            student, teacher, None, row_mask, row_mask.sum(), factor=1 / temperature
        )

    def _row_mask(self, batch: Batch) -> Tensor:
        """Bool, ``(batch, chunks)``: the chunks that are there and have no token without label."""
        counts = self.head.row_mask(batch)
        assert counts is not None
        chunks, count = batch[STUDENT_CHUNKS], _most_chunks(batch)
        predicted = nn.functional.pad(counts, (1, 0)).long()
        tokens = chunk_sums(torch.ones_like(chunks), chunks, count)
        return (tokens > 0) & (tokens == chunk_sums(predicted, chunks, count))

    def check_loss(self, name: str) -> None:
        """Refuse ``mse``, which compares logits: of a chunk only its probability is known."""
        if name == "mse":
            raise ValueError(
                "distillation_loss='mse' compares logits, but of a teacher with another tokenizer "
                "only the probabilities of chunks of text are compared; choose kl_div, reverse_kl, "
                "js_div or skew_kl."
            )


class PieceAlignment(ChunkAlignment):
    """Masked models: the tokens that both sides have, over the entries that both vocabularies have.

    A row is a hidden token of the student that the teacher has as one token too. In the teacher's
    input all tokens of the chunks with hidden tokens are masked.

    Args:
        head: the student's.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's.
    """

    unit = "words that are one piece on both sides"
    uses_own_tokens_only = False

    def __init__(
        self,
        head: TaskHead,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__(head)
        self._entries = shared_entries(tokenizer, teacher_tokenizer)
        self._mask_id = teacher_tokenizer.mask_token_id

    def teacher_batch(self, batch: Batch) -> Batch:
        """Return the teacher's batch, with masks where the student has something to predict."""
        found = super().teacher_batch(batch)
        hidden = self._hidden(batch)
        return {**found, "input_ids": found["input_ids"].masked_fill(hidden, self._mask_id)}

    def teacher_labels(self, batch: Batch) -> dict[str, Any]:
        """Return the teacher's tokens that are hidden."""
        return {"labels": batch[INPUT_IDS].masked_fill(~self._hidden(batch), IGNORED)}

    def align(
        self, batch: Batch, student: Tensor, teacher: Tensor, temperature: float
    ) -> AlignedLogits:
        """Return the logits of the shared entries, ``(batch, length, shared)``."""
        ours, theirs = (ids.to(student.device) for ids in self._entries)
        row_mask = self._row_mask(batch)
        places = _positions(batch[CHUNKS], batch[STUDENT_CHUNKS], _most_chunks(batch))
        shared = teacher.index_select(-1, theirs)
        places = places[..., None].expand(*places.shape, shared.shape[-1])
        return AlignedLogits(
            student.index_select(-1, ours),
            shared.gather(1, places),
            None,
            row_mask,
            row_mask.sum(),
        )

    def _row_mask(self, batch: Batch) -> Tensor:
        """Bool, ``(batch, length)``: hidden tokens that are alone in their chunk on both sides."""
        count, ours = _most_chunks(batch), batch[STUDENT_CHUNKS]
        alone = torch.ones(len(ours), count, dtype=torch.bool, device=ours.device)
        for chunks in (ours, batch[CHUNKS]):
            alone &= chunk_sums(torch.ones_like(chunks), chunks, count) == 1
        hidden = self.head.row_mask(batch)
        assert hidden is not None
        return hidden & _of_tokens(alone, ours)

    def _hidden(self, batch: Batch) -> Tensor:
        """Bool, ``(batch, teacher's length)``: tokens of chunks of which the student hides some."""
        hidden = self.head.row_mask(batch)
        assert hidden is not None
        count = _most_chunks(batch)
        return _of_tokens(
            chunk_sums(hidden.long(), batch[STUDENT_CHUNKS], count) > 0, batch[CHUNKS]
        )

    def check_loss(self, name: str) -> None:
        """Refuse nothing: these are logits."""


def _chunk_log_probs(logits: Tensor, token_ids: Tensor, chunks: Tensor, count: int) -> Tensor:
    following = chunks[:, 1:]
    log_probs = token_log_probs(logits, token_ids[:, 1:], following >= 0)
    return chunk_sums(log_probs, following, count)


def _most_chunks(batch: Batch) -> int:
    """Return a number that no batch has more chunks than, without a look at the device."""
    return int(min(batch[CHUNKS].shape[1], batch[STUDENT_CHUNKS].shape[1]))


def _of_tokens(values: Tensor, chunks: Tensor) -> Tensor:
    """Return for each token what its chunk has, False for one that is in none."""
    return values.gather(1, chunks.clamp(min=0)) & (chunks >= 0)


def _positions(teacher: Tensor, student: Tensor, count: int) -> Tensor:
    """Return the teacher's position for tokens that are alone in their chunk; any for others."""
    places = torch.arange(teacher.shape[1], device=teacher.device).expand_as(teacher)
    found = chunk_sums(places, teacher, count).clamp(max=teacher.shape[1] - 1)
    return found.gather(1, student.clamp(min=0))
