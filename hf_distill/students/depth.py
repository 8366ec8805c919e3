"""Choose the teacher's layers that a student keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_distill.students.running import LayerRunner

LAYER_CHOICES = ("uniform", "first", "last", "auto")


def choose_layers(
    layers: str | Sequence[int] | None, number: int | None, teacher_layers: int
) -> list[int] | None:
    """Return the teacher's layers that are kept, from 0; ``None`` for ``"auto"``.

    Of N layers, M are kept: ``"uniform"`` the layers ⌊i·N/M⌋, ``"first"`` the first M, ``"last"``
    the last M.

    Raises:
        ValueError: there is no such choice, layer or number of layers.
    """
    if layers is None or isinstance(layers, str):
        kept = teacher_layers if number is None else number
        if not 1 <= kept <= teacher_layers:
            raise ValueError(
                f"num_hidden_layers={kept} is not between 1 and the teacher's {teacher_layers}."
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
    chosen = list(layers)
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
    runner: LayerRunner, batches: Iterable[Mapping[str, Any]], number: int, fixed: Sequence[int]
) -> list[int]:
    """Return the layers that are left when those that change the output least have gone.

    One layer is removed after the other: that without which the output on the calibration data
    changes least, measured by the relative squared error of logits (or hidden states) against those
    of the whole teacher. Of equal ones the lower goes. The greedy search by output on calibration
    data follows SLEB (Song et al. 2024, section 3.2), which measures perplexity.

    Args:
        runner: of the teacher.
        batches: of calibration data; they are run many times.
        number: of layers to keep.
        fixed: layers that must stay.
    """
    layers = len(runner.layers)
    removed: list[int] = []
    rounds = range(layers - number)
    total = sum(layers - gone - len(fixed) for gone in rounds)
    with tqdm(total=total, desc="Layers", leave=False) as bar:
        for _ in rounds:
            errors = {}
            for candidate in range(layers):
                if candidate not in removed and candidate not in fixed:
                    errors[candidate] = _output_change(runner, batches, [*removed, candidate])
                    bar.update()
            removed.append(min(errors, key=lambda index: (errors[index], index)))
    return [index for index in range(layers) if index not in removed]


def _output_change(
    runner: LayerRunner, batches: Iterable[Mapping[str, Any]], skipped: Sequence[int]
) -> float:
    error = size = 0.0
    for batch in batches:
        whole, part = (_outputs(runner.without(batch, gone)) for gone in ((), skipped))
        for one, other in zip(whole, part, strict=True):
            error += float((one - other).square().sum())
            size += float((one - one.mean(-1, keepdim=True)).square().sum())
    return error / size if size else error


def _outputs(outputs: Any) -> Iterator[Tensor]:
    """Yield what a model says: its logits, or its last hidden states if it has no head."""
    logits = [value for name, value in outputs.items() if "logits" in name]
    for value in logits or [outputs["last_hidden_state"]]:
        yield torch.atleast_2d(value.double())
