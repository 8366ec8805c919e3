"""What FSDP2 and DeepSpeed need beyond what ``Trainer`` does for them."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from torch import nn

from hf_distill.restoring import temporarily_set
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
    if all(parameter in optimizer.state for parameter in parameters):
        return
    gradients = [parameter.grad for parameter in parameters]
    with ExitStack() as stack:
        for group in optimizer.param_groups:  # a rate is a number, or a tensor
            stack.enter_context(temporarily_set(group, lr=group["lr"] * 0))
        try:
            for parameter in parameters:
                known = parameter in optimizer.state
                parameter.grad = None if known else torch.zeros_like(parameter)
            optimizer.step()
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
