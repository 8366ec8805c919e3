"""What FSDP2 and DeepSpeed need beyond what ``Trainer`` does for them."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState
from transformers import Trainer

from hf_distill.teachers import block_classes


class ShardingTrainer(Trainer):
    """A ``Trainer`` whose sharded runs save a whole student, resume, and may come in a row."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled and self._fsdp_plugin.transformer_cls_names_to_wrap is None:
            student: Any = self.model
            self._fsdp_plugin.transformer_cls_names_to_wrap = block_classes(student)

    @property
    def _fsdp_plugin(self) -> Any:
        return self.accelerator.state.fsdp_plugin

    def create_accelerator_and_postprocess(self) -> None:
        """As ``Trainer``'s, also after another trainer under DeepSpeed: two stages are two.

        ZeRO-3 is to save the whole student, unless its configuration says otherwise.
        """
        if AcceleratorState._shared_state.get("distributed_type") == DistributedType.DEEPSPEED:
            AcceleratorState._reset_state()  # accelerate would refuse a second configuration
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None and plugin.zero_stage == 3:
            zero = plugin.deepspeed_config["zero_optimization"]
            zero.setdefault("stage3_gather_16bit_weights_on_model_save", True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As ``Trainer``'s, which writes no student under FSDP with SHARDED_STATE_DICT."""
        if self.is_fsdp_enabled and "FULL" not in str(self._fsdp_plugin.state_dict_type):
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            optimizer: Any = self.optimizer
            complete_state(getattr(optimizer, "optimizer", optimizer))
        super()._save_optimizer_and_scheduler(output_dir)


def complete_state(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer its state for parameters that have had no gradient yet, such as a head's.

    FSDP resumes only with a state for every parameter. The parameters stay as they are.
    """
    untouched = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter not in optimizer.state
    ]
    if not untouched:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    gradients = {
        parameter: parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    try:
        for parameter in gradients:
            parameter.grad = None
        for parameter in untouched:
            parameter.grad = torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0  # a number, or a tensor
        optimizer.step()
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
