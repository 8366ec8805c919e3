"""Fit what comes after the last layer: poolers, classifiers, and the heads of language models.

Each linear map there reads either the last hidden states, or the units of the map before it. It
becomes the teacher's map after the map that comes nearest to the teacher's input of it, like the
readers of a layer. Where a map's own outputs become fewer (a pooler), the strongest units are kept.

A head that decodes with the embedding table cannot choose units: its output must be in the table's
coordinates. The transform before the table then becomes linear: its units are shifted to where the
activation is the identity, and the LayerNorm takes the shift away again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_distill.students.fitting import StackFit, strongest
from hf_distill.students.regression import NormFit, Ridge
from hf_distill.students.running import Hook, Side, normalised
from hf_distill.students.weights import Map, matrix

_LINEAR = (nn.Linear, Conv1D)
_SHIFT = 12.0
"""Standard deviations from zero at which GELU, SiLU and ReLU are the identity."""


class _Step(NamedTuple):
    """A linear map or norm after the last layer."""

    name: str
    dims: int
    """Of its input: 2 for pooled rows, 3 for tokens."""


class _Kept(NamedTuple):
    """Units of a map whose outputs became fewer, until another map reads them."""

    units: Tensor
    dims: int


class HeadFit:
    """Fits the modules after the last layer, in the order in which the teacher runs them."""

    def __init__(self, stack: StackFit) -> None:
        self._stack = stack
        self._teacher, self._student = stack.teacher, stack.student
        self._table: Tensor | None = None
        embeddings = self._student.model.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding):
            self._table = embeddings.weight
        self._norms: list[Any] = [side.final_norm for side in self._sides]
        self._kept: _Kept | None = None

    def fit(self) -> None:
        """Fit every module that changes its shape."""
        self._read = self._stack.read_last().solve()
        steps = self._steps()
        if all(self._modules(step.name)[0] is self._norms[0] for step in steps):
            self._last_states()
        for number, step in enumerate(steps):
            wide, narrow = self._modules(step.name)
            if wide is self._norms[0] or not _changes(wide, narrow):
                continue
            if isinstance(wide, nn.LayerNorm):
                if not self._is_transform(steps[number - 1 :]):
                    self._norm(step)
            elif getattr(narrow, "weight", None) is self._table:
                self._decoder(step, transformed=number > 1 and self._is_transform(
                    steps[number - 2 :]))  # fmt: skip
            elif self._is_transform(steps[number:]):
                self._transform(step, steps[number + 1])
            else:
                self._linear(step, steps[number + 1 :])

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self._teacher, self._student

    def _modules(self, name: str) -> tuple[Any, Any]:
        wide, narrow = (side.model.get_submodule(name) for side in self._sides)
        return wide, narrow

    def _last_states(self) -> None:
        """Fit the final norm of a model without a head, whose outputs are hidden states."""
        stack, (wide, narrow) = self._stack, self._norms
        if narrow is None or not stack.narrower:
            return
        fit = NormFit(narrow)
        for where in stack.chunks():
            states = normalised(wide, stack.teacher_states[where])
            fit.add(stack.student_states[where], states @ stack.basis.T)
        fit.write()

    def _steps(self) -> list[_Step]:
        """Return the linear maps and norms after the last layer, in the order of the forward."""
        steps: list[_Step] = []
        inside = {id(module) for module in self._teacher.layers.modules()}
        hooks: dict[nn.Module, Hook] = {
            module: lambda x, _, name=name: steps.append(_Step(name, x.dim()))  # type: ignore[misc]
            for name, module in self._teacher.model.named_modules()
            if id(module) not in inside and isinstance(module, (*_LINEAR, nn.LayerNorm))
        }
        batch, where = next(self._stack.batches())
        feed = self._teacher.feed(batch, self._stack.teacher_states[where])

        def begin(like: Tensor) -> Tensor:
            steps.clear()  # what was run before the last layer
            return feed(like)

        outputs = self._teacher.runner.after(batch, begin, hooks=hooks, others_are_nan=True)
        values = [value for value in outputs.values() if isinstance(value, Tensor)]
        if any(torch.isnan(value).any() for value in values):
            raise ValueError(
                f"The teacher, a {type(self._teacher.model).__name__}, has a head that reads other "
                "hidden states than the last, which create_student cannot fit: leave out the sizes "
                "and initialization, and choose layers alone."
            )
        return steps

    def _is_transform(self, steps: list[_Step]) -> bool:
        """Return whether a linear map and a norm come before a decoding with the table."""
        wide = [self._modules(step.name)[0] for step in steps[:3]]
        if len(wide) < 2 or not isinstance(wide[0], _LINEAR):
            return False
        if not isinstance(wide[1], nn.LayerNorm):
            return False
        own = self._teacher.model.get_input_embeddings()
        return len(wide) < 3 or wide[2].weight is getattr(own, "weight", None)

    def _linear(self, step: _Step, later: list[_Step]) -> None:
        wide, narrow = self._modules(step.name)
        read, written = Map(wide), Map(narrow)
        weight, bias = self._fit_input(step)
        outputs = len(read.weight)
        rows = torch.arange(outputs)
        if len(written.weight) < outputs:
            rows = self._strongest_units(step, later, len(written.weight))
            self._kept = _Kept(rows, step.dims)
        written.write(*read.compose(rows, weight, bias))

    def _guess(self, step: _Step) -> tuple[Tensor, Tensor | None]:
        """Return the map from the student's input to the teacher's, before this module's own fit.

        Units that were kept are themselves; all others are 0.
        """
        if self._kept is None or self._kept.dims != step.dims:
            return self._read
        size = matrix(self._modules(step.name)[0]).shape[1]
        guess = torch.zeros(size, len(self._kept.units), dtype=torch.float64)
        guess[self._kept.units, torch.arange(len(self._kept.units))] = 1.0
        self._kept = None
        return guess, None

    def _fit_input(self, step: _Step) -> tuple[Tensor, Tensor]:
        """Fit the map from the student's input of a module to the teacher's."""
        guess, bias = self._guess(step)
        widths = tuple(matrix(module).shape[1] for module in self._modules(step.name))
        if guess.shape != widths:
            raise ValueError(
                f"The teacher, a {type(self._teacher.model).__name__}, has a part that "
                f"create_student cannot make narrower: {step.name} reads {widths[0]} values, which "
                "are not the hidden states or the units of one map. Keep hidden_size, or take a "
                "teacher without it."
            )
        has_bias = self._modules(step.name)[1].bias is not None
        fit = Ridge(guess, bias if has_bias else None)
        self._each(step.name, lambda wide, narrow: fit.add(narrow, wide))
        return fit.solve(intercept=has_bias)

    def _strongest_units(self, step: _Step, later: list[_Step], number: int) -> Tensor:
        """Return the outputs of a map that do most: by size, times the weights that read them."""
        size = len(matrix(self._modules(step.name)[0]))
        readers = [
            other
            for other in later
            if other.dims == step.dims
            and isinstance(module := self._modules(other.name)[0], _LINEAR)
            and matrix(module).shape[1] == size
        ]
        name = readers[0].name if readers else step.name
        squares: list[Tensor] = []
        hook = (
            (lambda x, _: squares.append(_rows(x).square().sum(0)))
            if readers
            else (lambda _, y: squares.append(_rows(y).square().sum(0)))
        )
        module = self._modules(name)[0]
        for batch, where in self._stack.batches():
            feed = self._teacher.feed(batch, self._stack.teacher_states[where])
            self._teacher.runner.after(batch, feed, hooks={module: hook})
        strength = torch.stack(squares).sum(0).sqrt().cpu()
        if readers:
            strength = strength * matrix(module).detach().double().norm(dim=0).cpu()
        return strongest(strength, number)

    def _norm(self, step: _Step) -> None:
        """Fit a norm to the teacher's, of the units that were kept."""
        wide, narrow = self._modules(step.name)
        fit, kept = NormFit(narrow), self._kept
        columns = torch.arange(narrow.weight.shape[0]) if kept is None else kept.units
        self._each(step.name, lambda x, y: fit.add(y, normalised(wide, x)[:, columns]))
        fit.write()

    # Heads that decode with the embedding table

    def _to_table(self) -> Tensor:
        """Return the map from what the teacher decodes to what decodes nearest to it here.

        Least squares of the logits, without what is equal for all tokens.
        """
        assert self._table is not None
        embeddings: Any = self._teacher.model.get_input_embeddings()
        wide = embeddings.weight.detach().double()
        narrow = self._table.detach().double()
        wide, narrow = wide - wide.mean(0), narrow - narrow.mean(0)
        gram = narrow.T @ narrow
        gram.diagonal().add_(1e-6 * gram.diagonal().mean())
        return torch.linalg.solve(gram, narrow.T @ wide).cpu()

    def _transform(self, step: _Step, norm_step: _Step) -> None:
        wide_norm, narrow_norm = self._modules(norm_step.name)
        narrow = self._modules(step.name)[1]
        to_table = self._to_table()
        weight, bias = self._read
        fit = Ridge(torch.zeros(wide_norm.weight.shape[0], weight.shape[1]))
        inputs: list[Any] = []
        for batch, where in self._stack.batches():
            feed = self._teacher.feed(batch, self._stack.teacher_states[where])
            inputs.clear()
            self._teacher.runner.after(
                batch, feed, hooks={wide_norm: lambda _, y: inputs.append(y)}
            )
            decoded = inputs[0][self._teacher.tokens(batch, inputs[0])]
            states = normalised(self._norms[1], self._stack.student_states[where])
            fit.add(states, decoded.float().cpu())
        weight, bias = fit.solve(intercept=narrow.bias is not None)
        weight, bias = to_table @ weight, to_table @ bias
        total, squares, count = 0.0, 0.0, 0
        for where in self._stack.chunks():
            states = normalised(self._norms[1], self._stack.student_states[where]).double()
            outputs = states @ weight.T + bias
            total, squares = total + float(outputs.sum()), squares + float(outputs.square().sum())
            count += outputs.numel()
        scale = (squares / count) ** -0.5
        if narrow.bias is None:
            weight = weight + _SHIFT / scale * self._constant()
        Map(narrow).write(scale * weight, scale * bias + _SHIFT)
        norm = NormFit(narrow_norm)
        self._each(
            norm_step.name, lambda x, y: norm.add(y, normalised(wide_norm, x) @ to_table.T.float())
        )
        norm.write()

    def _constant(self) -> Tensor:
        """Return the map from the student's last state that comes nearest to 1, ``(1, width)``."""
        fit = Ridge(torch.zeros(1, len(self._stack.basis)))
        for where in self._stack.chunks():
            states = normalised(self._norms[1], self._stack.student_states[where])
            fit.add(states, torch.ones(len(states), 1))
        return fit.solve(intercept=False)[0]

    def _decoder(self, step: _Step, *, transformed: bool) -> None:
        """Fit the final norm to the table, unless a transform was; then the bias."""
        wide, narrow = self._modules(step.name)
        if not transformed:
            self._last_norm(self._to_table() * self._scale(step))
        biases = [_bias(side.model, side.model.get_submodule(step.name)) for side in self._sides]
        if biases[0] is None or biases[1] is None:
            return
        inputs: list[Tensor] = []
        self._each(step.name, lambda x, y: inputs.append(_sums(x, y)))
        *sums, tokens = (
            torch.stack(inputs).sum(0).split([wide.weight.shape[1], narrow.weight.shape[1], 1])
        )
        wide_mean, narrow_mean = (one / tokens for one in sums)
        biases[1].copy_(
            biases[0].double()
            + wide.weight.double() @ wide_mean
            - narrow.weight.double() @ narrow_mean
        )

    def _last_norm(self, to_table: Tensor) -> None:
        """Fit the last norm, whose output is decoded; where norms come after the sum, its scale."""
        stack, norm = self._stack, self._norms[1]
        last = self._student.norm(len(self._student.layers) - 1, stack.stack.blocks[-1])
        scale = None if norm is not None else _Scale(len(to_table))
        if scale is not None and last is None:
            return
        fit = NormFit(norm or scale)
        for where in stack.chunks():
            states = normalised(self._norms[0], stack.teacher_states[where])
            fit.add(stack.student_states[where], states.double() @ to_table.T)
        fit.write()
        if scale is None:
            return
        written: Any = last
        written.weight.mul_(scale.weight)
        written.bias.copy_(scale(written.bias))
        for where in stack.chunks():
            stack.student_states[where] = scale(stack.student_states[where])

    def _scale(self, step: _Step) -> float:
        """Return the teacher's over the student's factor of what is decoded (T5 has one)."""
        batch, where = next(self._stack.batches())
        factors = []
        for side, states in self._states():
            module = side.model.get_submodule(step.name)
            inputs = side.runner.after(batch, side.feed(batch, states[where]), until=module)
            decoded = inputs[side.tokens(batch, inputs)].double().cpu()
            last = normalised(side.final_norm, states[where]).double()
            factors.append(float((decoded * last).sum() / last.square().sum()))
        return factors[0] / factors[1]

    def _states(self) -> tuple[tuple[Side, Tensor], tuple[Side, Tensor]]:
        return (
            (self._teacher, self._stack.teacher_states),
            (self._student, self._stack.student_states),
        )

    def _each(self, name: str, use: Callable[[Tensor, Tensor], None]) -> None:
        """Call ``use`` with the inputs of a module in teacher and student, batch by batch."""
        for batch, where in self._stack.batches():
            rows = []
            for side, states in self._states():
                module = side.model.get_submodule(name)
                inputs = side.runner.after(batch, side.feed(batch, states[where]), until=module)
                if inputs.dim() == 3:
                    mask = side.tokens(batch, inputs)
                    inputs = inputs[mask] if mask.shape == inputs.shape[:2] else inputs
                rows.append(_rows(inputs).float().cpu())
            use(*rows)


class _Scale(nn.Module):
    """A scale and a shift for each unit."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight, self.bias = torch.ones(units), torch.zeros(units)

    def forward(self, states: Tensor) -> Tensor:
        return states * self.weight + self.bias


def _bias(model: Any, decoder: Any) -> Any:
    """Return what is added to the decoded logits, where something is."""
    if decoder.bias is not None:
        return decoder.bias
    bias = getattr(model, "final_logits_bias", None)
    return None if bias is None else bias[0]


def _changes(wide: nn.Module, narrow: nn.Module) -> bool:
    shapes = [[p.shape for p in module.parameters()] for module in (wide, narrow)]
    return shapes[0] != shapes[1]


def _sums(*inputs: Tensor) -> Tensor:
    """Return the sums over rows of each, and then the number of rows."""
    number = torch.tensor([len(inputs[0])], dtype=torch.float64)
    return torch.cat([*(one.double().sum(0) for one in inputs), number])


def _rows(values: Tensor) -> Tensor:
    return values.detach().flatten(0, -2).double()
