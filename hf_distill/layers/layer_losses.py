"""The losses between the recorded layers of student and teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.layers.attention_calls import BEYOND, AttentionCall, Visible
from hf_distill.layers.counting import Batch, Part, is_packed
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.projections import Projections
from hf_distill.layers.recording import Recording
from hf_distill.layers.stacks import STACKS
from hf_distill.losses import (
    ATTENTION_LOSSES,
    AttentionLoss,
    attention_maps_loss,
    hidden_states_loss,
)
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

HIDDEN_STATES, ATTENTION = "hidden_states", "attention"

_OVERWHELMING = 10.0
"""So many times the other, one of two weighted losses decides alone what is learned."""


class LayerLosses:
    r"""The losses between the recordings of student and teacher.

    .. math:: L_{hidden} = \frac{1}{n} \sum_{(i, j)} \sum_x \ell(W h^S_i(x), h^T_j(x)), \qquad
              L_{attention} = \frac{1}{n} \sum_{(i, j), i > 0} \sum_x \ell(A^S_i(x), A^T_j(x))

    over the pairs of layers (i, j), summed (TinyBERT, Jiao et al. 2020, equations 7 to 11), where x
    are the n valid tokens, or pairs of tokens that see each other, and W is there only if the
    widths differ. A layer of the student that LayerDrop skips in a step is left out of that step's
    sum. Of encoder and decoder, and of the attention between them, each has such a mean, called
    ``hidden_states.encoder``, ``attention.cross`` and so on; the loss is their sum.

    Args:
        args: which losses.
        student: the model that is trained.
        compared: the names of the losses.
        parts: the parts of the models.
        projections: by stack; none where widths are equal.
        teacher_heads: how many attention heads the teacher has, by stack.
        precision: what projections are computed under.
    """

    def __init__(
        self,
        args: DistillationTrainingArguments,
        student: nn.Module,
        compared: Collection[str],
        parts: Mapping[str, Part],
        projections: Mapping[str, Projections],
        teacher_heads: Mapping[str, int | None],
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._args = args
        self._student = student
        self._compared = compared
        self._parts = parts
        self._projections = projections
        self._teacher_heads = teacher_heads
        self._precision = precision
        self._balance_checked = False

    def counters(
        self, pairs: Mapping[str, Sequence[LayerPair]]
    ) -> dict[str, Callable[[Batch], int | Tensor]]:
        """Return what counts the items of a batch that each loss is a mean over."""
        counters: dict[str, Callable[[Batch], int | Tensor]] = {}
        for kind in self._compared:
            for part in self.parts_of(kind, pairs):
                tokens, of_pairs = self._parts[part].queries.count, self._parts[part].pairs
                over_tokens = kind == HIDDEN_STATES or self._loss.sums_over == "tokens"
                counters[loss_name(kind, part)] = tokens if over_tokens else of_pairs
        return counters

    def parts_of(self, kind: str, pairs: Mapping[str, Sequence[LayerPair]]) -> dict[str, Any]:
        """Return the layer pairs by part, of those that have any to compare."""
        found = {part: pairs.get(STACKS[part], ()) for part in self._parts}
        if kind == HIDDEN_STATES or not self._loss.compares_crossed:
            found.pop("cross", None)
        if kind == ATTENTION:
            found = {part: [p for p in its if p.student] for part, its in found.items()}
        return {part: its for part, its in found.items() if its}

    def __call__(
        self,
        pairs: Mapping[str, Sequence[LayerPair]],
        student: Mapping[str, Recording],
        teacher: Mapping[str, Recording],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Return the mean of each loss over a micro-batch.

        Args:
            pairs: layers of student and teacher, by stack.
            student: its recordings, by part.
            teacher: the recordings of the same batch.
            batch: as the student got it.
        """
        # A callback may have set a weight to 0; evaluations keep all that they had.
        weights = self._args.intermediate_weights
        wanted = {k for k in self._compared if weights[k] > 0 or not self._student.training}
        losses: dict[str, Tensor] = {}
        for kind, compare in (
            (HIDDEN_STATES, self._hidden_states), (ATTENTION, self._attention),
        ):  # fmt: skip
            if kind not in wanted:
                continue
            for part, its in self.parts_of(kind, pairs).items():
                ran = [pair for pair in its if pair.student not in student[part].dropped]
                losses[loss_name(kind, part)] = (
                    compare(part, ran, student[part], teacher[part], batch) if ran else self._zero()
                )
        return losses

    def _hidden_states(
        self,
        part: str,
        pairs: Sequence[LayerPair],
        student: Recording,
        teacher: Recording,
        batch: Batch,
    ) -> Tensor:
        total: Any = 0.0
        tokens = self._parts[part].queries
        for pair in pairs:
            ours, theirs = student.hidden_states[pair.student], teacher.hidden_states[pair.teacher]
            check_hidden_states(ours, theirs, pair)
            if part in self._projections:
                with self._precision():
                    ours = self._projections[part](ours, pair.student)
            length = ours.shape[1]
            mask = tokens.mask(batch, length)
            with _exact(ours):
                total = total + hidden_states_loss(
                    ours, theirs, token_mask=mask, loss=self._args.hidden_states_loss
                )
        return _mean(total, tokens.count(batch, length))

    def _attention(
        self,
        part: str,
        pairs: Sequence[LayerPair],
        student: Recording,
        teacher: Recording,
        batch: Batch,
    ) -> Tensor:
        total: Any = 0.0
        known: dict[Any, Visible] = {}  # layers share their masks
        for pair in pairs:
            if pair.teacher in teacher.attention_maps:
                maps = student.attention_maps[pair.student]
                queries = keys = maps.shape[-1]
                with _exact(maps):
                    total = total + attention_maps_loss(
                        maps,
                        teacher.attention_maps[pair.teacher],
                        token_mask=self._parts[part].queries.mask(batch, queries),
                        divergence=str(self._loss.divergence_of_maps),
                    )
                continue
            calls = student.attentions[pair.student], teacher.attentions[pair.teacher]
            queries, keys = (x.shape[-2] for x in calls[0].inputs[:2])
            masks = self._parts[part].masks(batch, queries, keys)
            with _exact(calls[0].inputs.query):
                visible = [self._visible(call, masks, batch, known) for call in calls]
                causal, pair_mask = _common(*visible)
                total = total + self._loss.compare(
                    *(
                        call.inputs._replace(bias=seen.bias)
                        for call, seen in zip(calls, visible, strict=True)
                    ),
                    token_mask=masks[0],
                    key_mask=masks[1],
                    causal=causal,
                    pair_mask=pair_mask,
                    **self._options(part),
                )
        if self._loss.sums_over == "tokens":
            return _mean(total, self._parts[part].queries.count(batch, queries))
        return _mean(total, self._parts[part].pairs(batch, queries, keys))

    def _visible(
        self,
        call: AttentionCall,
        masks: tuple[Tensor | None, Tensor | None],
        batch: Batch,
        known: dict[Any, Visible],
    ) -> Visible:
        """Return which pairs see each other in a layer, and what is added to their scores.

        Raises:
            ValueError: that is not known, or is not all that the loss would have to know.
        """
        name = self._args.attention_comparison
        beyond = {BEYOND[name] for name in call.beyond - self._loss.not_changed_by}
        if beyond and name != "relations":
            raise ValueError(
                f"attention_loss={name!r} compares what queries and keys give, but an "
                f"attention layer has {' and '.join(sorted(beyond))} as well, which is not "
                "recorded. Use attention_loss='relations', or set attention_loss_weight=0."
            )
        plain = call.implementation in ("sdpa", "eager")
        if call.mask is None and not plain and is_packed(batch):
            raise ValueError(
                "A batch has several texts in a row (position_ids, cu_seq_lens), and under the "
                f"attention implementation {call.implementation} it is not known which tokens see "
                "each other. Load teacher and student with attn_implementation='sdpa' "
                "(teacher_attn_implementation), or set attention_loss_weight=0."
            )
        key = (id(call.mask), id(call.inputs.bias), call.causal)
        if key not in known:
            known[key] = call.visible_pairs(*masks)
        return known[key]

    @property
    def _loss(self) -> AttentionLoss:
        return ATTENTION_LOSSES[self._args.attention_comparison]

    def _options(self, part: str) -> dict[str, Any]:
        if self._args.attention_comparison != "relations":
            return {}
        return {"relation_heads": self._args.relation_heads or self._teacher_heads[STACKS[part]]}

    def check_balance(self, losses: Mapping[str, float]) -> None:
        """Warn, at most once, if one loss is so large that the other counts for nothing."""
        if self._balance_checked or not losses:
            return
        self._balance_checked = True
        weights = self._args.intermediate_weights
        parts = {name: weight * losses.get(f"loss_{name}", 0.0) for name, weight in weights.items()}
        smaller, larger = sorted(parts, key=parts.__getitem__)
        if parts[smaller] <= 0:
            return
        ratio = parts[larger] / parts[smaller]
        if ratio >= _OVERWHELMING:
            logger.warning(
                "Multiplied by its weight, loss_%s is %.0f times loss_%s and decides almost alone "
                "what is learned: %s_loss_weight=%.1g (now %.4g) would make them equal.",
                *(larger, ratio, smaller, larger, weights[larger] / ratio, weights[larger]),
            )

    def _zero(self) -> Tensor:
        """Return 0, with a gradient of 0, for a step without any layer."""
        parameters = sorted(self._student.parameters(), key=lambda p: not p.requires_grad)
        return parameters[0].flatten()[:0].sum().float()


def loss_name(kind: str, part: str) -> str:
    """Name the part of a loss; the loss itself where there is only one."""
    return f"{kind}.{part}" if part else kind


def _common(ours: Visible, theirs: Visible) -> tuple[bool, Tensor | None]:
    """Return what is visible in both models: ``causal`` and ``pair_mask``."""
    if ours.causal != theirs.causal:
        raise ValueError(
            "One of teacher and student sees only what is to the left and the other does "
            "not, so their attentions cannot be compared; set attention_loss_weight=0."
        )
    masks = [x.pair_mask for x in (ours, theirs) if x.pair_mask is not None]
    return ours.causal, masks[0] & masks[-1] if masks else None


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
