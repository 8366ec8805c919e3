"""Are two models a pair: apart, of one task, with the same classes and room for the same inputs?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from hf_distill.compatibility.findings import Finding, error, info, warning
from hf_distill.compatibility.labels import align_labels
from hf_distill.compatibility.origin import is_made_of
from hf_distill.compatibility.vocabulary_map import MARK
from hf_distill.heads import (
    LabelledHead,
    LanguageModelingHead,
    Seq2SeqLMHead,
    SequenceClassificationHead,
    TaskHead,
    find_head,
    unwrapped,
)

_POSITION_EMBEDDINGS = ("position_embeddings", "embed_positions", "wpe")


def check_models(
    teacher: nn.Module,
    student: nn.Module,
    head: TaskHead,
    *,
    compare_logits: bool = True,
    teacher_name: str | None = None,
) -> list[Finding]:
    """Check that two models fit together; what the head needs to know of the teacher is set.

    Args:
        teacher: the teacher.
        student: the student.
        head: the student's head. It learns the teacher's order of labels.
        compare_logits: otherwise only intermediate layers will be, whatever the task.
        teacher_name: if the teacher's module does not know it.
    """
    if not compare_logits:
        return [_check_weights(teacher, student), *_check_lengths(teacher, student)]
    findings = [_check_weights(teacher, student), _check_task(teacher, student, head)]
    if any(finding.status == "error" for finding in findings):
        return findings
    teacher_config, student_config = (
        getattr(unwrapped(m), "config", None) for m in (teacher, student)
    )
    if isinstance(head, LabelledHead):
        if not hasattr(student_config, "num_labels"):
            head.config = teacher_config
        made_of_it = is_made_of(student, teacher, teacher_name)
        head.teacher_order, found = align_labels(
            student_config, teacher_config, made_of_it=made_of_it
        )
        findings += found
    if isinstance(head, SequenceClassificationHead):
        findings += _check_problem_types(head.problem_type, teacher_config)
    if isinstance(head, LanguageModelingHead):
        findings += _check_vocabularies(student_config, teacher_config)
    if isinstance(head, Seq2SeqLMHead):
        findings += _check_target_start(student_config, teacher_config)
    return [*findings, *_check_lengths(teacher, student), *_check_head_is_trained(teacher, head)]


def longest_input(model: nn.Module) -> int | None:
    """The most tokens that a model has positions for; ``None`` if that is not limited.

    Read from its learned position embeddings; RoBERTa and its kin keep some of them for padding.
    """
    longest: int | None = None
    for name, module in unwrapped(model).named_modules():
        if name.rpartition(".")[2] in _POSITION_EMBEDDINGS and isinstance(module, nn.Embedding):
            reserved = getattr(module, "offset", None)
            if reserved is None:
                reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            rows = module.num_embeddings - int(reserved)
            longest = rows if longest is None else min(longest, rows)
    return longest


def input_limit(model: nn.Module) -> int | None:
    """The most tokens to give a model: its positions, or what its configuration says."""
    learned = longest_input(model)
    if learned is not None:
        return learned
    said: int | None = getattr(model.config, "max_position_embeddings", None)
    return said


def _check_weights(teacher: nn.Module, student: nn.Module) -> Finding:
    weights = _weights(student)
    own = {id(weight) for weight in weights.values()}
    spans: dict[tuple[torch.device, int], list[range]] = defaultdict(list)
    for weight in weights.values():
        for storage, span in _memory(weight):
            spans[storage].append(span)
    shared = [
        name
        for name, weight in _weights(teacher).items()
        if id(weight) in own
        or any(
            max(span.start, other.start) < min(span.stop, other.stop)
            for storage, span in _memory(weight)
            for other in spans.get(storage, ())
        )
    ]
    if shared:
        return error(
            "weights",
            f"teacher_model and model share {len(shared)} weights (the first is {shared[0]!r}), so "
            "that either the student could not learn or the teacher would change with it. Give "
            "the student its own weights (copy.deepcopy).",
        )
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    return info("weights", f"Teacher {sizes[0]:,} parameters, student {sizes[1]:,}.")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: parameters, and the running statistics of normalisation."""
    saved = model.state_dict(keep_vars=True)
    statistics = {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in saved and buffer.is_floating_point()
    }
    return {**dict(model.named_parameters()), **statistics}


def _memory(weight: Tensor) -> Iterator[tuple[tuple[torch.device, int], range]]:
    """Yield the storage of a weight and the bytes that it covers there, if it is in memory."""
    if is_traceable_wrapper_subclass(weight):  # sharded or quantised
        for part in (getattr(weight, name) for name in weight.__tensor_flatten__()[0]):
            if isinstance(part, Tensor):
                yield from _memory(part)
    elif not weight.is_meta and weight.numel():
        start = weight.data_ptr()
        last = sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True))
        storage = (weight.device, weight.untyped_storage().data_ptr())
        yield storage, range(start, start + (last + 1) * weight.element_size())


def _check_task(teacher: nn.Module, student: nn.Module, head: TaskHead) -> Finding:
    teacher = unwrapped(teacher)
    theirs = find_head(teacher)
    known = theirs is not None or isinstance(teacher, PreTrainedModel)
    if known and type(theirs) is not type(head):
        return error(
            "task",
            f"teacher_model is a {type(teacher).__name__} and model a {type(student).__name__}; "
            "both must have the same task.",
        )
    return info("task", f"Both are models for {head.task}.")


def _check_problem_types(student: str, teacher: Any) -> list[Finding]:
    theirs = getattr(teacher, "problem_type", None)
    if theirs is None and student == "multi_label_classification":
        return [
            warning(
                "problem type",
                f"The student's problem_type is {student!r} and the teacher's configuration has "
                "none. If it was trained for several labels of an input, say so "
                f"(teacher.config.problem_type = {student!r}); if for one, it is another task.",
            )
        ]
    if theirs in (None, student):
        return []
    return [
        error(
            "problem type",
            f"The student's problem_type is {student!r} and the teacher's {theirs!r}; load the "
            f"student with problem_type={theirs!r}.",
        )
    ]


def _check_vocabularies(student: Any, teacher: Any) -> list[Finding]:
    ours, theirs = (
        getattr(c.get_text_config() if hasattr(c, "get_text_config") else c, "vocab_size", None)
        for c in (student, teacher)
    )
    if ours is None or theirs is None or ours == theirs or hasattr(student, MARK):
        return []  # of a trimmed vocabulary the tokenizer's check reports
    return [
        info(
            "vocabulary",
            f"The student gives logits for {ours} tokens and the teacher for {theirs}; the first "
            f"{min(ours, theirs)} are compared.",
        )
    ]


def _check_target_start(student: Any, teacher: Any) -> list[Finding]:
    starts = [getattr(config, "decoder_start_token_id", None) for config in (student, teacher)]
    if None in starts or starts[0] == starts[1] or hasattr(student, MARK):
        return []
    return [
        warning(
            "target",
            f"The student's targets start with token {starts[0]} and the teacher's with "
            f"{starts[1]}; each gets its own. Set decoder_start_token_id if they should be alike.",
        )
    ]


def _check_lengths(teacher: nn.Module, student: nn.Module) -> list[Finding]:
    theirs, ours = longest_input(teacher), longest_input(student)
    if theirs is None or theirs >= (math.inf if ours is None else ours):
        shown = "as long as the student likes" if theirs is None else f"up to {theirs} tokens"
        return [info("length", f"The teacher takes inputs {shown}.")]
    return [
        warning(
            "length",
            f"The teacher takes inputs of at most {theirs} tokens, fewer than the student "
            f"({'no limit' if ours is None else ours}); cut the data to {theirs} (max_length).",
        )
    ]


def _check_head_is_trained(teacher: nn.Module, head: TaskHead) -> list[Finding]:
    """A new linear layer has a bias of zeros, and no training leaves it so."""
    if isinstance(head, LanguageModelingHead):
        return []
    linear = [
        (name, module)
        for name, module in unwrapped(teacher).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not linear:
        return []
    name, last = linear[-1]
    if last.bias is None or last.bias.is_meta or bool(last.bias.detach().any()):
        return []
    return [
        warning(
            "training",
            f"The bias of the teacher's last layer ({name}) is all zeros, as in a model that was "
            "never trained for the task. Pass a fine-tuned teacher.",
        )
    ]
