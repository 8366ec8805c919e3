"""A teacher for a student: loaded or read from the data, and checked before it is trusted."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_distill.alignment import Alignment
from hf_distill.compatibility.findings import Finding, error, info, raise_on_errors
from hf_distill.compatibility.models import check_models
from hf_distill.compatibility.processors import check_preparation
from hf_distill.compatibility.tokenizers import find_vocabulary_map, tokenizer_hash, tokenizer_of
from hf_distill.compatibility.two_tokenizers import check_reader, of_other_tokens
from hf_distill.heads import TaskHead, find_head
from hf_distill.loading import load_teacher
from hf_distill.teachers.base import Teacher
from hf_distill.teachers.cached import CachedTeacher
from hf_distill.teachers.columns import SignalDescription, check_not_lost
from hf_distill.teachers.columns.description import COLUMN
from hf_distill.teachers.ensemble import EnsembleTeacher
from hf_distill.teachers.identity import identify
from hf_distill.teachers.live import LiveTeacher
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

OneSource = nn.Module | str | os.PathLike[str]
TeacherSource = OneSource | Sequence[OneSource] | None
"""A model, its Hub id or directory, or several of them; ``None`` if the data has their outputs."""


def choose_source(
    given: TeacherSource,
    args: DistillationTrainingArguments,
    train_dataset: Any,
    eval_dataset: Any,
) -> TeacherSource | SignalDescription:
    """Return the teacher that was given, or the description of the one in the data's columns.

    ``eval_dataset`` matters where there is no ``train_dataset``.

    Raises:
        ValueError: there is none of the two, or there are both.
    """
    cached = SignalDescription.of(train_dataset)
    if train_dataset is None:
        several = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
        cached = next(filter(None, map(SignalDescription.of, several.values())), None)
    if given is None and cached is None:
        check_not_lost(train_dataset)
        what = f"distillation_loss_weight={args.distillation_loss_weight}"
        if not args.uses_logits_loss:
            what = f"stage={args.stage!r} with a loss between intermediate layers"
        data = type(train_dataset)
        unknown = train_dataset is not None and not data.__module__.startswith("datasets")
        raise ValueError(
            f"{what} needs a teacher; pass teacher_model, or data with the columns of "
            "cache_teacher_outputs"
            + f" (as an attribute of the {data.__name__}, if it hands them on)" * unknown
            + ", or set distillation_loss_weight=0 (in stage 'prediction') to train without one."
        )
    if given is not None and cached is not None:
        raise ValueError(
            "There are two teachers: teacher_model, and the cached outputs of "
            f"{cached.teacher!r} in train_dataset. Leave teacher_model out to learn from the "
            "columns, or remove the teacher_… columns."
        )
    return given if cached is None else cached


def create_teacher(
    source: TeacherSource | SignalDescription,
    student: nn.Module,
    head: TaskHead,
    args: DistillationTrainingArguments,
    processing_class: Any,
    *,
    alignment: Alignment,
    records_layers: bool,
) -> Teacher:
    """Create the teacher of a run, and let the student's head learn its order of labels.

    Args:
        source: what ``choose_source`` returned.
        student: the student.
        head: the student's.
        args: the options of the run.
        processing_class: the tokenizer of what the teacher reads.
        alignment: how its outputs come to the student's tokens.
        records_layers: whether layers are recorded that are not compared.

    Raises:
        ValueError: it cannot be loaded, cannot teach this student, or what is compared was not
            stored.
    """
    uses_layers = args.uses_layer_losses or records_layers
    if alignment.two_encodings and uses_layers:
        raise ValueError(
            "Teacher and student have different tokenizers, so that their hidden states and "
            "attentions are about different tokens and cannot be compared or recorded. Set "
            "hidden_states_loss_weight=0 and attention_loss_weight=0 in stage 'prediction' and "
            "leave TeacherRecorderCallback out (of a command --record_steps, "
            "--intermediate_epochs and --intermediate_max_steps), or choose a teacher with the "
            "student's tokenizer."
        )
    if isinstance(source, SignalDescription):
        return _cached_teacher(
            source, student, head, args, processing_class, alignment, records_layers
        )
    sources: list[Any] = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise ValueError("teacher_model is an empty list; name at least one teacher.")
    if len(sources) == 1 and args.teacher_weights is not None and len(args.teacher_weights) > 1:
        raise ValueError(
            f"teacher_weights={args.teacher_weights} has {len(args.teacher_weights)} weights for 1 "
            "teacher; leave them out, or pass a list as teacher_model."
        )
    if len(sources) > 1 and uses_layers:
        raise ValueError(
            f"teacher_model has {len(sources)} teachers, and the intermediate layers of several "
            "cannot be averaged; take one teacher for them."
        )
    # Each teacher has its own order of labels.
    several = len(sources) > 1
    heads = [(find_head(student) or head) if several else head for _ in sources]
    return create_live_teacher(
        sources,
        heads,
        student,
        processing_class,
        alignment=alignment,
        compare_logits=args.uses_logits_loss,
        dtype=args.teacher_dtype,
        attn_implementation=args.teacher_attn_implementation,
        device=args.device,
        weights=args.teacher_weights,
        combination=args.teacher_combination,
    )


def create_live_teacher(
    sources: Sequence[OneSource],
    heads: Sequence[TaskHead],
    student: nn.Module | None,
    processing_class: Any,
    *,
    alignment: Alignment,
    compare_logits: bool = True,
    dtype: str | None,
    attn_implementation: str | None,
    device: torch.device,
    weights: Sequence[float] | None,
    combination: str,
) -> Teacher:
    """Load one teacher, or several that are averaged, and check each against the student.

    Without a student the others are checked against the first teacher. Each has its own head, as
    it may have its own order of labels.
    """
    teachers = []
    first: nn.Module | None = None
    for source, head in zip(sources, heads, strict=True):
        model = load_teacher(
            source,
            head.auto_model,
            head.task,
            dtype=dtype,
            attn_implementation=attn_implementation,
            device=device,
            new_head=not compare_logits,
        )
        other = first if student is None else student
        findings = []
        if other is not None:
            findings = check_models(model, other, head, compare_logits=compare_logits)
        elif processing_class is None:
            processing_class = tokenizer_of(model)
        first = model if first is None else first
        reader = model if student is None else student
        if alignment.two_encodings:
            reader = model
            findings = of_other_tokens(findings)
            findings.append(check_reader(model, processing_class, alignment))
        else:
            findings.append(check_preparation(model, reader, head, processing_class))
        raise_on_errors(findings, logger)
        vocabulary = find_vocabulary_map(model, reader, head, processing_class)
        if vocabulary is not None and student is None:  # the head has the teacher's ids
            head.config = vocabulary.config_of_student(head.config)
        teachers.append(LiveTeacher(model, head, identify(source, model), vocabulary))
    if len(teachers) == 1:
        return teachers[0]
    return EnsembleTeacher(teachers, heads, weights, combination)


def _cached_teacher(
    description: SignalDescription,
    student: nn.Module,
    head: TaskHead,
    args: DistillationTrainingArguments,
    processing_class: Any,
    alignment: Alignment,
    records_layers: bool,
) -> CachedTeacher:
    if records_layers:
        raise ValueError(
            "TeacherRecorderCallback has no teacher to record: train_dataset carries cached "
            "outputs. Leave the callback out, or pass teacher_model."
        )
    if args.intermediate_weights["attention"] > 0:
        raise ValueError(
            "Attentions are not among cached teacher outputs (they take megabytes per row); set "
            "attention_loss_weight=0, or pass teacher_model."
        )
    if args.uses_layer_losses and not description.hidden_layers:
        raise ValueError(
            "The cached teacher outputs have no hidden states to compare; cache them with "
            "hidden_layers, set hidden_states_loss_weight=0, or pass teacher_model."
        )
    if description.architecture == COLUMN:
        _check_column_loss(description.config or {}, args)
    teacher = CachedTeacher(description, head, alignment)
    found = check_models(
        teacher.model,
        student,
        head,
        compare_logits=args.uses_logits_loss,
        teacher_name=description.teacher,
    )
    if alignment.two_encodings:
        found = of_other_tokens(found)
    raise_on_errors([*found, _check_tokenizer(description, processing_class)], logger)
    return teacher


def _check_column_loss(facts: Mapping[str, Any], args: DistillationTrainingArguments) -> None:
    """Check that ``mse`` has logits to compare: those of probabilities have no offset."""
    several = facts.get("problem_type") == "multi_label_classification"
    known = facts["kind"] in ("numbers", "logits") or several
    if args.distillation_loss == "mse" and (not known or facts["sure"]):
        why = f"holds {facts['kind'].replace('_', ' ')}, whose logits are not known"
        if known:
            why = "rules a label out or in, which is a logit without a bound"
        raise ValueError(
            f"distillation_loss='mse' compares logits, and the column {facts['column']!r} {why}; "
            "set distillation_loss='kl_div', or take finite logits (teacher_column_kind='logits')."
        )


def _check_tokenizer(description: SignalDescription, processing_class: Any) -> Finding:
    ours = tokenizer_hash(processing_class)
    if None in (ours, description.tokenizer):
        return info("tokenizer", "Not compared: there is none here, or none when caching.")
    if ours != description.tokenizer:
        return error(
            "tokenizer",
            f"The outputs of {description.teacher!r} in train_dataset were cached with another "
            "tokenizer (processing_class) than this one: vocabulary, special tokens or the "
            "encoding of probe texts differ. Use that one, pass it as teacher_processing_class if "
            "it was the teacher's and not the student's, or cache them again.",
        )
    return info("tokenizer", "The one that the teacher's outputs were cached with.")
