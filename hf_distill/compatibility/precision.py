"""The number format that a model computes in, and how far its logits may be rounded."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COARSEST_FLOAT32 = 2**-10
"""A unit of TF32, in which GPUs may multiply."""
_ROUNDINGS = 4
"""Allowed difference of a logit, in rounding units of the largest one."""


def weight_dtype(model: nn.Module) -> torch.dtype:
    """Return the number format of a model's weights, apart from those that are quantised."""
    return next((p.dtype for p in model.parameters() if p.dtype in _WEIGHT_DTYPES), torch.float32)


def rounding_unit(model: nn.Module) -> float:
    """Return the spacing of numbers near 1 in which a model computes without mixed precision."""
    quantised = getattr(model, "is_quantized", False)
    dtype = torch.bfloat16 if quantised else weight_dtype(model)
    return max(_COARSEST_FLOAT32, torch.finfo(dtype).eps)


def rounding_of(logits: Iterable[Tensor], unit: float) -> float:
    """Return by how much a logit may differ where the same row has another place or padding.

    A row's own logits may be small where large numbers cancel, and its rounding is not; so the
    largest of all rows counts.
    """
    return _ROUNDINGS * unit * max(map(_largest, logits))


def _largest(logits: Tensor) -> float:
    finite = logits[logits.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
