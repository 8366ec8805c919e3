"""Which keys the queries of a recorded attention see, beyond what padding and causality tell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_distill.heads.base import as_visible
from hf_distill.layers.capture import AttentionCall


class Visible(NamedTuple):
    """Which pairs of tokens, padding apart, see each other."""

    causal: bool
    """A query sees no later key."""
    pair_mask: Tensor | None
    """Bool, ``(batch or 1, heads or 1, length, length)``: True where a query sees a key; ``None``
    if ``causal`` tells all."""
    biased: bool = False
    """Whether the mask adds something to the scores of pairs that see each other."""


def visible_pairs(call: AttentionCall, token_mask: Tensor | None) -> Visible:
    """What an attention mask hides or shows beyond padding and causality.

    Args:
        call: what was recorded of the attention.
        token_mask: bool, ``(batch, length)``: False is padding; ``None`` if there is none.
    """
    mask = call.mask
    if mask is None:
        return Visible(call.causal, None)
    seen = as_visible(mask)
    everything = torch.ones(seen.shape[-2:], dtype=torch.bool, device=seen.device)
    told = everything.tril() if call.causal else everything
    counts = everything
    if token_mask is not None:
        counts = token_mask[:, None, None] & token_mask[:, None, :, None]
    adds = seen & (mask != 0) if mask.is_floating_point() else ~everything
    biased = (adds & counts).any()
    more, less = (seen & ~told & counts).any(), (told & ~seen & counts).any()
    # One wait for the device; transformers waits for it when it makes the mask.
    shows_more, shows_less, is_biased = torch.stack([more, less, biased]).tolist()
    pair_mask = seen if shows_more or shows_less else None
    return Visible(call.causal and not shows_more, pair_mask, is_biased)
