"""Weights: found by path, copied where a layer is kept, seen as one linear map among several."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_distill.students.families import Part


def find(module: nn.Module, path: str | None) -> Any:
    """Return a submodule or parameter by its path; ``None`` where the model has none."""
    found: Any = module
    for name in () if path is None else path.split("."):
        found = getattr(found, name, None)
    return None if path is None else found


def matrix(module: nn.Module) -> Tensor:
    """Return the weight of a linear map as ``(outputs, inputs)``: a view."""
    weight: Any = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def empty_like(model: PreTrainedModel, config: Any) -> Any:
    """Return a model of another's class and optional parts, with weights to be overwritten.

    Its weights are tied where the other's are: a configuration may say that they are and have a
    checkpoint in which they are not (T5 1.1).

    Raises:
        ValueError: its class needs more than a configuration.
    """
    options: dict[str, Any] = {}
    takes = inspect.signature(type(model)).parameters
    needed = [
        name
        for name, parameter in list(takes.items())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ValueError(
            f"The model, a {type(model).__name__}, is made with {', '.join(needed)} besides its "
            "configuration: read these from the configuration in its class."
        )
    if "add_pooling_layer" in takes and getattr(model, "pooler", None) is None:
        options["add_pooling_layer"] = False
    made = type(model)(config, **options)
    for name, source in dict(made.all_tied_weights_keys).items():
        if model.get_parameter(name) is not model.get_parameter(source):
            place, _, entry = name.rpartition(".")
            setattr(
                made.get_submodule(place), entry, nn.Parameter(made.get_parameter(name).clone())
            )
            del made.all_tied_weights_keys[name]
    return made


class Map:
    """A linear map; a part of a fused matrix is like any other."""

    def __init__(self, module: Any, index: int = 0, of: int = 1) -> None:
        whole = matrix(module)
        size = len(whole) // of
        rows = slice(index * size, (index + 1) * size)
        self.weight: Tensor = whole.detach()[rows]
        """``(outputs, inputs)``: a view of the model's weight, to be written in place."""
        self.bias: Tensor | None = None if module.bias is None else module.bias.detach()[rows]

    @classmethod
    def at(cls, layer: nn.Module, part: Part) -> Map:
        """Return the map at its place in a layer."""
        return cls(find(layer, part.path), part.index, part.of)

    def write(self, weight: Tensor, bias: Tensor) -> None:
        """Replace the weight, and the bias where there is one."""
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.copy_(bias)

    def compose(self, rows: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return some rows of this map after another map, ``weight @ x + bias``, in float64."""
        own = self.weight.double()[rows]
        offset = own @ bias
        return own @ weight, offset if self.bias is None else offset + self.bias.double()[rows]


def copy_weights(
    teacher: PreTrainedModel, student: PreTrainedModel, layers: Mapping[str, list[int]]
) -> None:
    """Copy every weight that has the same shape in both models, and make all others NaN.

    Args:
        teacher: copied from.
        student: copied to.
        layers: the teacher's layer for each of the student's, by the place of the stack.
    """
    given = teacher.state_dict()
    for name, value in student.state_dict().items():
        source = _source(teacher, name, layers)
        if source in given and given[source].shape == value.shape:
            value.copy_(given[source])
        elif value.is_floating_point():
            value.fill_(torch.nan)


def match_precision(
    teacher: PreTrainedModel, student: PreTrainedModel, layers: Mapping[str, list[int]]
) -> None:
    """Give every weight and buffer the type of the teacher's.

    A model in half precision may keep some in float32 (T5's output maps), and the angles of rotary
    positions are never in less.
    """
    of_teacher = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
    own = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    for name, value in own.items():
        given = of_teacher.get(_source(teacher, name, layers))
        if given is not None:
            value.data = value.data.to(given.dtype)


def _source(teacher: PreTrainedModel, name: str, layers: Mapping[str, list[int]]) -> str:
    """Return the teacher's name of what the student has under a name."""
    base = "" if teacher.base_model is teacher else f"{teacher.base_model_prefix}."
    for path, kept in layers.items():
        prefix = f"{base}{path}."
        if name.startswith(prefix):
            index, _, rest = name[len(prefix) :].partition(".")
            return f"{prefix}{kept[int(index)]}.{rest}"
    return name


def unfitted(student: nn.Module) -> list[str]:
    """Return the names of weights that are not finite: nothing was written to them."""
    return [name for name, value in student.named_parameters() if not torch.isfinite(value).all()]
