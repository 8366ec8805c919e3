"""Losses in pieces that fit a cache: which samples, tokens and rows are computed together.

Tensors here are ``(batch, heads, length, size)``; hidden states have one head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CPU_NUMBERS = 2**19
"""About how many numbers a piece has on a CPU: 2 MB of float32, for the caches of a core."""

_DEVICE_NUMBERS = 2**25
"""The same for other devices: 128 MB of float32, enough work for one launch."""

_FEWEST_ROWS = 32
"""Matrix products with fewer rows waste the processor."""


class Group(NamedTuple):
    """Samples that are computed together.

    Attributes:
        samples: which of the batch.
        tokens: the part of the sequence that holds their valid tokens.
        padding: ``(samples, 1, tokens, 1)``, True = padding; ``None`` if there is none.
    """

    samples: slice
    tokens: slice
    padding: Tensor | None

    @property
    def length(self) -> int:
        """The number of tokens in ``tokens``."""
        return int(self.tokens.stop - self.tokens.start)


def groups(token_mask: Tensor | None, batch: int, length: int, device: torch.device) -> list[Group]:
    """The batch in groups, without samples that have no valid token.

    A CPU takes sample by sample, cut to its valid tokens: that saves work, and a sample's heads
    can be multiplied where they lie. Elsewhere all are one group: looking at the mask would stop
    the device.
    """
    everything = slice(0, length)
    if device.type != "cpu":
        padding = None if token_mask is None else ~token_mask[:, None, :, None]
        return [Group(slice(0, batch), everything, padding)]
    if token_mask is None:
        return [Group(slice(i, i + 1), everything, None) for i in range(batch)]
    found = []
    firsts = token_mask.int().argmax(dim=1).tolist()
    ends = (length - token_mask.flip(1).int().argmax(dim=1)).tolist()
    counts = token_mask.sum(dim=1).tolist()
    for i, (first, end, count) in enumerate(zip(firsts, ends, counts, strict=True)):
        if count:
            tokens = slice(first, end)
            whole = count == end - first
            padding = None if whole else ~token_mask[i : i + 1, None, tokens, None]
            found.append(Group(slice(i, i + 1), tokens, padding))
    return found


def chunks(group: Group, numbers_a_row: int, device: torch.device) -> Iterator[slice]:
    """The tokens of the group, counted from its first, in chunks of nearly equal length."""
    samples = group.samples.stop - group.samples.start
    most = _CPU_NUMBERS if device.type == "cpu" else _DEVICE_NUMBERS
    rows = max(_FEWEST_ROWS, most // max(1, samples * numbers_a_row))
    count = -(-group.length // rows)
    for i in range(count):
        yield slice(group.length * i // count, group.length * (i + 1) // count)


def part(tensor: Tensor, group: Group, rows: slice) -> Tensor:
    """What belongs to the rows of a group, a view: ``(samples, heads, rows, head_dim)``."""
    first = group.tokens.start
    return tensor[group.samples, :, first + rows.start : first + rows.stop]


def shared_heads(tensor: Tensor, heads: int) -> Tensor:
    """Key heads repeated for the query heads that they serve: ``(samples, heads, …)``."""
    if tensor.shape[1] == heads:
        return tensor
    return tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def fill_padding(tensor: Tensor, group: Group, rows: slice) -> Tensor:
    """Put zeros, in place, where ``(samples, heads, rows, …)`` belongs to padding."""
    if group.padding is None:
        return tensor
    return tensor.masked_fill_(group.padding[:, :, rows], 0.0)


def empty_gradient(tensor: Tensor, found: list[Group], dtype: torch.dtype | None = None) -> Tensor:
    """Room for the gradient of a tensor: zeros where no group will write."""
    written = sum((group.samples.stop - group.samples.start) * group.length for group in found)
    if written == tensor.shape[0] * tensor.shape[2]:
        return torch.empty_like(tensor, dtype=dtype)
    return torch.zeros_like(tensor, dtype=dtype)


def store(gradient: Tensor, group: Group, rows: slice, values: Tensor) -> None:
    """Write ``(samples · heads, rows, head_dim)`` into the gradient, summed over shared heads."""
    target = part(gradient, group, rows)
    values = values.unflatten(0, (target.shape[0], -1))
    if values.shape[1] != target.shape[1]:
        values = values.unflatten(1, (target.shape[1], -1)).sum(dim=2)
    target.copy_(values)


class Pairs(NamedTuple):
    """Which keys a query sees, apart from padding."""

    causal: bool = False
    pair_mask: Tensor | None = None

    def keys(self, group: Group, rows: slice) -> slice:
        """The part of the group's tokens that holds all keys visible to the rows."""
        return slice(0, rows.stop if self.causal else group.length)

    def hide(self, maps: Tensor, group: Group, rows: slice, value: float) -> None:
        """Put ``value`` where ``(samples · heads, rows, keys)`` belongs to a hidden pair."""
        if self.causal:
            # Only the last keys, as many as rows, are hidden from some of them.
            size = rows.stop - rows.start
            later = torch.ones(size, size, dtype=torch.bool, device=maps.device).triu_(1)
            maps[..., rows].masked_fill_(later, value)
        if self.pair_mask is not None:
            first = group.tokens.start
            keys = self.keys(group, rows)
            samples = group.samples if self.pair_mask.shape[0] > 1 else slice(None)
            seen = self.pair_mask[
                samples,
                :,
                first + rows.start : first + rows.stop,
                first + keys.start : first + keys.stop,
            ]
            maps.unflatten(0, (group.samples.stop - group.samples.start, -1)).masked_fill_(
                ~seen, value
            )


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd will ask for a gradient."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def with_gradients(
    loss: Tensor, *gradients: tuple[Tensor, Tensor], factor: Tensor | float = 1.0
) -> Tensor:
    """Give a loss, ``(*rows)`` or 0-dim, the gradients that were computed along with it.

    For each tensor that is what comes with it, ``(*rows, size)``, times ``factor``, a number or
    ``(*rows)``. Only that is kept for the backward pass, where autograd would keep several tensors.
    """
    tensors, values = zip(*gradients, strict=True)
    result: Tensor = _KnownGradients.apply(loss, factor, *tensors, *values)
    return result


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, factor: Tensor | float, *tensors_and_gradients: Tensor
    ) -> Tensor:
        count = len(tensors_and_gradients) // 2
        ctx.save_for_backward(*tensors_and_gradients[count:])
        ctx.factor = factor
        ctx.dtypes = [tensor.dtype for tensor in tensors_and_gradients[:count]]
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        factor = (grad_output * ctx.factor).unsqueeze(-1)
        gradients = [
            (gradient * factor).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, None, *gradients, *(None for _ in gradients)


def refuse_second_order() -> None:
    """Raise where second derivatives would silently be wrong."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The distillation losses have first derivatives only; run the backward pass without "
            "create_graph=True."
        )
