"""What an attention function was called with, and which pairs of tokens saw each other there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_distill.heads.base import as_visible
from hf_distill.losses import AttentionInputs

BEYOND = {
    "softcap": "a soft-cap (attn_logit_softcapping)",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "indices": "a choice of keys (sparse attention)",
    "block_indices": "a choice of keys (sparse attention)",
}
"""Options of attention functions that change what queries, keys and biases alone would give."""


class Visible(NamedTuple):
    """Which pairs of tokens, padding apart, see each other, and what is added to their scores."""

    causal: bool
    """A query sees no later key."""
    pair_mask: Tensor | None
    """Bool, ``(batch or 1, heads or 1, queries, keys)``: True where a query sees a key; ``None``
    if ``causal`` tells all."""
    bias: Tensor | None = None
    """``(batch or 1, heads or 1, queries, keys)``; ``None`` if nothing is added."""


@dataclass
class AttentionCall:
    """The arguments of one attention layer."""

    inputs: AttentionInputs
    causal: bool
    """Whether the layer hides later tokens where its mask does not say otherwise."""
    mask: Tensor | None = None
    """``(batch or 1, heads or 1, queries, keys)`` as the attention function got it: bool, True
    where a query sees a key, or added to the scores; ``None`` if there is none."""
    beyond: frozenset[str] = frozenset()
    """What makes its probabilities in addition to ``inputs``: keys of ``BEYOND``."""
    implementation: str = "sdpa"
    """The name of the attention function."""

    @classmethod
    def of(
        cls,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: Mapping[str, Any],
        implementation: str,
    ) -> AttentionCall:
        """Keep what an attention function was called with.

        Raises:
            ValueError: attention is local, and its mask is not known.
        """
        scaling, causal = options.get("scaling"), options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        # Flash attention has a mask of tokens, flex attention one of blocks.
        pairs = mask if isinstance(mask, Tensor) and mask.dim() == 4 else None
        if pairs is not None and pairs.shape[-1] > key.shape[-2]:
            pairs = pairs[..., : key.shape[-2]]
        local = options.get("sliding_window")
        if local is not None and pairs is None and query.shape[-2] > int(local):
            raise ValueError(
                f"{type(module).__name__} has local attention, whose mask is only known under the "
                "attention implementations sdpa and eager; load teacher and student with one of "
                "them (teacher_attn_implementation='sdpa')."
            )
        scaling = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
        return cls(
            AttentionInputs(query, key, value, scaling, options.get("position_bias")),
            causal=bool(causal),
            mask=pairs,
            beyond=frozenset(name for name in BEYOND if options.get(name) is not None),
            implementation=implementation,
        )

    def visible_pairs(self, token_mask: Tensor | None, key_mask: Tensor | None = None) -> Visible:
        """Return what the mask hides or shows beyond padding and causality, and the bias.

        Args:
            token_mask: bool, ``(batch, queries)``: False is padding; ``None`` if there is none.
            key_mask: the same for keys; by default ``token_mask``.
        """
        mask, bias = self.mask, self.inputs.bias
        if bias is not None and not bias.any():
            bias = None  # T5's of cross-attention
        if mask is None:
            return Visible(self.causal, None, bias)
        seen = as_visible(mask)
        everything = torch.ones(seen.shape[-2:], dtype=torch.bool, device=seen.device)
        told = everything.tril() if self.causal else everything
        counts = everything
        if token_mask is not None:
            keys = token_mask if key_mask is None else key_mask
            counts = keys[:, None, None] & token_mask[:, None, :, None]
        adds = seen & (mask != 0) if mask.is_floating_point() else ~everything
        biased = (adds & counts).any()
        more, less = (seen & ~told & counts).any(), (told & ~seen & counts).any()
        # One wait for the device; transformers waits for it when it makes the mask.
        shows_more, shows_less, is_biased = torch.stack([more, less, biased]).tolist()
        if is_biased:  # BEiT's
            added = mask.masked_fill(~seen, 0.0)
            bias = added if bias is None else bias + added
        pair_mask = seen if shows_more or shows_less else None
        return Visible(self.causal and not shows_more, pair_mask, bias)
