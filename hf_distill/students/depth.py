"""Choose the teacher's layers that a student keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_distill.students.running import Side
from hf_distill.students.sizes import is_between

LAYER_CHOICES = ("uniform", "first", "last", "auto")


def choose_layers(
    layers: str | Sequence[int] | None,
    number: int | None,
    teacher_layers: int,
    first_layer: str | None = None,
) -> list[int] | None:
    """Return the teacher's layers that are kept, from 0; ``None`` for ``"auto"``.

    Of N layers, M are kept: ``"uniform"`` the layers ⌊i·N/M⌋, ``"first"`` the first M, ``"last"``
    the last M.

    Args:
        layers: the choice, or a list.
        number: M, by default the length of the list, or N.
        teacher_layers: N.
        first_layer: why layer 0 cannot go, where it cannot.

    Raises:
        ValueError: there is no such choice, layer or number of layers, or layer 0 must stay.
    """
    kept = _chosen(layers, number, teacher_layers)
    if first_layer is not None and kept is not None and kept[0] != 0:
        raise ValueError(
            f"layers={layers!r} leaves out the teacher's layer 0, {first_layer}: choose others, "
            "such as 'uniform' or 'first'."
        )
    return kept


def by_stack(layers: Any, number: int | None) -> tuple[Any, Any]:
    """Return the choices for encoder and decoder: the same, or those of a mapping.

    Raises:
        ValueError: a mapping names another stack, or there is also a number of layers.
    """
    if not isinstance(layers, Mapping):
        return layers, layers
    lists = all(isinstance(value, Sequence) and not isinstance(value, str)
                for value in layers.values())  # fmt: skip
    if not layers or not layers.keys() <= {"encoder", "decoder"} or not lists:
        raise ValueError(f"layers={layers!r} is not a list of layers for encoder, decoder or both.")
    if number is not None:
        raise ValueError(f"layers={layers!r} names layers: leave out num_hidden_layers={number}.")
    return layers.get("encoder"), layers.get("decoder")


def _chosen(
    layers: str | Sequence[int] | None, number: int | None, teacher_layers: int
) -> list[int] | None:
    if layers is None or isinstance(layers, str):
        kept = teacher_layers if number is None else number
        if not is_between(kept, 1, teacher_layers):
            raise ValueError(
                f"num_hidden_layers={kept!r} is not an integer from 1 to the teacher's "
                f"{teacher_layers}."
            )
        if layers in (None, "uniform"):
            return [index * teacher_layers // kept for index in range(kept)]
        if layers == "first":
            return list(range(kept))
        if layers == "last":
            return list(range(teacher_layers - kept, teacher_layers))
        if layers == "auto":
            return None
        raise ValueError(
            f"layers={layers!r} is not a list of layers or one of {', '.join(LAYER_CHOICES)}."
        )
    chosen = list(layers) if isinstance(layers, Iterable) else []
    if not chosen or any(isinstance(i, bool) or not isinstance(i, int) for i in chosen):
        raise ValueError(f"layers={layers!r} is not a list of the teacher's layers, from 0.")
    if sorted(set(chosen)) != chosen:
        raise ValueError(f"layers={layers!r} must rise: each layer once, in the teacher's order.")
    if chosen[0] < 0 or chosen[-1] >= teacher_layers:
        raise ValueError(
            f"layers={layers!r} names a layer that the teacher does not have: its layers are 0 to "
            f"{teacher_layers - 1}."
        )
    if number is not None and number != len(chosen):
        raise ValueError(
            f"layers={layers!r} has {len(chosen)} layers, but num_hidden_layers={number}: leave "
            "out num_hidden_layers."
        )
    return chosen


def least_missed(
    teacher: Side,
    batches: Sequence[dict[str, Any]],
    number: int,
    fixed: Sequence[int],
    last: Side,
) -> list[int]:
    """Return the layers that are left when those that change the output least have gone.

    One layer is removed after the other: that without which the output on the calibration data
    changes least. The change is the Kullback-Leibler divergence from the whole teacher's logits, or
    the relative squared error of a single number or of hidden states. Of equal ones the lower layer
    goes. The greedy search by output on calibration data follows SLEB (Song et al. 2024, section
    3.2), which measures perplexity.

    Args:
        teacher: the layers, and what runs them.
        batches: of calibration data; they are run many times.
        number: of layers to keep.
        fixed: layers that must stay.
        last: the stack whose tokens the outputs are of, which may be another one's decoder.
    """
    layers = len(teacher.layers)
    masks = [last.tokens(batch, last.runner.embed(batch)) for batch in batches]
    whole = [_outputs(teacher, batch, (), mask) for batch, mask in zip(batches, masks, strict=True)]
    removed: list[int] = []
    rounds = range(layers - number)
    total = sum(layers - gone - len(fixed) for gone in rounds)
    with tqdm(total=total, desc="Layers", leave=False) as bar:
        for _ in rounds:
            changes = {}
            for candidate in sorted({*range(layers)} - {*removed, *fixed}):
                skipped = [*removed, candidate]
                changes[candidate] = sum(
                    _change(_outputs(teacher, batch, skipped, mask), before)
                    for batch, mask, before in zip(batches, masks, whole, strict=True)
                )
                bar.update()
            # NaN, where the rest overflows, is less than nothing and more than nothing.
            finite = {index: change for index, change in changes.items() if isfinite(change)}
            if not finite:
                raise ValueError(
                    "layers='auto' cannot be found: the outputs of the teacher on "
                    "calibration_data are NaN or infinite, or become so without any one layer. "
                    "Load the teacher in float32, or choose another value of layers."
                )
            removed.append(min(finite, key=lambda index: (finite[index], index)))
    return [index for index in range(layers) if index not in removed]


def _outputs(
    teacher: Side, batch: dict[str, Any], skipped: Sequence[int], mask: Tensor
) -> list[tuple[Tensor, bool]]:
    """Return log-probabilities (True), or numbers or the last hidden states (False)."""
    outputs = teacher.runner.without(batch, skipped)
    logits = [value for name, value in outputs.items() if "logits" in name]
    values = []
    for value in logits or [outputs["last_hidden_state"]]:
        if value.shape == mask.shape:  # a logit for each token: one distribution per row
            value = value.masked_fill(~mask, torch.finfo(value.dtype).min)
        elif value.shape[:2] == mask.shape:
            value = value[mask]
        is_distribution = bool(logits) and value.shape[-1] > 1
        value = value.double().log_softmax(-1) if is_distribution else value.double()
        values.append((value, is_distribution))
    return values


def _change(outputs: Sequence[tuple[Tensor, bool]], whole: Sequence[tuple[Tensor, bool]]) -> float:
    change = 0.0
    for (one, is_distribution), (other, _) in zip(outputs, whole, strict=True):
        if is_distribution:
            change += float((other.exp() * (other - one)).sum())
        else:
            change += float((one - other).square().sum() / other.square().sum())
    return change
