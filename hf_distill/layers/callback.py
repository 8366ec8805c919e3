"""``TeacherRecorderCallback``: samples of what teacher and student compute while training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from hf_distill.layers.recorder import LayerRecorder
from hf_distill.layers.samples import RecordedLayers, RecordedSample, SampleFolder


class TeacherRecorderCallback(TrainerCallback):
    """Writes hidden states and attentions of teacher and student to disk while training.

    Pass it to ``DistillationTrainer`` in ``callbacks``, or to ``add_callback``, in any stage::

        recorder = TeacherRecorderCallback(save_to="out/samples", every_steps=200)
        DistillationTrainer(..., callbacks=[recorder])

    A sample is the first row of a batch: its hidden states, and the queries and keys of its
    attentions (or the maps, for families whose queries and keys are out of reach). Attentions that
    queries and keys alone do not determine (position biases, soft-caps, attention sinks) are left
    out, and so are layers that LayerDrop skipped. Pictures are made of samples (``hf-distill
    pictures``, ``hf_distill.reports``). Several recorders may write to several folders, and one
    may be used for one stage after the other.

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
        self._written_step: int | None = None
        self._tokens: Callable[[list[int]], Any] | None = None

    @property
    def samples_wanted(self) -> bool:
        """Whether samples are written."""
        return self._samples is not None

    def is_sample_due(self, step: int) -> bool:
        """Whether the batch of this optimizer step is to be written."""
        return (
            self._samples is not None
            and step % self._every_steps == 0
            and step != self._written_step
        )

    def write_sample(
        self,
        step: int,
        batch: Mapping[str, Any],
        token_mask: Tensor | None,
        recorder: LayerRecorder,
    ) -> None:
        """Write the first row of the batch that was just recorded.

        Args:
            step: optimizer steps done before it.
            batch: as the student got it.
            token_mask: bool, ``(batch, length)``; padding is not written.
            recorder: holds the recordings.
        """
        assert self._samples is not None
        self._written_step = step
        states = next(iter(recorder.student.hidden_states.values()))
        whole = torch.ones(states.shape[1], dtype=torch.bool, device=states.device)
        valid = whole if token_mask is None else token_mask[0]
        ids = batch.get("input_ids")
        ids = torch.arange(len(valid)) if ids is None else ids.flatten(0, -2)[0][valid]
        self._samples.write(
            RecordedSample(
                step=step,
                layer_pairs=[
                    p for p in recorder.pairs if p.student not in recorder.student.dropped
                ],
                input_ids=ids,
                teacher=RecordedLayers.from_recording(recorder.teacher, 0, valid),
                student=RecordedLayers.from_recording(recorder.student, 0, valid),
                tokens=None if self._tokens is None else self._tokens(ids.tolist()),
            )
        )

    def on_train_begin(
        self, args: Any, state: Any, control: Any, processing_class: Any = None, **kwargs: Any
    ) -> None:
        """Begin a run, which may be another stage than the one before."""
        self._written_step = None
        if isinstance(processing_class, PreTrainedTokenizerBase):
            self._tokens = processing_class.convert_ids_to_tokens
