"""The losses between the intermediate layers of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hf_distill.layers.capture import BEYOND, AttentionCall, Recording
from hf_distill.layers.counting import TokenCount
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.projections import Projections
from hf_distill.layers.visibility import Visible, visible_pairs
from hf_distill.losses import (
    hidden_states_loss,
    probabilities_loss,
    relations_loss,
    scores_loss,
)
from hf_distill.losses.attention_probabilities import attention_maps_loss
from hf_distill.training_args import DistillationTrainingArguments

HIDDEN_STATES, ATTENTION = "hidden_states", "attention"
# Whose sum is over tokens; that of the others is over pairs of tokens.
_OVER_TOKENS = ("probabilities", "relations")
# Which of the options of attention functions leave the scores as they are.
_NOT_OF_SCORES = {"scores": {"s_aux", "sinks"}}


class IntermediateLosses:
    r"""The losses between the recordings of student and teacher.

    .. math:: L_{hidden} = \frac{1}{n} \sum_{(i, j)} \sum_x \ell(W h^S_i(x), h^T_j(x)), \qquad
              L_{attention} = \frac{1}{n} \sum_{(i, j), i > 0} \sum_x \ell(A^S_i(x), A^T_j(x))

    over the pairs of layers (i, j), summed (TinyBERT, Jiao et al. 2020, equations 7 to 11), where x
    are the n valid tokens, or pairs of tokens that see each other, and W is there only if the
    widths differ. A layer of the student that LayerDrop skips in a step is left out of that step's
    sum.

    Args:
        args: which losses.
        pairs: layers of student and teacher.
        compared: the names of the losses, as far as they have a weight now.
        projections: ``None`` if the widths are equal.
        count: of the student.
        teacher_heads: how many attention heads the teacher has.
        precision: what projections are computed under.
        zero: makes a loss of 0 with a gradient, for a step without any layer.
    """

    def __init__(
        self,
        args: DistillationTrainingArguments,
        pairs: Sequence[LayerPair],
        compared: Collection[str],
        projections: Projections | None,
        count: TokenCount,
        teacher_heads: int | None,
        precision: Callable[[], AbstractContextManager[Any]],
        zero: Callable[[], Tensor],
    ) -> None:
        self._args = args
        self._pairs = pairs
        self._compared = compared
        self._projections = projections
        self._count = count
        self._teacher_heads = teacher_heads
        self._precision = precision
        self._zero = zero

    def counters(self) -> dict[str, Callable[[Mapping[str, Any]], int | Tensor]]:
        """What the mean of each loss is over: counts the items of a batch."""
        counters = {HIDDEN_STATES: self._count.tokens, ATTENTION: self._attention_items}
        return {name: counter for name, counter in counters.items() if name in self._compared}

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
        if weights[HIDDEN_STATES] > 0 and HIDDEN_STATES in self._compared:
            losses[HIDDEN_STATES] = self._hidden_states(student, teacher, batch)
        if weights[ATTENTION] > 0 and ATTENTION in self._compared:
            losses[ATTENTION] = self._attention(student, teacher, batch)
        return losses

    def _hidden_states(
        self, student: Recording, teacher: Recording, batch: Mapping[str, Any]
    ) -> Tensor:
        total: Any = None
        length = 0
        for pair in self._pairs:
            if pair.student in student.dropped:
                continue
            theirs = teacher.hidden_states[pair.teacher]
            ours = student.hidden_states[pair.student]
            _check_hidden_states(ours, theirs, pair)
            if self._projections is not None:
                with self._precision():
                    ours = self._projections(ours, pair.student)
            length = ours.shape[1]
            mask = self._count.mask(batch, length)
            with _exact(ours):
                loss = hidden_states_loss(
                    ours, theirs, token_mask=mask, loss=self._args.hidden_states_loss
                )
            total = loss if total is None else total + loss
        return self._zero() if total is None else _mean(total, self._count.tokens(batch, length))

    def _attention(
        self, student: Recording, teacher: Recording, batch: Mapping[str, Any]
    ) -> Tensor:
        total: Any = None
        length = 0
        seen: dict[tuple[int, bool], Visible] = {}  # layers share their masks
        for pair in self._pairs:
            if pair.student == 0 or pair.teacher == 0 or pair.student in student.dropped:
                continue
            if pair.teacher in teacher.attention_maps:
                maps = student.attention_maps[pair.student]
                length = maps.shape[-1]
                with _exact(maps):
                    loss = attention_maps_loss(
                        maps,
                        teacher.attention_maps[pair.teacher],
                        token_mask=self._count.mask(batch, length),
                        divergence=self._divergence,
                    )
            else:
                calls = student.attentions[pair.student], teacher.attentions[pair.teacher]
                length = calls[0].inputs.query.shape[-2]
                mask = self._count.mask(batch, length)
                with _exact(calls[0].inputs.query):
                    sides = [self._visible(call, mask, batch, seen) for call in calls]
                    loss = self._compare(*calls, mask, _common(*sides))
            total = loss if total is None else total + loss
        return self._zero() if total is None else _mean(total, self._attention_items(batch, length))

    def _visible(
        self,
        call: AttentionCall,
        mask: Tensor | None,
        batch: Mapping[str, Any],
        known: dict[tuple[int, bool], Visible],
    ) -> Visible:
        """Which pairs see each other in a layer.

        Raises:
            ValueError: that is not known, or is not all that the loss would have to know.
        """
        key = (id(call.mask), call.causal)
        if key not in known:
            known[key] = visible_pairs(call, mask)
        beyond = {BEYOND[name] for name in call.beyond - _NOT_OF_SCORES.get(self._loss, set())}
        if known[key].biased:
            beyond.add("a bias in its mask")
        if beyond and self._loss != "relations":
            raise ValueError(
                f"attention_loss={self._loss!r} compares what queries and keys give, but an "
                f"attention layer has {' and '.join(sorted(beyond))} as well, which is not "
                "recorded. Use attention_loss='relations', or set attention_loss_weight=0."
            )
        plain = call.implementation in ("sdpa", "eager")
        if call.mask is None and not plain and self._count.is_packed(batch):
            raise ValueError(
                "A batch has several texts in a row (position_ids, cu_seq_lens), and under the "
                f"attention implementation {call.implementation} it is not known which tokens see "
                "each other. Load teacher and student with attn_implementation='sdpa' "
                "(teacher_attn_implementation), or set attention_loss_weight=0."
            )
        return known[key]

    def _attention_items(self, batch: Mapping[str, Any], length: int | None = None) -> int | Tensor:
        """How many tokens, or pairs of them, the attention loss is a mean over."""
        over_tokens = self._loss in _OVER_TOKENS
        count = self._count.tokens if over_tokens else self._count.pairs
        return count(batch, length)

    def _compare(
        self, ours: AttentionCall, theirs: AttentionCall, mask: Tensor | None, visible: Visible
    ) -> Tensor:
        pair = (ours.inputs, theirs.inputs)
        options: dict[str, Any] = {
            "token_mask": mask, "causal": visible.causal, "pair_mask": visible.pair_mask,
        }  # fmt: skip
        if self._loss == "relations":
            heads = self._args.relation_heads or self._teacher_heads
            assert heads is not None  # checked beforehand
            return relations_loss(*pair, relation_heads=heads, **options)
        if self._loss == "scores":
            return scores_loss(*pair, **options)
        return probabilities_loss(*pair, **options, divergence=self._divergence)

    @property
    def _loss(self) -> str:
        return self._args.attention_comparison

    @property
    def _divergence(self) -> str:
        return "mse" if self._loss == "probabilities_mse" else "kl_div"


def _common(ours: Visible, theirs: Visible) -> Visible:
    """What is visible in both models."""
    if ours.causal != theirs.causal:
        raise ValueError(
            "One of teacher and student sees only what is to the left and the other does "
            "not, so their attentions cannot be compared; set attention_loss_weight=0."
        )
    if ours.pair_mask is None or theirs.pair_mask is None:
        return theirs if ours.pair_mask is None else ours
    return ours._replace(pair_mask=ours.pair_mask & theirs.pair_mask)


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
