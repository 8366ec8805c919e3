"""The losses between the intermediate layers of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hf_distill.intermediate.counting import TokenCount
from hf_distill.intermediate.projections import Projections
from hf_distill.layer_mapping import LayerPair
from hf_distill.objectives import (
    hidden_states_loss,
    probabilities_loss,
    relations_loss,
    scores_loss,
)
from hf_distill.objectives.attention_maps import attention_maps_loss
from hf_distill.recording.capture import AttentionCall, Recording
from hf_distill.training_args import DistillationTrainingArguments

HIDDEN_STATES, ATTENTION = "hidden_states", "attention"
# Whose sum is over tokens; that of the others is over pairs of tokens.
_OVER_TOKENS = ("probabilities", "relations")


class IntermediateLosses:
    r"""The losses between the recordings of student and teacher.

    .. math:: L_{hidden} = \frac{1}{n} \sum_{(i, j)} \sum_x \ell(W h^S_i(x), h^T_j(x)), \qquad
              L_{attention} = \frac{1}{n} \sum_{(i, j), i > 0} \sum_x \ell(A^S_i(x), A^T_j(x))

    over the pairs of layers (i, j), summed (TinyBERT, Jiao et al. 2020, equations 7 to 11), where x
    are the n valid tokens, or pairs of tokens that see each other, and W is there only if the
    widths differ.

    Args:
        args: which losses.
        pairs: layers of student and teacher.
        projections: ``None`` if the widths are equal.
        count: of the student.
        teacher_heads: how many attention heads the teacher has.
        precision: what projections are computed under.
    """

    def __init__(
        self,
        args: DistillationTrainingArguments,
        pairs: Sequence[LayerPair],
        projections: Projections | None,
        count: TokenCount,
        teacher_heads: int | None,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._args = args
        self._pairs = pairs
        self._projections = projections
        self._count = count
        self._teacher_heads = teacher_heads
        self._precision = precision

    def counters(self) -> dict[str, Callable[[Mapping[str, Any]], int | Tensor]]:
        """What the mean of each loss is over: counts the items of a batch."""
        weights = self._args.intermediate_weights
        counters = {HIDDEN_STATES: self._count.tokens, ATTENTION: self._attention_items}
        return {name: counter for name, counter in counters.items() if weights[name] > 0}

    def __call__(
        self, student: Recording, teacher: Recording, batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The mean of each loss over a micro-batch.

        Args:
            student: what was recorded of the student.
            teacher: the same batch.
            batch: as the student got it.
        """
        weights = self._args.intermediate_weights
        losses: dict[str, Tensor] = {}
        if weights[HIDDEN_STATES] > 0:
            losses[HIDDEN_STATES] = self._hidden_states(student, teacher, batch)
        if weights[ATTENTION] > 0:
            losses[ATTENTION] = self._attention(student, teacher, batch)
        return losses

    def _hidden_states(
        self, student: Recording, teacher: Recording, batch: Mapping[str, Any]
    ) -> Tensor:
        total: Any = 0.0
        length = 0
        for pair in self._pairs:
            theirs = teacher.hidden_states[pair.teacher]
            ours = student.hidden_states[pair.student]
            _check_hidden_states(ours, theirs, pair)
            if self._projections is not None:
                with self._precision():
                    ours = self._projections(ours, pair.student)
            length = ours.shape[1]
            mask = self._count.mask(batch, length)
            with _exact(ours):
                total = total + hidden_states_loss(
                    ours, theirs, token_mask=mask, loss=self._args.hidden_states_loss
                )
        return _mean(total, self._count.tokens(batch, length))

    def _attention(
        self, student: Recording, teacher: Recording, batch: Mapping[str, Any]
    ) -> Tensor:
        total: Any = 0.0
        length = 0
        for pair in self._pairs:
            if pair.student == 0 or pair.teacher == 0:
                continue
            if pair.teacher in teacher.attention_maps:
                maps = student.attention_maps[pair.student]
                length = maps.shape[-1]
                with _exact(maps):
                    total = total + attention_maps_loss(
                        maps,
                        teacher.attention_maps[pair.teacher],
                        token_mask=self._count.mask(batch, length),
                        divergence=self._divergence,
                    )
                continue
            ours, theirs = student.attentions[pair.student], teacher.attentions[pair.teacher]
            if ours.causal != theirs.causal:
                raise ValueError(
                    "One of teacher and student sees only what is to the left and the other does "
                    "not, so their attentions cannot be compared; set attention_loss_weight=0."
                )
            length = ours.inputs.query.shape[-2]
            mask = self._count.mask(batch, length)
            with _exact(ours.inputs.query):
                total = total + self._compare(ours, theirs, mask)
        return _mean(total, self._attention_items(batch, length))

    def _attention_items(self, batch: Mapping[str, Any], length: int | None = None) -> int | Tensor:
        """How many tokens, or pairs of them, the attention loss is a mean over."""
        over_tokens = self._args.attention_comparison in _OVER_TOKENS
        count = self._count.tokens if over_tokens else self._count.pairs
        return count(batch, length)

    def _compare(self, ours: AttentionCall, theirs: AttentionCall, mask: Tensor | None) -> Tensor:
        pair = (ours.inputs, theirs.inputs)
        if self._args.attention_comparison == "relations":
            heads = self._args.relation_heads or self._teacher_heads
            assert heads is not None  # checked beforehand
            return relations_loss(*pair, relation_heads=heads, token_mask=mask, causal=ours.causal)
        visible = {"token_mask": mask, "causal": ours.causal, "pair_mask": _both(ours, theirs)}
        if self._args.attention_comparison == "scores":
            return scores_loss(*pair, **visible)  # type: ignore[arg-type]
        return probabilities_loss(*pair, **visible, divergence=self._divergence)  # type: ignore[arg-type]

    @property
    def _divergence(self) -> str:
        return "mse" if self._args.attention_comparison == "probabilities_mse" else "kl_div"


def _both(ours: AttentionCall, theirs: AttentionCall) -> Tensor | None:
    if ours.pair_mask is None or theirs.pair_mask is None:
        return theirs.pair_mask if ours.pair_mask is None else ours.pair_mask
    return ours.pair_mask & theirs.pair_mask


def _check_hidden_states(ours: Tensor, theirs: Tensor, pair: LayerPair) -> None:
    if ours.dim() != 3 or ours.shape[:2] != theirs.shape[:2]:
        raise ValueError(
            f"The hidden states of the student's layer {pair.student} have the shape "
            f"{tuple(ours.shape)} and those of the teacher's layer {pair.teacher} "
            f"{tuple(theirs.shape)}; (batch, length, width) with equal batch and length is needed. "
            "Set hidden_states_loss_weight=0."
        )


def _mean(total: Tensor, count: int | Tensor) -> Tensor:
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))


def _exact(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
