"""Projections: from the width of the student's hidden states to that of the teacher's.

They are trained with the student and are a part of it while it trains, so that ``Trainer`` zeroes
and clips their gradients, the optimizer gives them their weight decay, and DDP, FSDP and DeepSpeed
reduce them. Outside training the student is without them, and they are never among its weights on
disk: each checkpoint has them in a file of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_distill.files import write_atomically
from hf_distill.layers.mapping import LayerPair, LayerPairs, as_lists
from hf_distill.least_squares import LeastSquares
from hf_distill.restoring import temporarily_set

PROJECTIONS_FILE = "distillation_projections.safetensors"
EMBEDDINGS, HIDDEN_STATES = "embeddings", "hidden_states"
_ATTRIBUTE = "distillation_projections"
_RIDGE = 1e-3


class Projections(nn.Module):
    r"""Linear maps, with bias, of the student's hidden states to the teacher's width.

    :math:`W_e` for the embedding output and :math:`W_h` for the outputs of all other layers, as in
    TinyBERT (Jiao et al. 2020, section 3.1, equations 8 and 9).

    Args:
        student_width: of the student's hidden states.
        teacher_width: of the teacher's.
        seed: the weights are drawn with it, and no other random number changes; ``fit`` replaces
            them where there is data to look at.
        device: where the student is.
    """

    def __init__(
        self, student_width: int, teacher_width: int, *, seed: int, device: torch.device
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.maps = nn.ModuleDict(
                {
                    name: nn.Linear(student_width, teacher_width)
                    for name in (EMBEDDINGS, HIDDEN_STATES)
                }
            )
        self.to(device)

    def forward(self, hidden_states: Tensor, layer: int) -> Tensor:
        """Project ``(batch, length, student_width)`` of a student's layer to the teacher's."""
        project: Any = self.maps[_map_of(layer)]
        projected: Tensor = project(hidden_states.to(project.weight.dtype))
        return projected

    def fit(self, states: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        """Begin with the least-squares solution, which is nearest to the teacher.

        A map without any token stays as it is.

        Args:
            states: the student's layer, ``(tokens, student_width)`` of it and ``(tokens,
                teacher_width)`` of the teacher's layer that it learns from.

        Raises:
            ValueError: they contain NaN or infinite values.
        """
        sums = {name: LeastSquares() for name in self.maps}
        for layer, ours, theirs in states:
            sums[_map_of(layer)].add(ours, theirs)
        with torch.no_grad():
            for name, of_map in sums.items():
                if of_map.rows:
                    linear: Any = self.maps[name]
                    weight, bias = of_map.solve(_RIDGE)
                    _copy(linear.weight, weight.to(linear.weight.dtype))
                    _copy(linear.bias, bias.to(linear.bias.dtype))


def _map_of(layer: int) -> str:
    return EMBEDDINGS if layer == 0 else HIDDEN_STATES


@contextmanager
def attached(student: nn.Module, projections: nn.Module | None) -> Iterator[None]:
    """Make the projections a part of the student inside, and of no file that is saved from it."""
    if projections is None or hasattr(student, _ATTRIBUTE):
        yield
        return
    setattr(student, _ATTRIBUTE, projections)
    ignored = set(getattr(student, "_keys_to_ignore_on_save", None) or ())
    ignored |= {f"{_ATTRIBUTE}.{name}" for name in projections.state_dict()}
    try:
        with temporarily_set(student, _keys_to_ignore_on_save=ignored):
            yield
    finally:
        delattr(student, _ATTRIBUTE)


def join_optimizer(
    projections: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any
) -> None:
    """Add projections that an optimizer lacks, as a group with its default options.

    Raises:
        ValueError: the scheduler is another one, which cannot be extended.
    """
    missing = _left_out(projections, optimizer)
    if not missing:
        return
    if scheduler is None:
        optimizer.add_param_group({"params": missing})
        return
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ValueError(
            f"optimizers has a {type(scheduler).__name__}, which cannot be extended to the "
            "projections of hidden states that the optimizer must train in addition. Pass "
            "optimizers=(optimizer, None) and choose lr_scheduler_type, or use a LambdaLR."
        )
    optimizer.add_param_group({"params": missing})
    group = optimizer.param_groups[-1]
    group["initial_lr"] = group["lr"]
    scheduler.base_lrs.append(group["lr"])
    scheduler.lr_lambdas.append(scheduler.lr_lambdas[-1])
    group["lr"] = group["lr"] * scheduler.lr_lambdas[-1](scheduler.last_epoch)


def check_optimizer(projections: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that leaves the projections as they were drawn.

    Raises:
        ValueError: it does.
    """
    if _left_out(projections, optimizer):
        raise ValueError(
            f"The optimizer does not train {_ATTRIBUTE}, the projections of the student's hidden "
            "states: create_optimizer was replaced by one that chooses parameters by name. Add "
            f"those of model.{_ATTRIBUTE}, which is part of the model while it trains."
        )


def _left_out(projections: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [p for p in projections.parameters() if id(p) not in trained]


@contextmanager
def detached(student: nn.Module) -> Iterator[None]:
    """Take the projections out of the student inside, while its weights are saved or loaded.

    transformers leaves them out by itself only where it saves a ``PreTrainedModel``.
    """
    projections = student._modules.pop(_ATTRIBUTE, None)
    try:
        yield
    finally:
        if projections is not None:
            setattr(student, _ATTRIBUTE, projections)


def without_projections(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a student without those of its projections."""
    return {name: value for name, value in weights.items() if _ATTRIBUTE not in name.split(".")}


def save_projections(
    folder: str | os.PathLike[str],
    projections: nn.Module | None,
    pairs: LayerPairs,
    *,
    write: bool,
) -> None:
    """Write projections and layer pairs next to a checkpoint.

    All processes must call it, since sharded weights are put together; ``write`` is for one.
    """
    weights = {} if projections is None else projections.state_dict()
    full = {name: _whole(tensor).contiguous() for name, tensor in weights.items()}
    if not write:
        return
    path = Path(folder) / PROJECTIONS_FILE
    # One entry: safetensors writes several in an order that is drawn by each process.
    metadata = {"layer_pairs": json.dumps(as_lists(pairs))}
    write_atomically(path, lambda unfinished: save_file(full, unfinished, metadata=metadata))


def load_projections(folder: str | os.PathLike[str], projections: nn.Module | None) -> LayerPairs:
    """Read what ``save_projections`` wrote into ``projections``.

    Returns:
        The layer pairs of the run.

    Raises:
        ValueError: the file is missing, damaged, or of other widths.
    """
    path = Path(folder) / PROJECTIONS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            pairs = json.loads((file.metadata() or {})["layer_pairs"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(
            f"The checkpoint {folder} has no {PROJECTIONS_FILE}: it is not of a run with "
            "intermediate-layer distillation, or the file was lost. Resume from another checkpoint."
        ) from error
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}). Resume from another checkpoint.") from error
    wanted = {} if projections is None else projections.state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
        raise ValueError(
            f"{path} has projections of other widths than these models: "
            f"{_shapes(weights)} instead of {_shapes(wanted)}. Resume with the teacher and the "
            "student of that run."
        )
    if projections is not None:
        with torch.no_grad():
            for name, parameter in projections.named_parameters():
                _copy(parameter, weights[name])
    if isinstance(pairs, dict):
        return {stack: [LayerPair(*pair) for pair in found] for stack, found in pairs.items()}
    return [LayerPair(*pair) for pair in pairs]


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 may have sharded, on the CPU."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return (tensor if full_tensor is None else full_tensor()).detach().cpu()


def _copy(parameter: Tensor, value: Tensor) -> None:
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = parameter
        value = value.to(parameter.device)
        parameter.copy_(distribute_tensor(value, sharded.device_mesh, sharded.placements))
    else:
        parameter.copy_(value)


def _shapes(weights: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in weights.items()) or "none"
