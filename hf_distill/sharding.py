"""What FSDP2 and DeepSpeed need beyond what ``Trainer`` does for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from torch import nn

from hf_distill.teachers import block_classes


def name_fsdp_blocks(accelerator: Accelerator, student: nn.Module) -> None:
    """Let FSDP wrap the blocks of the student, unless the configuration names others."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = block_classes(student)


def forget_deepspeed_configuration() -> None:
    """Let another trainer follow under DeepSpeed: two stages are two trainers.

    accelerate refuses a second configuration in one process and has no public way to drop the
    first; ``Trainer.hyperparameter_search`` resets its state in the same way.
    """
    if AcceleratorState._shared_state.get("distributed_type") == DistributedType.DEEPSPEED:
        AcceleratorState._reset_state()


def gather_weights_on_save(accelerator: Accelerator) -> None:
    """Let ZeRO-3 save the whole student, unless its configuration says otherwise."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        zero = plugin.deepspeed_config["zero_optimization"]
        zero.setdefault("stage3_gather_16bit_weights_on_model_save", True)


def saves_shards(accelerator: Accelerator) -> bool:
    """Return whether FSDP saves each process's shard instead of a model."""
    return "FULL" not in str(accelerator.state.fsdp_plugin.state_dict_type)


def complete_state(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer its state for parameters that have had no gradient yet, such as a head's.

    FSDP resumes only with a state for every parameter. The parameters stay as they are.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    untouched = [p for p in parameters if p not in optimizer.state]
    if not untouched:
        return
    with _without_gradients_and_learning_rates(optimizer, parameters):
        for parameter in untouched:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


@contextmanager
def _without_gradients_and_learning_rates(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> Iterator[None]:
    gradients = [parameter.grad for parameter in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for parameter in parameters:
            parameter.grad = None
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0  # a number, or a tensor
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
