"""Inputs of the losses on attention, and their common rules: which pairs of tokens count.

One set of rules for ``scores_loss``, ``probabilities_loss`` and ``relations_loss``:

- ``student``, ``teacher``: ``AttentionInputs`` of one layer each, of the same batch and as many
  queries and keys, in any floating-point types.
- ``token_mask``: ``(batch, queries)`` bool, True = valid, or ``None``. Padded tokens do not count.
  Their content does not matter, NaN and infinities included, and their gradient is exactly 0.
- ``key_mask``: ``(batch, keys)`` bool, the same for keys; ``None`` is the ``token_mask`` where
  there are as many queries as keys, as in self-attention.
- ``causal``: a query sees no later key.
- ``pair_mask``: ``(batch or 1, heads or 1, queries, keys)`` bool, True where a query sees a key, or
  ``None``; for local attention.
- Returned is a sum over batch and tokens as a 0-dim tensor, float32 (float64 if a side is float64)
  whatever the types of the inputs. The division by the number of tokens or pairs is the caller's,
  so that any split of a batch gives the same result.
- All is computed in float32 (float64), from half-precision inputs too. The gradient is rounded
  once, to the type of the input that it belongs to. Autocast has no effect.
- Memory beyond the inputs grows linearly with the length: no attention map exists as a whole.
- The gradient reaches the student only, and is first order: ``create_graph=True`` raises.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hf_distill.losses.chunks import Pairs


class AttentionInputs(NamedTuple):
    """What the attention function of a layer gets.

    Attributes:
        query: ``(batch, heads, queries, head_dim)``.
        key: ``(batch, key_value_heads, keys, head_dim)``. Under grouped-query attention there
            are fewer of these heads; each serves ``heads / key_value_heads`` consecutive query
            heads.
        value: ``(batch, key_value_heads, keys, value_dim)``.
        scaling: what Q Kᵀ is multiplied by, mostly ``1 / √head_dim``.
        bias: ``(batch or 1, heads or 1, queries, keys)``, what is added to the scores then, such as
            T5's relative positions; ``None`` is nothing. The student's gets a gradient.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    bias: Tensor | None = None


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if one of the tensors is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_token_mask(
    mask: Tensor | None, batch: int, length: int, name: str = "token_mask"
) -> None:
    """Raise ValueError if the mask is not one of ``(batch, length)`` booleans."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool, but it is {mask.dtype}; pass {name}.bool().")
    if mask.shape != (batch, length):
        raise ValueError(
            f"{name} must have the shape (batch, length) = {(batch, length)}, but it has "
            f"{tuple(mask.shape)}."
        )


def check_inputs(student: AttentionInputs, teacher: AttentionInputs, pairs: Pairs) -> None:
    """Raise ValueError if the two sides do not fit together, whatever their heads."""
    for who, inputs in (("student", student), ("teacher", teacher)):
        for name in ("query", "key", "value"):
            tensor: Tensor = getattr(inputs, name)
            if tensor.dim() != 4 or not tensor.is_floating_point():
                raise ValueError(
                    f"{who}.{name} must be floating-point (batch, heads, length, head_dim), but "
                    f"it is {tensor.dtype} {tuple(tensor.shape)}."
                )
    batch, queries, keys = student.query.shape[0], student.query.shape[2], student.key.shape[2]
    for who, inputs in (("student", student), ("teacher", teacher)):
        for name, other, length in (
            ("query", "query", queries), ("key", "key", keys), ("value", "key", keys),
        ):  # fmt: skip
            shape = getattr(inputs, name).shape
            if (shape[0], shape[2]) != (batch, length):
                raise ValueError(
                    f"student and teacher must see the same tokens: {who}.{name} has batch and "
                    f"length {(shape[0], shape[2])}, student.{other} {(batch, length)}."
                )
    check_token_mask(pairs.token_mask, batch, queries)
    check_token_mask(pairs.key_mask, batch, keys, "key_mask")
    if queries == keys:
        return
    if pairs.causal:
        raise ValueError(
            f"causal=True needs as many queries as keys, but there are {queries} and {keys}."
        )
    if pairs.token_mask is not None and pairs.key_mask is None:
        raise ValueError(
            f"token_mask is that of {queries} queries, and there are {keys} keys: pass key_mask."
        )


def check_maps(student: AttentionInputs, teacher: AttentionInputs, pairs: Pairs) -> None:
    """Raise ValueError if the attention maps of the two sides cannot be compared head by head."""
    for who, inputs in (("student", student), ("teacher", teacher)):
        heads, key_heads = inputs.query.shape[1], inputs.key.shape[1]
        if heads % key_heads:
            raise ValueError(
                f"{who}.key has {key_heads} heads, which do not divide the {heads} heads of "
                f"{who}.query."
            )
        if inputs.query.shape[3] != inputs.key.shape[3]:
            raise ValueError(
                f"{who}.query has the head_dim {inputs.query.shape[3]}, {who}.key "
                f"{inputs.key.shape[3]}."
            )
        if not math.isfinite(inputs.scaling) or inputs.scaling == 0:
            raise ValueError(
                f"{who}.scaling must be a number other than 0, but it is {inputs.scaling!r}."
            )
    batch, heads, queries, _ = student.query.shape
    if teacher.query.shape[1] != heads:
        raise ValueError(
            f"The student's layer has {heads} attention heads, the teacher's "
            f"{teacher.query.shape[1]}, so their maps cannot be compared head by head: choose "
            "attention_loss='relations'."
        )
    pair_mask, keys = pairs.pair_mask, student.key.shape[2]
    if pair_mask is not None and pair_mask.dtype != torch.bool:
        raise ValueError(
            f"pair_mask must be bool, but it is {pair_mask.dtype}; pass pair_mask.bool()."
        )
    maps = {"pair_mask": pair_mask, "student.bias": student.bias, "teacher.bias": teacher.bias}
    for name, tensor in maps.items():
        if tensor is None:
            continue
        fits = tensor.dim() == 4 and tensor.shape[2:] == (queries, keys)
        if not fits or tensor.shape[0] not in (1, batch) or tensor.shape[1] not in (1, heads):
            raise ValueError(
                f"{name} must have the shape ({batch} or 1, {heads} or 1, {queries}, {keys}), but "
                f"it has {tuple(tensor.shape)}."
            )
