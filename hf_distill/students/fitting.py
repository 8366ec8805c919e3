r"""Fit a student to its teacher by least squares, one layer at a time, without gradients.

The student's hidden state is to be P times the teacher's, with a basis P of the teacher's stream.
In the order of the forward pass, on the student's own states x:

- Readers: the teacher's reader after the map R that comes nearest to its input,
  :math:`R = \operatorname{ridge}(x \to x_t)`, for the heads and neurons that are kept.
- Writers: :math:`\operatorname{ridge}(c \to P u - x)`, with the units' outputs c, and u the sum
  that the teacher's block leaves in the stream. Since x is subtracted, each block also repairs the
  error that was made before it.
- LayerNorms after the sum: scale and shift of each unit by regression on what they normalise to.

Every ridge regression fits only what a projection of the teacher's own map leaves over, so a
student as large as its teacher is its teacher, and little data changes little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_distill.students.calibration import Calibration, TokenArrays
from hf_distill.students.families import Attention, Block, FeedForward, Part
from hf_distill.students.regression import NormFit, Ridge
from hf_distill.students.running import ENCODED, Side, normalised
from hf_distill.students.statistics import Statistics, inverse_squares
from hf_distill.students.weights import Map, find, unfitted

_CHUNK = 4096


class StackFit:
    """Fits the layers of a student to those of its teacher.

    Args:
        teacher: runs on its own states.
        student: is written to.
        layers: the teacher's layer from which each of the student's has heads and neurons.
        calibration: the data, cut to the batches that ``statistics`` saw.
        statistics: of the teacher.
        basis: P, ``(width of the student, width of the teacher)``.
        folder: for temporary files.
        encoder: what was fitted before, whose last states this stack reads.
    """

    def __init__(
        self,
        teacher: Side,
        student: Side,
        layers: list[int],
        calibration: Calibration,
        statistics: Statistics,
        basis: Tensor,
        folder: str,
        encoder: StackFit | None = None,
    ) -> None:
        self.teacher, self.student, self.stack = teacher, student, teacher.stack
        self.layers, self.calibration, self.statistics = layers, calibration, statistics
        wide, narrow = teacher.sizes, student.sizes
        self.narrower = narrow.hidden_size < wide.hidden_size
        self.basis = basis.float()
        self._encoder = encoder
        self._read_encoder = None if encoder is None else encoder.read_last()
        arrays = self.arrays = TokenArrays(folder, statistics.batches)
        self.teacher_states = arrays.new(wide.hidden_size)
        """The input of the teacher's next layer; at the end its last state."""
        self.student_states = arrays.new(narrow.hidden_size)
        """The input of the student's next layer; at the end its last state."""
        self._source = arrays.new(wide.hidden_size)
        self._sums = [arrays.new(wide.hidden_size) for _ in self.stack.blocks]
        self._stream = arrays.new(narrow.hidden_size)
        self._units = {
            "heads": arrays.new(narrow.heads * narrow.head_size),
            "neurons": arrays.new(narrow.intermediate_size),
        }
        self._relative: tuple[Tensor, Tensor] | None = None

    def fit(self) -> None:
        """Fit the embeddings and every layer."""
        steps = tqdm(total=1 + len(self.layers), desc="Student", leave=False)
        with steps:
            self._embeddings()
            steps.update()
            begin = 0
            targets = target_layers(self.layers, len(self.teacher.layers))
            for index, (source, target) in enumerate(zip(self.layers, targets, strict=True)):
                self._run_teacher(begin, source, target)
                self._layer(index, source, target)
                begin = target + 1
                steps.update()

    # Embeddings

    def _embeddings(self) -> None:
        teacher, student, stack = self.teacher, self.student, self.stack
        wide, narrow = (find(side.base, stack.projection) for side in (teacher, student))
        norm = find(student.base, stack.embedding_norm)
        is_gone = wide is not None and narrow is None
        if self.narrower:
            to_stream = self._through(wide) if is_gone else self.basis
            for path in stack.tables if narrow is None else (stack.projection,):
                self._project_table(find(teacher.base, path), find(student.base, path), to_stream)
        for batch, where in self.batches():
            state = teacher.runner.embed(batch)
            self._store(self.teacher_states, batch, where, state, teacher)
        if norm is not None and (is_gone or unfitted(norm)):
            fit = NormFit(norm)
            for batch, where in self.batches():
                total = student.runner.embed(batch, until=norm)
                fit.add(
                    total[student.tokens(batch, total)], self._target(self.teacher_states, where)
                )
            fit.write()
        for batch, where in self.batches():
            self._store(self.student_states, batch, where, student.runner.embed(batch), student)
        self._head_tables()
        self._relative_embeddings()

    def _through(self, projection: nn.Linear) -> Tensor:
        """Return the map from the teacher's narrower embeddings to the student's stream.

        A student whose stream is as wide as these has no projection of its own. A norm before it
        scales them, and takes away the mean over their units.
        """
        weight = self.basis @ projection.weight.float()
        norm = find(self.teacher.base, self.stack.embedding_norm)
        if norm is None or len(norm.weight) != weight.shape[1]:
            return weight
        weight = weight * norm.weight.float()
        return weight - weight.mean(1, keepdim=True)

    def _project_table(self, wide: Any, narrow: Any, basis: Tensor) -> None:
        """Project the rows of a table, or the outputs of a linear map or a convolution."""
        if wide is None:
            return
        if isinstance(wide, nn.Linear | nn.Conv2d):
            outputs = basis @ wide.weight.flatten(1).float()
            narrow.weight.copy_(outputs.view_as(narrow.weight))
            if wide.bias is not None:
                narrow.bias.copy_(basis @ wide.bias.float())
        else:
            source, target = (getattr(table, "weight", table) for table in (wide, narrow))
            scales = [getattr(table, "embed_scale", 1.0) for table in (wide, narrow)]
            target.copy_(scales[0] / scales[1] * source.float() @ basis.T)

    def _head_tables(self) -> None:
        for path in self.stack.head_tables:
            table = find(self.teacher.base, path).weight
            find(self.student.base, path).weight.copy_(table[:, self._groups(0, 0)[0]])

    def _relative_embeddings(self) -> None:
        wide = find(self.teacher.base, self.stack.relative_embeddings)
        if wide is None:
            return
        narrow = find(self.student.base, self.stack.relative_embeddings)
        rows, norm = wide.weight.float(), find(self.teacher.base, self.stack.relative_norm)
        states = rows if norm is None else norm(wide.weight).float()
        if self.narrower:
            self._project_table(wide, narrow, self.basis)
            if norm is not None:
                fit = NormFit(find(self.student.base, self.stack.relative_norm))
                fit.add(narrow.weight, states @ self.basis.T)
                fit.write()
        norm = find(self.student.base, self.stack.relative_norm)
        self._relative = states, (narrow.weight if norm is None else norm(narrow.weight)).float()

    # Layers

    def _run_teacher(self, begin: int, source: int, target: int) -> None:
        """Move the teacher's states on to after layer ``target``, noting the sums in it and source.

        The sums of all blocks are those of the layer ``source``, except for the last block's, which
        are those of ``target``.
        """
        blocks = self.stack.blocks
        for index in range(begin, target + 1):
            noted = [n for n in range(len(blocks)) if index == source or n == len(blocks) - 1]
            for batch, where in self.batches():
                if index == source:
                    self._source[where] = self.teacher_states[where]
                outputs: dict[int, Tensor] = {}
                hooks = {
                    find(self.teacher.layers[index], blocks[n].writer): (
                        lambda _, output, n=n, noted=outputs: noted.__setitem__(n, output)
                    )
                    for n in range(len(blocks))
                }
                feed = self.teacher.feed(batch, self.teacher_states[where])
                after = self.teacher.runner.run(batch, index, feed, hooks=hooks)
                mask = self.teacher.tokens(batch, after)
                stream = self.teacher_states[where].to(after.device)
                for n, block in enumerate(blocks):
                    total = stream + outputs[n][mask].float()
                    if n in noted and index in (source, target):
                        self._sums[n][where] = total.cpu()
                    stream = self.teacher.left_by(index, block, total)
                self.teacher_states[where] = after[mask].float().cpu()

    def _layer(self, index: int, source: int, target: int) -> None:
        self._stream.copy_(self.student_states)
        for number in range(len(self.stack.blocks)):
            last = number == len(self.stack.blocks) - 1
            self._readers(index, source, number)
            self._writer(index, source, number)
            self._leave(index, target if last else source, number)
        self.student_states.copy_(self._stream)

    def _readers(self, index: int, source: int, number: int) -> None:
        block = self.stack.blocks[number]
        norms = [
            side.norm(layer, block) if self.stack.pre_norm else None
            for side, layer in ((self.teacher, source), (self.student, index))
        ]
        guess = self._first_guess(norms)
        fit, fit_with_positions = Ridge(*guess), Ridge(*guess)
        for where in self.chunks():
            x = normalised(norms[1], self._stream[where])
            y = normalised(norms[0], self._input(source, number, where))
            fit.add(x, y)
            fit_with_positions.add(x, y) if self._relative else None
        if self._relative is not None and isinstance(block, Attention):
            wide, narrow = self._relative
            fit_with_positions.add(narrow, wide, weight=self.arrays.tokens / len(wide))
        for part, rows, positional in self._reader_rows(source, number):
            read = Map.at(self.teacher.layers[source], part)
            written = Map.at(self.student.layers[index], part)
            best = fit_with_positions if positional and self._relative else fit
            if isinstance(block, Attention) and block.crosses and part is not block.query:
                assert self._read_encoder is not None
                best = self._read_encoder
            solved = best.solve(intercept=read.bias is not None)
            written.write(*read.compose(rows, *solved))
        self._position_readers(index, source, block)

    def read_last(self) -> Ridge:
        """Fit the map from the student's last states to the teacher's, after the final norm."""
        norms = [self.teacher.final_norm, self.student.final_norm]
        fit = Ridge(*self._first_guess(norms))
        for where in self.chunks():
            fit.add(
                normalised(norms[1], self.student_states[where]),
                normalised(norms[0], self.teacher_states[where]),
            )
        return fit

    def _first_guess(self, norms: list[nn.Module | None]) -> tuple[Tensor, Tensor | None]:
        """Return the map from the student's to the teacher's input of readers, before any fit."""
        back = self.basis.T.double()
        wide, narrow = norms
        if wide is None or narrow is None or not self.narrower:
            return back, None
        narrow_any: Any = narrow
        wide_any: Any = wide
        narrow_any.weight.fill_(1.0)
        scale = math.sqrt(back.shape[0] / back.shape[1])
        weight = scale * wide_any.weight.double()[:, None].cpu() * back
        bias = getattr(wide_any, "bias", None)
        if bias is None:
            return weight, None
        bias = bias.double().cpu()
        # Readers may have no bias that could take it.
        shift = torch.linalg.pinv(weight, rtol=1e-5) @ bias
        narrow_any.bias.copy_(shift)
        return weight, bias - weight @ shift

    def _position_readers(self, index: int, source: int, block: Block) -> None:
        if self._relative is None or not isinstance(block, Attention):
            return
        wide, narrow = self._relative
        fit = Ridge(self.basis.T)
        fit.add(narrow, wide)
        for path in (block.position_key, block.position_query):
            if path is not None and find(self.teacher.layers[source], path) is not None:
                read = Map(find(self.teacher.layers[source], path))
                rows = self._unit_rows(source, self.stack.blocks.index(block))
                written = Map(find(self.student.layers[index], path))
                written.write(*read.compose(rows, *fit.solve()))

    def _writer(self, index: int, source: int, number: int) -> None:
        block = self.stack.blocks[number]
        units = self._units["heads" if isinstance(block, Attention) else "neurons"]
        read, written = self.teacher.writer(source, block), self.student.writer(index, block)
        kept = self._unit_rows(source, number)
        basis = self.basis.double()
        bias = None if read.bias is None else basis @ read.bias.double()
        fit = Ridge(basis @ read.weight.double()[:, kept], bias)
        module = find(self.student.layers[index], block.writer)
        for batch, where in self.batches():
            feed = self.student.feed(batch, self.student_states[where])
            inputs = self.student.runner.run(batch, index, feed, until=module)
            units[where] = inputs[self.student.tokens(batch, inputs)].float().cpu()
            target = self._target(self._sums[number], where)
            weight_of = inverse_squares(target) if self.stack.pre_norm else 1.0
            fit.add(units[where], target - self._stream[where], weight_of)
        weight, bias = fit.solve(intercept=written.bias is not None)
        written.write(weight, bias)
        for where in self.chunks():
            self._stream[where] += (units[where].double() @ weight.T + bias).float()

    def _leave(self, index: int, target: int, number: int) -> None:
        """Fit the norm after a block, and apply it to the stream."""
        block = self.stack.blocks[number]
        norm = None if self.stack.pre_norm else self.student.norm(index, block)
        if norm is None:
            return
        fit = NormFit(norm)
        for where in self.chunks():
            left = self.teacher.left_by(target, block, self._sums[number][where])
            fit.add(self._stream[where], left @ self.basis.T)
        fit.write()
        for where in self.chunks():
            self._stream[where] = self.student.left_by(index, block, self._stream[where])

    # Which units are kept

    def _groups(self, layer: int, number: int) -> tuple[Tensor, Tensor]:
        """Return the heads of queries, and of keys and values, that are kept, in order."""
        wide, narrow = self.teacher.sizes, self.student.sizes
        sums = self.statistics.units[layer][number]
        block = self.stack.blocks[number]
        if self.stack.head_tables and not (isinstance(block, Attention) and block.crosses):
            sums = torch.stack([units[number] for units in self.statistics.units]).sum(0)
        per_group = wide.heads // wide.groups
        kept = strongest(sums.view(wide.groups, per_group).sum(1), narrow.groups)
        queries = (kept[:, None] * per_group + torch.arange(per_group)).flatten()
        return queries, kept

    def _unit_rows(self, layer: int, number: int, *, shared: bool = False) -> Tensor:
        """Return the rows of a reader that are kept (and the columns of the writer)."""
        block = self.stack.blocks[number]
        if isinstance(block, FeedForward):
            squares = self.statistics.units[layer][number] / self.arrays.tokens
            columns = self.teacher.writer(layer, block).weight.double().norm(dim=0).cpu()
            return strongest(squares.sqrt() * columns, self.student.sizes.intermediate_size)
        size = self.teacher.sizes.head_size
        heads = self._groups(layer, number)[1 if shared else 0]
        return (heads[:, None] * size + torch.arange(size)).flatten()

    def _reader_rows(self, layer: int, number: int) -> Iterator[tuple[Part, Tensor, bool]]:
        """Yield the readers of a block, their kept rows, and whether they read positions."""
        block = self.stack.blocks[number]
        if isinstance(block, FeedForward):
            rows = self._unit_rows(layer, number)
            layer_module = self.teacher.layers[layer]
            there = [part for part in block.readers if find(layer_module, part.path) is not None]
            yield from ((part, rows, False) for part in there)
            return
        own = find(self.teacher.layers[layer], block.position_key) is not None
        own |= find(self.teacher.layers[layer], block.position_query) is not None
        shared = self._unit_rows(layer, number, shared=True)
        yield block.query, self._unit_rows(layer, number), not own
        yield block.key, shared, not own
        yield block.value, shared, False

    # States

    def _input(self, source: int, number: int, where: slice) -> Tensor:
        """Return the teacher's stream before a block of the layer ``source``."""
        if number == 0:
            return self._source[where]
        block = self.stack.blocks[number - 1]
        return self.teacher.left_by(source, block, self._sums[number - 1][where])

    def _target(self, states: Tensor, where: slice) -> Tensor:
        return states[where] @ self.basis.T

    def batches(self) -> Iterator[tuple[dict[str, Any], slice]]:
        encoder = self._encoder
        for number, (batch, where) in enumerate(
            zip(self.calibration, self.arrays.slices, strict=True)
        ):
            if encoder is not None:
                read = encoder.arrays.slices[number]
                batch[ENCODED] = {
                    side.model: side.encoded(batch, states[read])
                    for side, states in (
                        (encoder.teacher, encoder.teacher_states),
                        (encoder.student, encoder.student_states),
                    )
                }
            yield batch, where

    def chunks(self) -> Iterator[slice]:
        for begin in range(0, self.arrays.tokens, _CHUNK):
            yield slice(begin, min(begin + _CHUNK, self.arrays.tokens))

    def _store(
        self, array: Tensor, batch: dict[str, Any], where: slice, state: Tensor, side: Side
    ) -> None:
        array[where] = state[side.tokens(batch, state)].float().cpu()


def target_layers(layers: list[int], number: int) -> list[int]:
    """Return the teacher's layer whose output each layer of the student is to give."""
    return [*layers[:-1], number - 1]


def strongest(strength: Tensor, number: int) -> Tensor:
    """Return the indices of the largest values, in order; of equal ones the first."""
    return strength.sort(descending=True, stable=True).indices[:number].sort().values
