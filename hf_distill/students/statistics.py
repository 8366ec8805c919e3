"""What one pass of the teacher finds out: the basis of its stream, and how much each unit does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_distill.students.calibration import Calibration
from hf_distill.students.families import Attention
from hf_distill.students.running import ENCODED, Side, normalised
from hf_distill.students.weights import find


class Statistics:
    """Statistics of one pass through a stack of the teacher: its stream, and the size of each unit.

    The basis is that of the mean of the covariances of all streams: the embedding output and what
    each block leaves. It follows SliceGPT (Ashkboos et al. 2024, section 3.3). Where norms come
    first, a token counts as they see it: by its direction, from zero, whatever its size.
    """

    def __init__(self, teacher: Side) -> None:
        self._teacher = teacher
        stack, layers = teacher.stack, len(teacher.layers)
        blocks = range(len(stack.blocks))
        width = teacher.sizes.hidden_size
        self._sums = torch.zeros(1 + layers * len(blocks), width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)
        self.units = [[torch.zeros(0) for _ in blocks] for _ in range(layers)]
        """Sums over tokens: norms of the heads, squares of the neurons."""
        self.batches: list[int] = []
        """Tokens in each batch."""

    def add(self, batch: dict[str, Any]) -> Tensor:
        """Run a batch through all layers; return the last state, as later stacks read it."""
        teacher = self._teacher
        state = teacher.runner.embed(batch)
        mask = teacher.tokens(batch, state)
        self.batches.append(int(mask.sum()))
        self._add(0, state[mask])
        for index in range(len(teacher.layers)):
            state = self._layer(teacher, batch, index, state, mask)
        return normalised(teacher.final_norm, state)

    @property
    def tokens(self) -> int:
        """How many tokens were seen."""
        return sum(self.batches)

    def _layer(
        self, teacher: Side, batch: dict[str, Any], index: int, state: Tensor, mask: Tensor
    ) -> Tensor:
        blocks = teacher.stack.blocks
        stream = state[mask].float()

        def note(number: int, inputs: Tensor, output: Tensor) -> None:
            nonlocal stream
            block = blocks[number]
            units = inputs[mask].double()
            if isinstance(block, Attention):
                heads = units.unflatten(-1, (teacher.sizes.heads, -1))
                sums = heads.norm(dim=-1).sum(0)
            else:
                sums = units.square().sum(0)
            before = self.units[index][number]
            self.units[index][number] = sums.cpu() + (before if len(before) else 0)
            stream = teacher.left_by(index, block, stream + output[mask].float())
            self._add(1 + index * len(blocks) + number, stream)

        hooks = {
            find(teacher.layers[index], block.writer): lambda i, o, n=n: note(n, i, o)
            for n, block in enumerate(blocks)
        }
        return teacher.runner.run(batch, index, lambda _: state, hooks=hooks)

    def _add(self, stream: int, states: Tensor) -> None:
        states = states.float()
        if self._teacher.stack.pre_norm:
            if self._teacher.centred:
                states = states - states.mean(-1, keepdim=True)
            states = states * inverse_squares(states).sqrt()
        else:
            self._sums[stream] += states.double().sum(0).cpu()
        self._products += (states.T @ states).double().cpu()

    def covariance(self) -> Tensor:
        """Return the mean covariance of all streams, float64, ``(width, width)``.

        Where norms come first, of directions, without subtracting their mean.
        """
        means = self._sums / self.tokens
        return (self._products / self.tokens - means.T @ means) / len(means)


def gather(stacks: Sequence[Side], calibration: Calibration, least: int) -> list[Statistics]:
    """Run the teacher until each of its stacks, of which later ones read the first, saw enough.

    Args:
        stacks: of the teacher.
        calibration: the data; cut to the batches that were run.
        least: tokens.
    """
    found = [Statistics(side) for side in stacks]
    bar = tqdm(total=least, desc="Teacher", unit="token", leave=False)
    for batch in calibration:
        for side, statistics in zip(stacks, found, strict=True):
            batch = {**batch, ENCODED: {side.model: statistics.add(batch)}}
        seen = min(statistics.tokens for statistics in found)
        bar.update(min(seen, least) - bar.n)
        if seen >= least:
            break
    bar.close()
    calibration.batches = len(found[0].batches)
    return found


def basis_of(stacks: Sequence[Side], found: Sequence[Statistics], width: int) -> Tensor:
    """Return the basis of all stacks, ``(width, width of the teacher)``, float64.

    It is one for encoder and decoder: they share the table of the tokens, or are decoded with it.
    """
    covariance = torch.stack([statistics.covariance() for statistics in found]).mean(0)
    last = stacks[-1]
    basis = principal_basis(covariance, width, centred=last.centred)
    if width < len(covariance) and last.final_norm is not None and not last.centred:
        scales: Any = last.final_norm.weight
        return along_scales(basis, scales)
    return basis


def inverse_squares(states: Tensor) -> Tensor:
    """Return one over the mean square of each state, ``(rows, 1)``."""
    return 1 / states.square().mean(-1, keepdim=True).clamp(min=1e-12)


def principal_basis(covariance: Tensor, width: int, *, centred: bool) -> Tensor:
    """Return the map P to the ``width`` coordinates in which most of the variance lies.

    Args:
        covariance: ``(size, size)``.
        width: of the student; the identity is returned for ``size``.
        centred: the coordinates of every state add up to 0, so that a LayerNorm, which subtracts
            their mean, takes nothing away. One direction is then left free.

    Returns:
        Float64, ``(width, size)``; each direction has the sign that makes its largest entry
        positive.
    """
    size = len(covariance)
    if width == size:
        return torch.eye(size, dtype=torch.float64)
    kept = width - 1 if centred else width
    vectors = _with_signs(torch.linalg.eigh(covariance).eigenvectors[:, -kept:].flip(1).T)
    if not centred:
        return vectors
    return _centred_axes(width) @ vectors


def _with_signs(vectors: Tensor) -> Tensor:
    largest = vectors.abs().argmax(1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()


def along_scales(basis: Tensor, scales: Tensor) -> Tensor:
    """Turn a basis within its span so that scales of the teacher's units scale its coordinates.

    A final RMSNorm before a tied decoder has no matrix behind it that could take up its scales.

    Args:
        basis: ``(width, size)``, orthonormal rows.
        scales: ``(size,)``.
    """
    scales = scales.detach().to("cpu", basis.dtype)
    return _with_signs(torch.linalg.eigh((basis * scales) @ basis.T).eigenvectors.T @ basis)


def _centred_axes(width: int) -> Tensor:
    """Return ``width - 1`` orthonormal columns that add up to 0 (Helmert's matrix)."""
    columns = torch.zeros(width, width - 1, dtype=torch.float64)
    for index in range(1, width):
        columns[:index, index - 1] = 1.0
        columns[index, index - 1] = -float(index)
        columns[:, index - 1] /= math.sqrt(index * (index + 1))
    return columns
