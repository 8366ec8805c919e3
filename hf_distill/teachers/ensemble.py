"""Several teachers whose predictions are averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.heads import SequenceClassificationHead, TaskHead
from hf_distill.teachers.base import Runtime, Teacher
from hf_distill.teachers.live import LiveTeacher
from hf_distill.training_args import TEACHER_COMBINATIONS


class EnsembleTeacher(Teacher):
    """The weighted average of several teachers' predictions, as one teacher's logits.

    - ``probabilities``: ``z = log sum_i w_i softmax(z_i)``, the arithmetic mean of the
      distributions at temperature 1, which is what the teachers predict together;
    - ``logits``: ``z = sum_i w_i z_i``, the geometric mean (Hinton et al. 2015, section 2: "an
      arithmetic or geometric mean of their individual predictive distributions").

    The temperature of the loss then softens z. Each teacher's labels are put into the student's
    order first; of vocabularies of unequal size the range that all have counts.

    Args:
        teachers: at least two.
        heads: the student's head once for each, knowing the order of its labels.
        weights: w, at least 0; they are divided by their sum. By default all are equal.
        combination: one of ``TEACHER_COMBINATIONS``.

    Raises:
        ValueError: a weight or the combination makes no sense.
    """

    def __init__(
        self,
        teachers: Sequence[LiveTeacher],
        heads: Sequence[TaskHead],
        weights: Sequence[float] | None = None,
        combination: str = "probabilities",
    ) -> None:
        self.shares = _shares(weights, len(teachers))
        if combination not in TEACHER_COMBINATIONS:
            raise ValueError(
                f"teacher_combination must be one of {', '.join(TEACHER_COMBINATIONS)}, but it is "
                f"{combination!r}."
            )
        head = heads[0]
        regression = isinstance(head, SequenceClassificationHead) and (
            head.problem_type == "regression"
        )
        if regression and combination == "probabilities":
            raise ValueError(
                "teacher_combination='probabilities' averages distributions, and a regression "
                "model has none; set teacher_combination='logits'."
            )
        self._members = list(teachers)
        self.identities = [identity for one in teachers for identity in one.identities]
        self._heads = list(heads)
        self._combination = combination
        self.model: nn.Module = nn.ModuleList([teacher.model for teacher in teachers])
        self.input_names = frozenset().union(*(teacher.input_names for teacher in teachers))

    @property
    def members(self) -> Sequence[Teacher]:
        """The teachers."""
        return self._members

    def __call__(
        self,
        batch: Mapping[str, Any],
        runtime: Runtime,
        further_inputs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Mapping[str, Tensor]:
        """Return what the teachers predict together."""
        found = []
        for teacher, head in zip(self._members, self._heads, strict=True):
            own = head.logits(teacher(batch, runtime, further_inputs), batch)
            found.append(head.align(own, own)[1].float())
        classes = min(logits.shape[-1] for logits in found)
        found = [logits[..., :classes] for logits in found]
        head = self._heads[0]
        return head.outputs(self._mean(found, head.class_mask(batch)))

    def _mean(self, found: list[Tensor], class_mask: Tensor | None) -> Tensor:
        if self._combination == "logits":
            # Not 0 * z: a teacher with weight 0 may say -inf.
            weighted = [w * z for w, z in zip(self.shares, found, strict=True) if w > 0]
            return torch.stack(weighted).sum(dim=0)
        logs = []
        for weight, logits in zip(self.shares, found, strict=True):
            if weight > 0:
                if class_mask is not None:
                    logits = logits.masked_fill(~class_mask, -torch.inf)
                logs.append(logits.log_softmax(dim=-1) + math.log(weight))
        mean = torch.stack(logs).logsumexp(dim=0)
        return mean if class_mask is None else mean.masked_fill(~class_mask, 0.0)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return weights that sum to 1.

    Args:
        weights: one per teacher; equal ones if ``None``.
        count: how many teachers there are.

    Raises:
        ValueError: there are more or fewer, one is below 0, or all are 0.
    """
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise ValueError(
            f"teacher_weights={list(weights)} has {len(weights)} weights for {count} teachers; "
            "give one for each, in their order."
        )
    if any(not math.isfinite(w) or w < 0 for w in weights) or sum(weights) <= 0:
        raise ValueError(f"teacher_weights={list(weights)} must be 0 or more each, and not all 0.")
    return [w / sum(weights) for w in weights]
