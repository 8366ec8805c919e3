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


class Block(NamedTuple):
    """Some rows of a group's attention maps, with the columns of all keys that they may see."""

    queries: Group
    keys: Group
    rows: slice
    columns: slice

    def part(self, maps: Tensor) -> Tensor:
        """Its view of ``(batch or 1, heads or 1, queries, keys)``, with as many heads."""
        samples = self.queries.samples if maps.shape[0] > 1 else slice(None)
        first, first_key = self.queries.tokens.start, self.keys.tokens.start
        rows = slice(first + self.rows.start, first + self.rows.stop)
        return maps[samples, :, rows, first_key : first_key + self.columns.stop]


class Pairs(NamedTuple):
    """Which pairs of a query and a key count; see the module ``attention``."""

    token_mask: Tensor | None = None
    key_mask: Tensor | None = None
    causal: bool = False
    pair_mask: Tensor | None = None

    def groups(self, query: Tensor, key: Tensor) -> list[tuple[Group, Group]]:
        """The batch in groups: their valid queries, and their valid keys."""
        batch, device = query.shape[0], query.device
        found = groups(self.token_mask, batch, query.shape[2], device)
        if self.key_mask is None and query.shape[2] == key.shape[2]:
            return [(group, group) for group in found]
        others = groups(self.key_mask, batch, key.shape[2], device)
        keys = {group.samples.start: group for group in others}
        return [(g, keys[g.samples.start]) for g in found if g.samples.start in keys]

    def blocks(self, queries: Group, keys: Group, heads: int, device: torch.device) -> list[Block]:
        """The attention maps of a group in chunks of rows."""
        found = []
        for rows in chunks(queries, heads * keys.length, device):
            last = queries.tokens.start + rows.stop - keys.tokens.start
            stop = min(max(last, 0), keys.length) if self.causal else keys.length
            found.append(Block(queries, keys, rows, slice(0, stop)))
        return found

    def hide(self, block: Block, maps: Tensor, value: float) -> Tensor:
        """Put ``value``, in place, where ``(samples · heads, rows, columns)`` does not count."""
        queries, keys, rows, columns = block
        if self.causal:
            # Only the last keys, as many as rows, are hidden from some of them.
            offset = queries.tokens.start - keys.tokens.start
            first = min(max(offset + rows.start, 0), columns.stop)
            places = torch.arange(offset + rows.start, offset + rows.stop, device=maps.device)
            columns_at_end = torch.arange(first, columns.stop, device=maps.device)
            maps[..., first:].masked_fill_(columns_at_end > places[:, None], value)
        hidden = [] if self.pair_mask is None else [~block.part(self.pair_mask)]
        if keys.padding is not None:
            hidden.append(keys.padding[:, :, columns].mT)
        if queries.padding is not None:
            hidden.append(queries.padding[:, :, rows])
        by_sample = maps.unflatten(0, (queries.samples.stop - queries.samples.start, -1))
        for mask in hidden:
            by_sample.masked_fill_(mask, value)
        return maps


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
