"""A teacher for a student: loaded or read from the data, and checked before it is trusted."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from hf_distill.compatibility.findings import Finding, enforce, note, refused
from hf_distill.compatibility.models import check_models
from hf_distill.compatibility.processors import check_preparation
from hf_distill.compatibility.tokenizers import tokenizer_hash
from hf_distill.heads import TaskHead, find_head
from hf_distill.teachers import CachedTeacher, EnsembleTeacher, LiveTeacher, load_teacher
from hf_distill.teachers.columns import SignalDescription
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

TeacherSource = (
    nn.Module | str | os.PathLike[str] | Sequence[nn.Module | str | os.PathLike[str]] | None
)
"""A model, its Hub id or directory, or several of them; ``None`` if the data has their outputs."""


class TeacherPairing:
    """Makes the teacher of a run.

    Args:
        student: the model that is trained.
        head: its head. It learns the teacher's order of labels.
        args: which losses there are, and how the teacher is loaded.
        processing_class: what the data was prepared with.
    """

    def __init__(
        self,
        student: nn.Module,
        head: TaskHead,
        args: DistillationTrainingArguments,
        processing_class: Any,
    ) -> None:
        self._student = student
        self._head = head
        self._args = args
        self._processing_class = processing_class

    def live_teacher(
        self, source: TeacherSource, *, needs_layers: bool
    ) -> LiveTeacher | EnsembleTeacher:
        """The teacher that runs beside the student.

        Args:
            source: where it is, or where they are.
            needs_layers: whether its layers are recorded, whatever the losses are.

        Raises:
            ValueError: it cannot be loaded, or cannot teach this student.
        """
        sources: list[Any] = list(source) if isinstance(source, list | tuple) else [source]
        if not sources:
            raise ValueError("teacher_model is an empty list; name at least one teacher.")
        if len(sources) == 1:
            if self._args.teacher_weights is not None and len(self._args.teacher_weights) > 1:
                raise ValueError(
                    f"teacher_weights={self._args.teacher_weights} has "
                    f"{len(self._args.teacher_weights)} weights for 1 teacher; leave them out, or "
                    "pass a list as teacher_model."
                )
            return LiveTeacher(self._checked(sources[0], self._head), self._head)
        if self._args.uses_layer_losses or needs_layers:
            raise ValueError(
                f"teacher_model has {len(sources)} teachers, and the intermediate layers of "
                "several cannot be averaged; take one teacher for them."
            )
        # Each has an order of labels of its own.
        heads = [find_head(self._student) or self._head for _ in sources]
        teachers = [
            LiveTeacher(self._checked(source, head), head)
            for source, head in zip(sources, heads, strict=True)
        ]
        args = self._args
        return EnsembleTeacher(teachers, heads, args.teacher_weights, args.teacher_combination)

    def cached_teacher(
        self, description: SignalDescription, *, needs_layers: bool
    ) -> CachedTeacher:
        """The teacher whose outputs come with the data.

        Args:
            description: what the columns mean.
            needs_layers: whether layers are to be recorded, which it does not have.

        Raises:
            ValueError: it cannot teach this student, or what is compared was not stored.
        """
        args = self._args
        if needs_layers:
            raise ValueError(
                "TeacherRecorderCallback has no teacher to record: train_dataset carries cached "
                "outputs. Leave the callback out, or pass teacher_model."
            )
        if args.uses_layer_losses:
            _check_layers(description, args)
        teacher = CachedTeacher(description, self._head)
        found = check_models(
            teacher.model, self._student, self._head, compare_logits=args.uses_logits_loss
        )
        enforce([*found, self._check_tokenizer(description)], logger)
        return teacher

    def _checked(self, source: Any, head: TaskHead) -> nn.Module:
        compare_logits = self._args.uses_logits_loss
        teacher = load_teacher(
            source,
            head,
            dtype=self._args.teacher_dtype,
            attn_implementation=self._args.teacher_attn_implementation,
            device=self._args.device,
            fine_tuned=compare_logits,
        )
        findings = check_models(teacher, self._student, head, compare_logits=compare_logits)
        findings.append(check_preparation(teacher, self._student, head, self._processing_class))
        enforce(findings, logger)
        return teacher

    def _check_tokenizer(self, description: SignalDescription) -> Finding:
        ours = tokenizer_hash(self._processing_class)
        if None in (ours, description.tokenizer):
            return note("tokenizer", "Not compared: there is none here, or none when caching.")
        if ours != description.tokenizer:
            return refused(
                "tokenizer",
                f"The outputs of {description.teacher!r} in train_dataset were cached with another "
                "tokenizer (processing_class) than this one: vocabulary, special tokens or the "
                "encoding of probe texts differ. Use that one, or cache them again.",
            )
        return note("tokenizer", "The one that the teacher's outputs were cached with.")


def _check_layers(description: SignalDescription, args: DistillationTrainingArguments) -> None:
    if args.intermediate_weights["attention"] > 0:
        raise ValueError(
            "Attentions are not among cached teacher outputs (they take megabytes a row); set "
            "attention_loss_weight=0, or pass teacher_model."
        )
    if not description.hidden_layers:
        raise ValueError(
            "The cached teacher outputs have no hidden states to compare; cache them with "
            "hidden_layers, set hidden_states_loss_weight=0, or pass teacher_model."
        )
