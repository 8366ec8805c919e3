"""``TeacherRecorderCallback``: hidden states and attentions of chosen layers while training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import make_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.utils.generic import ModelOutput

from hf_distill.layer_mapping import LayerPair
from hf_distill.recording.capture import (
    AttentionTaps,
    Recording,
    has_attention_taps,
    recording_attention,
)
from hf_distill.recording.samples import RecordedLayers, RecordedSample, SampleFolder

LossesOfRecordings = Callable[[Recording, Recording], dict[str, Tensor]]
"""(student, teacher) -> losses by name."""

_LOSSES = "intermediate_losses"


class TeacherRecorderCallback(TrainerCallback):
    """Records hidden states and attentions of the teacher, and of the student, while training.

    ``DistillationTrainer`` has one of its own where it needs one: with a loss on hidden states or
    attentions, each step's recordings are what is compared. Pass one in ``callbacks`` to write
    samples to disk, too, in any stage::

        recorder = TeacherRecorderCallback(save_to="out/samples", every_steps=200)
        DistillationTrainer(..., callbacks=[recorder])

    A sample is the first row of a batch: its hidden states, and the queries and keys of its
    attentions (or the maps, for families whose queries and keys are out of reach). Pictures are
    made of them (``hf-distill pictures``, ``hf_distill.reporting``).

    The models keep their own attention (SDPA, flash attention, …). The taps are set when training
    begins and gone when it ends, however it ends.

    Args:
        save_to: a folder for samples; by default nothing is written.
        every_steps: optimizer steps between two samples; the first is of the first step.
        max_bytes: size at which no more samples are written.

    Raises:
        ValueError: ``every_steps`` or ``max_bytes`` is below 1.
    """

    def __init__(
        self,
        save_to: str | os.PathLike[str] | None = None,
        *,
        every_steps: int = 500,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        for name, value in (("every_steps", every_steps), ("max_bytes", max_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but it is {value}.")
        self._samples = None if save_to is None else SampleFolder(save_to, max_bytes=max_bytes)
        self._every_steps = every_steps
        self._taps = AttentionTaps()
        self._models: tuple[nn.Module, nn.Module] | None = None
        self._hook: Any = None
        self._losses: LossesOfRecordings | None = None
        self._written_step: int | None = None
        self._tokens: Callable[[list[int]], Any] | None = None
        self.pairs: Sequence[LayerPair] = ()
        self.teacher = Recording(frozenset(), frozenset())
        self.student = Recording(frozenset(), frozenset())

    # ---- what is recorded ----------------------------------------------------------------------

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

    @property
    def samples_wanted(self) -> bool:
        """Whether samples are written."""
        return self._samples is not None

    # ---- taps ----------------------------------------------------------------------------------

    @contextmanager
    def attached(self, teacher: nn.Module, student: nn.Module) -> Iterator[None]:
        """Set the taps, and take them away at the end; nothing if they are set already."""
        if self._hook is not None:
            yield
            return
        self._models = (teacher, student)
        self.attach()
        try:
            yield
        finally:
            self.detach()

    def attach(self) -> None:
        """Set the taps in both models; nothing if they are set already."""
        if self._models is not None and self._hook is None:
            self._taps.attach(*self._models)
            self._hook = self._models[1].register_forward_hook(
                torch.compiler.disable(self._after_student)
            )

    def detach(self) -> None:
        """Take the taps away."""
        self._taps.detach()
        if self._hook is not None:
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
        self.student.take_outputs(outputs, "student")
        if not isinstance(outputs, ModelOutput):
            raise ValueError(
                f"The student returned a {type(outputs).__name__}; intermediate layers need a "
                "model whose forward returns a ModelOutput (return_dict=True)."
            )
        kept = _without(outputs, "hidden_states", "attentions")
        losses = {_LOSSES: self._losses(self.student, self.teacher)}
        return _with_losses(type(outputs))(**kept, **losses)

    # ---- samples -------------------------------------------------------------------------------

    def is_sample_due(self, step: int) -> bool:
        """Whether the batch of this optimizer step is to be written."""
        return (
            self._samples is not None
            and step % self._every_steps == 0
            and step != self._written_step
        )

    def write_sample(self, step: int, batch: Mapping[str, Any], token_mask: Tensor | None) -> None:
        """Write the first row of the batch that was just recorded.

        Args:
            step: optimizer steps done before it.
            batch: as the student got it.
            token_mask: bool, ``(batch, length)``; padding is not written.
        """
        assert self._samples is not None
        self._written_step = step
        states = next(iter(self.student.hidden_states.values()))
        whole = torch.ones(states.shape[1], dtype=torch.bool, device=states.device)
        valid = whole if token_mask is None else token_mask[0]
        ids = batch.get("input_ids")
        ids = torch.arange(len(valid)) if ids is None else ids.flatten(0, -2)[0][valid]
        self._samples.write(
            RecordedSample(
                step=step,
                layer_pairs=list(self.pairs),
                input_ids=ids,
                teacher=RecordedLayers.from_recording(self.teacher, 0, valid),
                student=RecordedLayers.from_recording(self.student, 0, valid),
                tokens=None if self._tokens is None else self._tokens(ids.tolist()),
            )
        )

    def on_train_begin(
        self, args: Any, state: Any, control: Any, processing_class: Any = None, **kwargs: Any
    ) -> None:
        """Set the taps."""
        if isinstance(processing_class, PreTrainedTokenizerBase):
            self._tokens = processing_class.convert_ids_to_tokens
        self.attach()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the taps away."""
        self.detach()


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
