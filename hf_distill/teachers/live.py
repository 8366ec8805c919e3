"""A teacher that runs beside the student, one forward pass a batch."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_distill.heads import TaskHead, unwrapped
from hf_distill.loading import UnusableSourceError, load_model
from hf_distill.teachers.base import Teacher


def load_teacher(
    source: nn.Module | str | os.PathLike[str],
    head: TaskHead,
    *,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    device: torch.device | None = None,
    fine_tuned: bool = True,
) -> nn.Module:
    """The fine-tuned teacher: a module as it is, or one loaded by Hub id or directory.

    Args:
        source: module, Hub id or local directory.
        head: the student's head; it says which ``AutoModelFor…`` class loads the teacher.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. By default as it was saved, and
            a module as it is; but float32 where it was saved in float16 and runs on a CPU, which
            is slow in float16 and cannot mix it with bfloat16 autocast.
        attn_implementation: as in ``from_pretrained``; the model's own choice by default.
        device: where it will run.
        fine_tuned: refuse one whose head was never trained.

    Raises:
        ValueError: if it cannot be found, has another task, or its head has no trained weights.
    """
    if isinstance(source, nn.Module):
        module: Any = source
        while isinstance(module, nn.DataParallel | DistributedDataParallel):
            module = module.module  # it is placed where the student is
        if dtype not in (None, "auto"):
            module = module.to(getattr(torch, str(dtype)))
        if attn_implementation is not None:
            module.set_attn_implementation(attn_implementation)
        return module
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    name = os.fspath(source)
    try:
        model, new = load_model(head.auto_model, name, **options)
    except UnusableSourceError as error:
        raise type(error)(f"teacher_model={name!r} cannot be loaded: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: no or an unknown configuration
        raise ValueError(
            f"teacher_model={name!r} cannot be loaded: it is neither a local model directory nor "
            f"a Hub model that you can access. ({_first_line(error)})"
        ) from error
    if new and fine_tuned:
        raise ValueError(
            f"teacher_model={name!r} is not fine-tuned for {head.task}: its weights lack "
            f"{', '.join(new)}, which would be random. Fine-tune it first "
            "(`hf-distill train --baseline` does), or choose another teacher."
        )
    on_cpu = device is not None and device.type == "cpu"
    quantised = getattr(model, "is_quantized", False)
    convert = dtype is None and on_cpu and model.dtype == torch.float16 and not quantised
    return model.float() if convert else model


_PACKED_ROWS = {
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "max_length_k",
    "max_length_q",
    "position_ids",
    "seq_idx",
}
"""How rows are packed (``DataCollatorWithFlattening``), which models take through ``**kwargs``."""

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LiveTeacher(Teacher):
    """A frozen model in evaluation mode, outside optimizer, checkpoint and DDP.

    It is placed where the student trains when it is first called: on its device; sharded like the
    student under FSDP2 and DeepSpeed. Quantised models and those with a ``device_map`` stay where
    they are.

    Args:
        model: the fine-tuned teacher. Its parameters are frozen in place.
        head: the task.
    """

    def __init__(self, model: nn.Module, head: TaskHead) -> None:
        self.model = model.eval().requires_grad_(False)
        self._modules = tuple(model.modules())  # to walk through them takes longer than to look
        self.input_names = input_names(model)
        if self.input_names <= _PACKED_ROWS:
            raise ValueError(
                f"teacher_model is a {type(model).__name__} whose forward names none of its "
                "inputs, so what to give it cannot be known; name them there (input_ids, "
                "attention_mask, …), or let it hold only the model that it wraps."
            )
        self._head = head
        self._placed_for: Accelerator | None = None
        self._placed: nn.Module = model

    def __call__(
        self,
        batch: Mapping[str, Any],
        accelerator: Accelerator,
        further_inputs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Mapping[str, Tensor]:
        """Return the outputs for a batch, in the student's precision."""
        if self._placed_for is not accelerator:
            self._placed = _place(self.model, accelerator)
            self._placed_for = accelerator
        if any(module.training for module in self._modules):
            self._placed.eval()  # a callback may have called train()
        inputs = inputs_for(self.model, self.input_names, self._head, batch)
        # Not inference_mode: an objective may save the teacher's tensors for its backward pass.
        with torch.no_grad(), self._precision(accelerator):
            return self._placed(**inputs, **further_inputs)

    def _precision(self, accelerator: Accelerator) -> AbstractContextManager[Any]:
        """The student's autocast; not for half-precision weights of the other kind."""
        autocast = _HALF.get(accelerator.mixed_precision)
        weights = _dtype(self.model)
        if weights in _HALF.values() and autocast not in (None, weights):
            return nullcontext()
        return accelerator.autocast()


def input_names(model: nn.Module) -> frozenset[str]:
    """Return what a teacher's forward takes, without labels: the teacher computes no loss."""
    parameters = inspect.signature(unwrapped(model).forward).parameters.values()
    names = {
        p.name
        for p in parameters
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and "label" not in p.name
        and p.name not in ("start_positions", "end_positions")
    }
    takes_more = any(p.kind == p.VAR_KEYWORD for p in parameters)
    return frozenset(names | _PACKED_ROWS if takes_more else names)


def inputs_for(
    model: nn.Module, names: frozenset[str], head: TaskHead, batch: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the part of a batch that a teacher takes, and what its task adds.

    Images, sounds and other floating-point inputs are cast to the teacher's number format.
    """
    inputs = {name: value for name, value in batch.items() if name in names}
    dtype = _dtype(model)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            inputs[name] = value.to(dtype)
    if "use_cache" in names:
        inputs.setdefault("use_cache", False)  # nothing is generated, and it fills the memory
    return inputs | head.target_inputs(batch, unwrapped(model))


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the number format of a model's weights, apart from those that are quantised."""
    formats = (torch.float32, *_HALF.values())
    return next((p.dtype for p in model.parameters() if p.dtype in formats), torch.float32)


def _place(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
        return model
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return _deepspeed_engine(model, accelerator)
    model = model.to(accelerator.device)
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.is_fsdp2:
        return _shard(model, accelerator)
    return model


def block_classes(model: nn.Module) -> list[str]:
    """The names of the classes of a model's blocks, for FSDP2: each block is a shard of its own.

    What transformers calls unsplittable, or makes checkpoints of, without the module around the
    input embeddings: accelerate shards these by themselves, and fails if something around them is
    sharded already.
    """
    embeddings = None
    with suppress(NotImplementedError):
        embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    layers = {
        type(m).__name__ for m in model.modules() if isinstance(m, GradientCheckpointingLayer)
    }
    names = getattr(model, "_no_split_modules", None) or layers
    around: set[str] = set()
    others: set[str] = set()
    for module in model.modules():
        holds = module is not embeddings and any(part is embeddings for part in module.modules())
        (around if holds else others).add(type(module).__name__)
    return sorted(name for name in names if name in others - around)


def _shard(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    # The blocks that the configuration names are the student's.
    plugin = accelerator.state.fsdp_plugin
    of_student = plugin.transformer_cls_names_to_wrap
    plugin.transformer_cls_names_to_wrap = block_classes(model)
    try:
        # Not accelerator.prepare_model: it would record the teacher as a model of the run, and
        # `evaluate` before `train` would then leave the student unprepared.
        return fsdp2_prepare_model(accelerator, model).eval()
    finally:
        plugin.transformer_cls_names_to_wrap = of_student


def _deepspeed_engine(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The teacher sharded by ZeRO-3 where the student is; otherwise one copy a process."""
    import deepspeed

    config = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    stage = config.get("zero_optimization", {}).get("stage", 0)
    config["zero_optimization"] = {"stage": 3 if stage == 3 else 0}
    for training_only in ("optimizer", "scheduler"):
        config.pop(training_only, None)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # returns nothing, unlike a module's
    return engine


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
