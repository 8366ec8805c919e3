"""Records hidden states and attentions of chosen layers of teacher and student, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import make_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from hf_distill.layers.capture import (
    AttentionTaps,
    LayerTaps,
    Recording,
    has_attention_taps,
    recording_attention,
)
from hf_distill.layers.mapping import LayerPair

LossesOfRecordings = Callable[[Recording, Recording], dict[str, Tensor]]
"""(student, teacher) -> losses by name."""

_LOSSES = "intermediate_losses"


class LayerRecorder:
    """Records the layers of teacher and student, and compares them inside the student's forward.

    The models keep their own attention (SDPA, flash attention, …). The taps are set by
    ``attached`` and gone when it ends.

    Args:
        teacher: the teacher.
        student: the model that is trained, not yet wrapped.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        self._models = (teacher, student)
        self._attention_taps, self._layer_taps = AttentionTaps(), LayerTaps()
        self._hook: Any = None
        self._losses: LossesOfRecordings | None = None
        self.pairs: Sequence[LayerPair] = ()
        self.teacher = Recording(frozenset(), frozenset())
        self.student = Recording(frozenset(), frozenset())

    def choose(self, pairs: Sequence[LayerPair], *, hidden_states: bool, attentions: bool) -> None:
        """Say which layers are recorded.

        Args:
            pairs: student's and teacher's layers.
            hidden_states: whether their hidden states are.
            attentions: whether their attentions are.
        """
        self.pairs = tuple(pairs)
        for name in ("teacher", "student"):
            layers = frozenset(getattr(pair, name) for pair in pairs)
            with_attention = layers - {0} if attentions else frozenset()
            setattr(self, name, Recording(layers if hidden_states else frozenset(), with_attention))

    def extra_inputs(self, model: nn.Module) -> dict[str, bool]:
        """What a model's forward must be asked for."""
        inputs = {}
        if self.teacher.hidden_layers:
            inputs["output_hidden_states"] = True
        if self.teacher.attention_layers and not has_attention_taps(model):
            inputs["output_attentions"] = True
        return inputs

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Set the taps, and take them away at the end; nothing if they are set already."""
        if self._hook is not None:
            yield
            return
        self._attention_taps.attach(*self._models)
        self._layer_taps.attach(*self._models)
        self._hook = self._models[1].register_forward_hook(
            torch.compiler.disable(self._after_student)
        )
        try:
            yield
        finally:
            self._attention_taps.detach()
            self._layer_taps.detach()
            self._hook.remove()
            self._hook = None

    @contextmanager
    def recording_teacher(self) -> Iterator[None]:
        """Record the teacher's forward pass inside."""
        self.teacher.clear()
        with recording_attention(self.teacher):
            yield

    @contextmanager
    def recording_student(self, losses: LossesOfRecordings) -> Iterator[None]:
        """Record the student's forward pass inside, and compare it with the teacher's recording.

        Args:
            losses: compares; the results are the entry ``intermediate_losses`` of the outputs.
        """
        self.student.clear()
        self._losses = losses
        try:
            with recording_attention(self.student):
                yield
        finally:
            self._losses = None

    def _after_student(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        """Compare inside the forward pass: DDP and FSDP see the losses and nothing bigger."""
        if self._losses is None:
            return outputs
        self.student.take_outputs(outputs, "student", module)
        if not isinstance(outputs, ModelOutput):
            raise ValueError(
                f"The student returned a {type(outputs).__name__}; intermediate layers need a "
                "model whose forward returns a ModelOutput (return_dict=True)."
            )
        config = getattr(module, "config", None)
        ours = ("hidden_states", "attentions")
        kept = _without(outputs, *(n for n in ours if not getattr(config, f"output_{n}", False)))
        losses = {_LOSSES: self._losses(self.student, self.teacher)}
        return _with_losses(type(outputs))(**kept, **losses)


def taken_losses(outputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A student's own outputs, and the losses that the recorder put there."""
    return _without(outputs, _LOSSES), outputs[_LOSSES]


def _without(outputs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    left_out = {part + name for name in names for part in ("", "encoder_", "decoder_")}
    return {name: value for name, value in outputs.items() if name not in left_out}


@cache
def _with_losses(output_class: type[ModelOutput]) -> type[ModelOutput]:
    """The class of a model's outputs with one more entry.

    Declared, because DDP takes outputs apart and puts them together again by their fields.
    """
    fields = [(_LOSSES, "dict[str, Tensor] | None", None)]
    return make_dataclass(f"{output_class.__name__}WithLosses", fields, bases=(output_class,))
