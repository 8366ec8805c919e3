"""A teacher's outputs for a batch as rows of numbers, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_distill.heads import Batch, TaskHead
from hf_distill.heads.base import MASKED_TARGET, main_input, output
from hf_distill.teachers.columns.description import LOGITS, REST, TOKEN_IDS, id_type

# At a time where several rows have ties: the sums over them take four bytes each.
_TIED_SCORES = 1 << 24
_LARGEST = {"float16": torch.finfo(torch.float16).max}


def take_logits(head: TaskHead, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the logits that the loss looks at, as they are stored.

    Returns:
        ``(batch, classes)`` where a model gives logits for an input; else ``(positions, classes)``,
        the positions of all inputs one after the other.
    """
    parts = [output(outputs, name) for name in head.logit_names]
    positions = head.compared_positions(batch)
    if positions is None:
        return parts[0].flatten(1)
    logits = parts[0] if len(parts) == 1 else torch.stack(parts, dim=-1)
    logits = logits[:, -positions.shape[1] :]  # a learned prompt comes before the input
    if logits.dim() != 3 or logits.shape[:2] != positions.shape:
        raise ValueError(
            f"The teacher gave logits of the shape {tuple(parts[0].shape)} for inputs of "
            f"{tuple(positions.shape)}; use a teacher with logits for each position."
        )
    return logits[positions]


def take_hidden_states(
    outputs: Mapping[str, Any], layers: Sequence[int], batch: Batch
) -> tuple[Tensor, list[int]]:
    """Return the hidden states of some layers, without those of padding.

    Returns:
        ``(positions, layers * width)``, and how many positions each input has.
    """
    states = torch.stack([outputs["hidden_states"][layer] for layer in layers], dim=2).flatten(2)
    positions = state_positions(batch)
    if positions is None or positions.numel() != states[..., 0].numel():
        positions = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    states = states.unflatten(0, positions.shape[:-1])
    return states[positions], positions.flatten(1).sum(dim=1).tolist()


def state_positions(batch: Batch) -> Tensor | None:
    """Return which tokens are not padding, bool, in the shape of the input.

    That is ``(batch, length)`` or ``(batch, choices, length)``; ``None`` for images and sounds.
    """
    inputs, mask = main_input(batch), batch.get("attention_mask")
    if inputs.is_floating_point():
        return None
    if mask is not None and mask.shape == inputs.shape:
        return mask.bool()
    return torch.ones_like(inputs, dtype=torch.bool)


def split_rows(
    columns: Mapping[str, NDArray[Any]], counts: Sequence[int]
) -> list[dict[str, NDArray[Any]]]:
    """Split columns of all rows, one after the other, into rows of so many positions each."""
    ends = np.cumsum(counts)[:-1].tolist()
    parts = [np.split(values, ends) for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*parts, strict=True)]


def encode(
    logits: Tensor, *, dtype: str, top_k: int | None, stored_ids: Tensor | None = None
) -> dict[str, NDArray[Any]]:
    """Return logits as they are stored, by column.

    Args:
        logits: ``(n, classes)``.
        dtype: a key of ``DTYPES``.
        top_k: store only so many of the largest, ``(n, top_k)``, their classes, and of all others
            the log of the sum of their exponentials, ``(n,)``.
        stored_ids: with ``top_k``, the classes to store instead of the largest, ``(n, top_k)``.

    Raises:
        ValueError: a logit is too large for the number format.
    """
    logits = logits.float()
    if top_k is None:
        return {LOGITS: to_array(logits, dtype)}
    if stored_ids is None:
        values, indices = stable_topk(logits, top_k)
    else:
        values, indices = logits.gather(-1, stored_ids), stored_ids
    others = logits.scatter(-1, indices, -torch.inf)
    return {
        LOGITS: to_array(values, dtype),
        TOKEN_IDS: indices.cpu().numpy().astype(id_type(logits.shape[-1])),
        REST: to_array(others.logsumexp(dim=-1), dtype),
    }


def largest_with(columns: Tensor, scores: Tensor, k: int) -> Tensor:
    """Return the columns of the largest scores, ``(rows, k)``; the last gives way to one per row.

    Args:
        columns: ``(rows,)``, the column that must be among them.
        scores: ``(rows, columns)``, without NaN.
        k: how many.
    """
    found = stable_topk(scores.float(), k)[1]
    lacking = (found != columns[:, None]).all(dim=-1)
    found[lacking, -1] = columns[lacking]
    return found


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the largest scores of each row, equal ones in the order of their columns.

    ``torch.topk`` takes and orders equal scores as its kernel happens to, which differs by machine.

    Args:
        scores: ``(rows, columns)``, without NaN.
        k: how many, at most as many as there are columns.

    Returns:
        Scores and columns, ``(rows, k)``, largest score first.
    """
    columns = scores.topk(k, dim=-1).indices
    smallest = scores.gather(-1, columns).amin(dim=-1, keepdim=True)
    tied = ((scores >= smallest).sum(dim=-1) > k).nonzero()[:, 0]
    for rows in tied.split(max(_TIED_SCORES // scores.shape[-1], 1)):
        above, equal = scores[rows] > smallest[rows], scores[rows] == smallest[rows]
        room = k - above.sum(dim=-1, keepdim=True)
        taken = above | (equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= room))
        columns[rows] = taken.nonzero()[:, 1].view(-1, k)
    columns = columns.sort(dim=-1).values
    values, order = scores.gather(-1, columns).sort(dim=-1, descending=True, stable=True)
    return values, columns.gather(-1, order)


def decode(values: NDArray[Any], dtype: str) -> Tensor:
    """Return stored numbers as a tensor of their number format."""
    if dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def to_dense(logits: Tensor, token_ids: Tensor, rest: Tensor, classes: int) -> Tensor:
    """Return the logits of all classes, from the largest and what the others add up to.

    The rest of the mass is shared out evenly: each class that is not stored has the logit
    ``rest - log(classes - k)``. So the softmax at temperature 1 is exact for every stored class,
    and exact altogether if all are stored.

    Args:
        logits: ``(…, k)``.
        token_ids: ``(…, k)``, their classes.
        rest: ``(…)``.
        classes: how many there are.
    """
    others = classes - logits.shape[-1]
    fill = rest.float() - math.log(others) if others else torch.zeros_like(rest).float()
    dense = fill[..., None].repeat(*[1] * fill.dim(), classes)
    return dense.scatter_(-1, token_ids.long(), logits.float())


def identities(head: TaskHead, batch: Batch) -> list[list[NDArray[Any]]]:
    """Return what makes an input itself, whatever batch it is in: its tokens (or pixels), target.

    And where the loss looks: stored outputs would land elsewhere if the labels moved.
    """
    inputs, mask = main_input(batch), batch.get("attention_mask")
    found = [_rows(inputs, mask)]
    positions, target = head.compared_positions(batch), head.target(batch)
    if positions is not None and target is None:
        found.append(_rows(positions, mask))
    elif positions is not None and target is not None:
        # A decoder is causal: what comes after the last position that counts changes nothing.
        read = positions.flip(1).cummax(dim=1).values.flip(1)
        read &= (target != MASKED_TARGET).cummax(dim=1).values  # padding on the left
        found.append(_rows(2 * target + positions, read))
    return [list(parts) for parts in zip(*found, strict=True)]


def checksum(identity: Sequence[NDArray[Any]], stored: Sequence[NDArray[Any]]) -> int:
    """Return a CRC-32 by which stored outputs belong to an input, and are unaltered."""
    value = 0
    for array in identity:
        kind = np.float32 if array.dtype.kind == "f" else np.int64
        value = crc32(array.astype(kind).tobytes(), value)
    for array in stored:
        value = crc32(array.tobytes(), value)
    return value


def to_array(values: Tensor, dtype: str) -> NDArray[Any]:
    """Return numbers in the number format ``dtype``, as Arrow can hold them.

    Raises:
        ValueError: one is too large for it.
    """
    limit = _LARGEST.get(dtype)
    if limit is not None:
        too_large = torch.isfinite(values) & (values.abs() > limit)
        if bool(too_large.any()):
            raise ValueError(
                f"The teacher gave the number {values[too_large][0].item():g}, which float16 "
                "cannot hold; cache with dtype='bfloat16' or 'float32'."
            )
    stored = values.to(getattr(torch, dtype)).cpu().contiguous()
    if dtype == "bfloat16":
        return stored.view(torch.int16).numpy().view(np.uint16)
    return stored.numpy()


def _rows(values: Tensor, mask: Tensor | None) -> list[NDArray[Any]]:
    arrays = values.detach().cpu().numpy()
    if mask is None or mask.shape != values.shape:
        return list(arrays)
    kept = mask.detach().cpu().numpy().astype(bool)
    return [row[keep] for row, keep in zip(arrays, kept, strict=True)]
