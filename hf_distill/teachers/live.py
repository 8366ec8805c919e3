"""A teacher that runs next to the student, one forward pass per batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_distill.compatibility.inputs import PACKED_ROWS, input_names, inputs_for
from hf_distill.compatibility.precision import weight_dtype
from hf_distill.compatibility.vocabulary_map import VocabularyMap
from hf_distill.heads import TaskHead
from hf_distill.restoring import temporarily_set
from hf_distill.teachers.base import MIXED_PRECISIONS, Runtime, Teacher
from hf_distill.teachers.identity import TeacherIdentity


class LiveTeacher(Teacher):
    """A frozen model in evaluation mode, outside optimizer, checkpoint and DDP.

    It is placed where the student trains when it is first called: on its device; sharded like the
    student under FSDP2 and DeepSpeed. Quantised models and those with a ``device_map`` stay where
    they are.

    Args:
        model: the fine-tuned teacher. Its parameters are frozen in place.
        head: the task.
        identity: which teacher it is.
        vocabulary: the teacher's ids of the data's tokens, if the data's vocabulary is trimmed.
    """

    def __init__(
        self,
        model: nn.Module,
        head: TaskHead,
        identity: TeacherIdentity | None = None,
        vocabulary: VocabularyMap | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self._modules = tuple(model.modules())  # to walk through them takes longer than to look
        self.input_names = input_names(model)
        if self.input_names <= PACKED_ROWS:
            raise ValueError(
                f"teacher_model is a {type(model).__name__} whose forward names none of its "
                "inputs, so what to give it cannot be known; name them there (input_ids, "
                "attention_mask, …), or let it hold only the model that it wraps."
            )
        self._head = head
        self._vocabulary = vocabulary
        self.identities = [] if identity is None else [identity]
        self._placed_for: Runtime | None = None
        self._placed: nn.Module = model

    def __call__(
        self,
        batch: Mapping[str, Any],
        runtime: Runtime,
        further_inputs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Mapping[str, Tensor]:
        """Return the outputs for a batch, in the student's precision.

        Raises:
            ValueError: the teacher fails on it.
        """
        if self._placed_for is not runtime:
            self._placed = _place(self.model, runtime)
            self._placed_for = runtime
        if any(module.training for module in self._modules):
            self._placed.eval()  # a callback may have called train()
        head, vocabulary = self._head, self._vocabulary
        inputs = inputs_for(self.model, self.input_names, head, batch, vocabulary)
        # Not inference_mode: an objective may save the teacher's tensors for its backward pass.
        with torch.no_grad(), self._precision(runtime):
            try:
                outputs = self._placed(**inputs, **further_inputs)
            except (IndexError, RuntimeError, ValueError) as problem:
                if should_reduce_batch_size(problem):
                    raise
                raise ValueError(
                    f"The teacher cannot compute this batch ({type(problem).__name__}: {problem}). "
                    "Give it inputs that it takes, such as token ids below its vocab_size, rows "
                    "not longer than its positions, or images of its image_size."
                ) from problem
        return outputs if vocabulary is None else vocabulary.outputs_for_student(head, outputs)

    def _precision(self, runtime: Runtime) -> AbstractContextManager[Any]:
        """Return the student's autocast; none for half-precision weights of the other kind."""
        autocast = MIXED_PRECISIONS.get(runtime.mixed_precision)
        weights = weight_dtype(self.model)
        if weights != torch.float32 and autocast not in (None, weights):
            return nullcontext()
        return runtime.autocast()


def _place(model: nn.Module, runtime: Any) -> nn.Module:
    if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
        return model
    if runtime.distributed_type == DistributedType.DEEPSPEED:
        return _deepspeed_engine(model, runtime)
    model = model.to(runtime.device)
    if runtime.distributed_type == DistributedType.FSDP and runtime.is_fsdp2:
        return _shard(model, runtime)
    return model


def block_classes(model: nn.Module) -> list[str]:
    """Return the names of the classes of a model's blocks, each of which is a shard for FSDP2.

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
    with temporarily_set(plugin, transformer_cls_names_to_wrap=block_classes(model)):
        # Not accelerator.prepare_model: it would record the teacher as a model of the run, and
        # `evaluate` before `train` would then leave the student unprepared.
        return fsdp2_prepare_model(accelerator, model).eval()


def _deepspeed_engine(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Shard the teacher by ZeRO-3 if the student is; otherwise each process has a copy."""
    import deepspeed

    config = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    stage = config.get("zero_optimization", {}).get("stage", 0)
    config["zero_optimization"] = {"stage": 3 if stage == 3 else 0}
    for training_only in ("optimizer", "scheduler"):
        config.pop(training_only, None)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # returns nothing, unlike a module's
    return engine
