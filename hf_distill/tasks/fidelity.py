"""How far a model's probabilities are from the teacher's, and from being right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.compatibility.labels import align_labels
from hf_distill.heads.base import IGNORED, LabelledHead, TaskHead, main_input
from hf_distill.losses.logits import kl_div
from hf_distill.tasks.calibration import Calibration

_MOST_NUMBERS = 1 << 25
"""Logits of the teacher that are kept: 128 MB."""


@dataclass(frozen=True)
class _Batch:
    """What a student's batch is compared with."""

    logits: Tensor | None
    """``None`` where there was no room for more."""
    tokens: Tensor | None
    """The input, where it must be the same."""


class OutputRecorder:
    """Looks at a model's logits while it is scored, at no forward pass of its own.

    Args:
        head: of the model.
        teacher: what was recorded of the teacher on the same rows in batches of the same size.
        keeps_logits: this is the teacher that others are compared with.
    """

    def __init__(
        self, head: TaskHead, teacher: OutputRecorder | None = None, *, keeps_logits: bool = False
    ) -> None:
        self._head, self._teacher, self._keeps_logits = head, teacher, keeps_logits
        self._batches: list[_Batch] = []
        self._room = _MOST_NUMBERS
        self._calibration: Calibration | None = None
        self._divergence, self._rows, self._seen = 0.0, 0, 0
        self._has_probabilities = head.has_probabilities
        self._comparable = self._has_probabilities and teacher is not None
        if teacher is not None and isinstance(head, LabelledHead):
            order, findings = align_labels(head.config, teacher._head.config)
            head.teacher_order = order
            self._comparable &= not any(one.status == "error" for one in findings)

    @property
    def calibration(self) -> Calibration | None:
        """Return what was recorded of rows with a label; ``None`` without any."""
        return self._calibration

    @property
    def divergence(self) -> float | None:
        """Return the mean of ``KL(teacher ‖ model)`` over the rows, in nats.

        ``None`` without a teacher, or if the two did not have the same inputs or classes. Of large
        vocabularies it is the mean over the rows whose teacher's logits fit into memory.
        """
        return self._divergence / self._rows if self._comparable and self._rows else None

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Record each forward pass inside."""
        handle = model.register_forward_hook(
            lambda _module, _args, batch, outputs: self.record(batch, outputs), with_kwargs=True
        )
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def record(self, batch: Mapping[str, Any], outputs: Any) -> None:
        """Record the outputs for a batch."""
        if not (self._has_probabilities and isinstance(outputs, Mapping)):
            return
        logits = self._head.logits(outputs, batch).float()
        self._record_calibration(logits, batch)
        if self._keeps_logits:
            self._keep(logits, batch)
        if self._teacher is not None and self._comparable:
            self._compare(logits, batch, self._teacher)

    def _record_calibration(self, logits: Tensor, batch: Mapping[str, Any]) -> None:
        gold = self._head.gold(batch)
        if gold is None:
            return
        counted = gold != IGNORED
        sure, best = logits[counted].softmax(-1).max(-1)
        if sure.numel():
            found = Calibration.of(sure.cpu().numpy(), (best == gold[counted]).cpu().numpy())
            self._calibration = found if self._calibration is None else self._calibration + found

    def _inputs(self, batch: Mapping[str, Any]) -> Tensor | None:
        by_position = self._head.compared_positions(batch) is not None
        return main_input(batch).cpu() if by_position else None

    def _keep(self, logits: Tensor, batch: Mapping[str, Any]) -> None:
        self._room -= logits.numel()
        kept = logits.cpu() if self._room >= 0 else None
        self._batches.append(_Batch(kept, self._inputs(batch)))

    def _compare(self, logits: Tensor, batch: Mapping[str, Any], recorded: OutputRecorder) -> None:
        place, self._seen = self._seen, self._seen + 1
        if place >= len(recorded._batches):
            self._comparable = False
            return
        teacher, tokens = recorded._batches[place], self._inputs(batch)
        if teacher.logits is None:
            return
        ours, theirs = self._head.align(logits, teacher.logits.to(logits.device))
        same = tokens is None or (teacher.tokens is not None and tokens.equal(teacher.tokens))
        if not same or ours.shape != theirs.shape:
            self._comparable = False
            return
        values = kl_div(ours, theirs, temperature=1.0, mask=self._head.class_mask(batch))
        mask = self._head.row_mask(batch)
        counted = values if mask is None else values[mask]
        self._divergence += float(counted.double().sum())
        self._rows += counted.numel()
