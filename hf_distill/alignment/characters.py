"""Question answering: the teacher's starts and ends go over characters to the student's tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_distill.alignment.base import PREFIX, Alignment, TokenColumn
from hf_distill.alignment.offsets import move_mass
from hf_distill.heads.base import Batch
from hf_distill.step import AlignedLogits

logger = logging.getLogger(__name__)

START_MAP = f"{PREFIX}start_map"
"""For each token of the teacher the position of the student's where the same answer starts."""
END_MAP = f"{PREFIX}end_map"
"""The same where it ends."""
SEEN = f"{PREFIX}seen"
"""For each token of the student 0 if the teacher's input was cut before it, else 1."""
LABELS = (f"{PREFIX}start_positions", f"{PREFIX}end_positions")

_LEAST_MASS = 0.01
"""Share of a teacher's mass that must land on the student's tokens for the row to count."""


class CharacterAlignment(Alignment):
    """Answers by characters, no answer by the position that stands for it.

    With ``q = softmax(z / T)`` over the teacher's tokens, the start mass of a token goes to the
    student's token that covers its first character and the end mass to the one that covers its
    last; see ``span_maps``. What falls outside the student's window is dropped and the rest
    renormalised. A row with less than 1 % left has the loss 0, and is warned of.
    """

    unit = "characters"
    token_columns: ClassVar[Mapping[str, TokenColumn]] = {
        START_MAP: TokenColumn(axis="teacher", positions_of="student"),
        END_MAP: TokenColumn(axis="teacher", positions_of="student"),
        SEEN: TokenColumn(axis="student", positions_of=None, padding=1),
        **{name: TokenColumn(axis=None, positions_of="teacher") for name in LABELS},
    }
    optional_columns = frozenset(LABELS)
    counterparts = START_MAP
    _lost: int | Tensor = 0
    _warned = False

    def teacher_labels(self, batch: Batch) -> dict[str, Any]:
        """Return the answers' tokens in the teacher's encoding."""
        return {n.removeprefix(PREFIX): batch[n] for n in LABELS if batch.get(n) is not None}

    def align(
        self, batch: Batch, student: Tensor, teacher: Tensor, temperature: float
    ) -> AlignedLogits:
        """Return the student's logits and ``T log p`` of the teacher's answers at its tokens."""
        padding = self.head.class_mask(self.teacher_batch(batch))
        if padding is not None:
            teacher = teacher.masked_fill(~padding, -torch.inf)
        target = torch.stack((batch[START_MAP], batch[END_MAP]), dim=1)
        teacher, kept = move_mass(teacher, target, student.shape[-1], temperature=temperature)
        mask, own = batch[SEEN].bool()[:, None], self.head.class_mask(batch)
        mask = mask if own is None else mask & own
        # Not "kept >= …": a teacher's NaN is reported, and not a row to leave out.
        lost = kept < _LEAST_MASS
        self._lost = self._lost + lost.sum()
        return AlignedLogits(student, teacher, mask, ~lost, self.count_rows(batch))

    def warn_of_lost_rows(self) -> None:
        """Warn, once, of starts and ends with less than 1 % left."""
        if not self._warned and (lost := int(self._lost)):
            self._warned = True
            logger.warning(
                "For %s starts or ends of answers the teacher's probability is almost all on text "
                "that the student's windows lack, so these have no distillation loss; if they are "
                "many, raise max_length or doc_stride.",
                f"{lost:,}",
            )

    def check_loss(self, name: str) -> None:
        """Refuse losses that are infinite where the teacher has no token to give mass."""
        if name in ("mse", "reverse_kl"):
            raise ValueError(
                f"distillation_loss={name!r} has no limit where the teacher finds a token "
                "impossible, and with another tokenizer some of the student's tokens get nothing; "
                "choose kl_div, js_div or skew_kl."
            )
