"""The losses between the recorded layers of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.layers.counting import TokenCount
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.projections import Projections
from hf_distill.layers.recording import BEYOND, AttentionCall, Recording, Visible
from hf_distill.losses import (
    ATTENTION_LOSSES,
    AttentionLoss,
    attention_maps_loss,
    hidden_states_loss,
)
from hf_distill.training_args import DistillationTrainingArguments

HIDDEN_STATES, ATTENTION = "hidden_states", "attention"


class LayerLosses:
    r"""The losses between the recordings of student and teacher.

    .. math:: L_{hidden} = \frac{1}{n} \sum_{(i, j)} \sum_x \ell(W h^S_i(x), h^T_j(x)), \qquad
              L_{attention} = \frac{1}{n} \sum_{(i, j), i > 0} \sum_x \ell(A^S_i(x), A^T_j(x))

    over the pairs of layers (i, j), summed (TinyBERT, Jiao et al. 2020, equations 7 to 11), where x
    are the n valid tokens, or pairs of tokens that see each other, and W is there only if the
    widths differ. A layer of the student that LayerDrop skips in a step is left out of that step's
    sum.

    Args:
        args: which losses.
        student: the model that is trained.
        compared: the names of the losses.
        projections: ``None`` if the widths are equal.
        teacher_heads: how many attention heads the teacher has.
        precision: what projections are computed under.
    """

    def __init__(
        self,
        args: DistillationTrainingArguments,
        student: nn.Module,
        compared: Collection[str],
        projections: Projections | None,
        teacher_heads: int | None,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._args = args
        self._student = student
        self._compared = compared
        self._projections = projections
        self._teacher_heads = teacher_heads
        self._precision = precision
        self.count = TokenCount(student)

    def counters(self) -> dict[str, Callable[[Mapping[str, Any]], int | Tensor]]:
        """Return what counts the items of a batch that each loss is a mean over."""
        counters = {HIDDEN_STATES: self.count.tokens, ATTENTION: self._attention_items}
        return {name: counter for name, counter in counters.items() if name in self._compared}

    def __call__(
        self,
        pairs: Sequence[LayerPair],
        student: Recording,
        teacher: Recording,
        batch: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Return the mean of each loss over a micro-batch.

        Args:
            pairs: layers of student and teacher.
            student: its recording.
            teacher: the recording of the same batch.
            batch: as the student got it.
        """
        # A callback may have set a weight to 0; evaluations keep all that they had.
        weights = self._args.intermediate_weights
        wanted = {k for k in self._compared if weights[k] > 0 or not self._student.training}
        pairs = [pair for pair in pairs if pair.student not in student.dropped]
        losses: dict[str, Tensor] = {}
        if HIDDEN_STATES in wanted:
            losses[HIDDEN_STATES] = self._hidden_states(pairs, student, teacher, batch)
        if ATTENTION in wanted:
            pairs = [pair for pair in pairs if pair.student and pair.teacher]
            losses[ATTENTION] = self._attention(pairs, student, teacher, batch)
        return losses

    def _hidden_states(
        self,
        pairs: Sequence[LayerPair],
        student: Recording,
        teacher: Recording,
        batch: Mapping[str, Any],
    ) -> Tensor:
        total: Tensor | None = None
        for pair in pairs:
            ours, theirs = student.hidden_states[pair.student], teacher.hidden_states[pair.teacher]
            check_hidden_states(ours, theirs, pair)
            if self._projections is not None:
                with self._precision():
                    ours = self._projections(ours, pair.student)
            length = ours.shape[1]
            mask = self.count.mask(batch, length)
            with _exact(ours):
                loss = hidden_states_loss(
                    ours, theirs, token_mask=mask, loss=self._args.hidden_states_loss
                )
            total = loss if total is None else total + loss
        return self._zero() if total is None else _mean(total, self.count.tokens(batch, length))

    def _attention(
        self,
        pairs: Sequence[LayerPair],
        student: Recording,
        teacher: Recording,
        batch: Mapping[str, Any],
    ) -> Tensor:
        total: Tensor | None = None
        seen: dict[tuple[int, bool], Visible] = {}  # layers share their masks
        for pair in pairs:
            if pair.teacher in teacher.attention_maps:
                maps = student.attention_maps[pair.student]
                length = maps.shape[-1]
                with _exact(maps):
                    loss = attention_maps_loss(
                        maps,
                        teacher.attention_maps[pair.teacher],
                        token_mask=self.count.mask(batch, length),
                        divergence=str(self._loss.divergence_of_maps),
                    )
            else:
                calls = student.attentions[pair.student], teacher.attentions[pair.teacher]
                inputs = [call.inputs for call in calls]
                length = inputs[0].query.shape[-2]
                mask = self.count.mask(batch, length)
                with _exact(inputs[0].query):
                    visible = _common(*(self._visible(call, mask, batch, seen) for call in calls))
                    loss = self._loss.compare(
                        *inputs,
                        token_mask=mask,
                        causal=visible.causal,
                        pair_mask=visible.pair_mask,
                        **self._options,
                    )
            total = loss if total is None else total + loss
        return self._zero() if total is None else _mean(total, self._attention_items(batch, length))

    def _visible(
        self,
        call: AttentionCall,
        mask: Tensor | None,
        batch: Mapping[str, Any],
        known: dict[tuple[int, bool], Visible],
    ) -> Visible:
        """Return which pairs see each other in a layer.

        Raises:
            ValueError: that is not known, or is not all that the loss would have to know.
        """
        name, key = self._args.attention_comparison, (id(call.mask), call.causal)
        if key not in known:
            known[key] = call.visible_pairs(mask)
        beyond = {BEYOND[name] for name in call.beyond - self._loss.not_changed_by}
        if known[key].biased:
            beyond.add("a bias in its mask")
        if beyond and name != "relations":
            raise ValueError(
                f"attention_loss={name!r} compares what queries and keys give, but an "
                f"attention layer has {' and '.join(sorted(beyond))} as well, which is not "
                "recorded. Use attention_loss='relations', or set attention_loss_weight=0."
            )
        plain = call.implementation in ("sdpa", "eager")
        if call.mask is None and not plain and self.count.is_packed(batch):
            raise ValueError(
                "A batch has several texts in a row (position_ids, cu_seq_lens), and under the "
                f"attention implementation {call.implementation} it is not known which tokens see "
                "each other. Load teacher and student with attn_implementation='sdpa' "
                "(teacher_attn_implementation), or set attention_loss_weight=0."
            )
        return known[key]

    @property
    def _loss(self) -> AttentionLoss:
        return ATTENTION_LOSSES[self._args.attention_comparison]

    @property
    def _options(self) -> dict[str, Any]:
        if self._args.attention_comparison != "relations":
            return {}
        return {"relation_heads": self._args.relation_heads or self._teacher_heads}

    def _attention_items(self, batch: Mapping[str, Any], length: int | None = None) -> int | Tensor:
        """Count the tokens, or pairs of them, that the attention loss is a mean over."""
        over_tokens = self._loss.sums_over == "tokens"
        return (self.count.tokens if over_tokens else self.count.pairs)(batch, length)

    def _zero(self) -> Tensor:
        """Return 0, with a gradient of 0, for a step without any layer."""
        parameters = sorted(self._student.parameters(), key=lambda p: not p.requires_grad)
        return parameters[0].flatten()[:0].sum().float()


def _common(ours: Visible, theirs: Visible) -> Visible:
    """Return what is visible in both models."""
    if ours.causal != theirs.causal:
        raise ValueError(
            "One of teacher and student sees only what is to the left and the other does "
            "not, so their attentions cannot be compared; set attention_loss_weight=0."
        )
    if ours.pair_mask is None or theirs.pair_mask is None:
        return theirs if ours.pair_mask is None else ours
    return ours._replace(pair_mask=ours.pair_mask & theirs.pair_mask)


def check_hidden_states(ours: Tensor, theirs: Tensor, pair: LayerPair) -> None:
    """Refuse hidden states of two models that are not of the same tokens."""
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
