"""``check_pair``: everything that can be known about a pair before training, in one report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.alignment import Alignment, SameEncoding
from hf_distill.compatibility.findings import Finding, error, info
from hf_distill.compatibility.inputs import input_names, inputs_for
from hf_distill.compatibility.models import check_models
from hf_distill.compatibility.processors import check_preparation
from hf_distill.compatibility.teacher_check import check_teacher
from hf_distill.compatibility.tokenizers import find_vocabulary_map, tokenizer_of
from hf_distill.compatibility.two_tokenizers import (
    check_reader,
    choose_alignment,
    of_other_tokens,
)
from hf_distill.compatibility.vocabulary_map import VocabularyMap
from hf_distill.heads import (
    LabelledHead,
    TaskHead,
    find_head,
    head_of_class,
    head_of_task,
    unwrapped,
)
from hf_distill.loading import load_model, load_teacher, read_config
from hf_distill.restoring import evaluating

Batches = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True)
class PairReport:
    """What ``check_pair`` found out.

    Attributes:
        task: what both models do, as the Hub calls it; ``None`` if that is not known.
        findings: one an aspect, in the order in which they were checked.
    """

    task: str | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is refused."""
        return all(finding.status != "error" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(f"{f.status:7} {f.about}: {f.message}" for f in self.findings)


def check_pair(
    teacher: nn.Module | str | os.PathLike[str],
    student: nn.Module | str | os.PathLike[str],
    *,
    task: str | None = None,
    processing_class: Any = None,
    teacher_processing_class: Any = None,
    batches: Batches | Callable[[nn.Module], Batches] = (),
) -> PairReport:
    """Check whether a teacher can teach a student, without training anything.

    Looked at are: shared weights, the task, the names and the order of labels, the vocabulary, the
    length of inputs, the tokenizer (vocabulary, special ids, the encoding of probe texts), whether
    the teacher's head was ever trained, and, with ``batches``, whether the teacher is better than
    always giving the most frequent label. ``DistillationTrainer`` checks the same before training.

    Args:
        teacher: a module, or the Hub id or directory of a fine-tuned model.
        student: the same; it need not be fine-tuned.
        task: what they are to do, as the Hub calls it (``question-answering``, …); by default what
            the student, if it is a module, or else the teacher was made for.
        processing_class: the tokenizer that the data is prepared with; by default the student's.
        teacher_processing_class: the teacher's tokenizer; by default the one that is saved with it.
            If it is another one, the report tells by what the two are aligned, or why they cannot
            be, and batches need both encodings.
        batches: labelled batches, as a data collator gives them, to try the teacher on; or a
            function that makes them for the student, whose labels they are numbered by.

    Returns:
        A report; see its ``ok`` and ``findings``. Nothing is raised for a bad pair.
    """
    try:
        head, teacher_model, student_model = _load(teacher, student, task)
    except ValueError as problem:
        return PairReport(task, (error("models", str(problem)),))
    theirs = teacher_processing_class or tokenizer_of(teacher_model)
    findings = check_models(teacher_model, student_model, head)
    alignment: Alignment = SameEncoding(head)
    with suppress(ValueError):  # the check of the tokenizers tells
        alignment = choose_alignment(student_model, head, processing_class, theirs)
    if alignment.two_encodings:
        findings = of_other_tokens(findings)
        findings.append(
            check_reader(teacher_model, theirs, alignment, student_model, processing_class)
        )
    else:
        findings.append(check_preparation(teacher_model, student_model, head, processing_class))
    if all(finding.status != "error" for finding in findings):
        if callable(batches):
            batches = batches(student_model)
        vocabulary = None
        if not alignment.two_encodings:
            vocabulary = find_vocabulary_map(teacher_model, student_model, head, processing_class)
        batches = map(alignment.teacher_batch, filter(alignment.is_in, batches))
        tried = _check_teacher(teacher_model, head, batches, vocabulary)
        findings.append(tried or info("quality", "Not tried: there is no labelled data."))
    return PairReport(head.task if task is None else task, tuple(findings))


def _load(
    teacher: nn.Module | str | os.PathLike[str],
    student: nn.Module | str | os.PathLike[str],
    task: str | None,
) -> tuple[TaskHead, nn.Module, nn.Module]:
    of_student = task is not None or isinstance(student, nn.Module)
    head = head_of(student, task, "student") if of_student else head_of(teacher, None, "teacher")
    teacher_model = load_teacher(teacher, head.auto_model, head.task)
    if isinstance(student, nn.Module):
        return head, teacher_model, student
    return head, teacher_model, _load_student(student, head, teacher_model)


def _load_student(source: str | os.PathLike[str], head: TaskHead, teacher: nn.Module) -> nn.Module:
    """Load the student as it would be trained: another task's head is replaced by a new one.

    A new head has the teacher's labels, and its kind of problem.
    """
    config = read_config(os.fspath(source), "student")
    replaced = type(head_of_class((config.architectures or [""])[0], config)) is not type(head)
    labels: dict[str, Any] = {}
    if isinstance(head, LabelledHead):
        theirs: Any = teacher.config
        if replaced or config.problem_type is None:
            config.problem_type = getattr(theirs, "problem_type", None)
        if replaced:
            labels = {name: getattr(theirs, name) for name in ("id2label", "label2id")}
            for name, value in labels.items():
                setattr(config, name, value)
        head.config = config
    return load_model(
        head.auto_model,
        os.fspath(source),
        config=config,
        # The layers of two heads may share a name and not a shape.
        ignore_mismatched_sizes=replaced,
    ).model


def head_of(source: nn.Module | str | os.PathLike[str], task: str | None, who: str) -> TaskHead:
    """Return the head of a model, which need not be loaded.

    Args:
        source: module, Hub id or directory.
        task: as the Hub calls it; by default what the model was made for.
        who: what the error calls it.

    Raises:
        ValueError: the model or task does not exist, or no task can be inferred.
    """
    if isinstance(source, nn.Module):
        source = unwrapped(source)
        config: Any = getattr(source, "config", None)
        head, name = find_head(source), type(source).__name__
    else:
        config = read_config(os.fspath(source), who)
        name = (config.architectures or ["unknown"])[0]
        head = head_of_class(name, config)
    if task is not None:
        return head_of_task(task, config)
    if head is None:
        raise ValueError(
            f"Cannot infer a supported task from the {who}'s class ({name}); name one (task)."
        )
    return head


def _check_teacher(
    model: nn.Module, head: TaskHead, batches: Batches, vocabulary: VocabularyMap | None
) -> Finding | None:
    names = input_names(model)

    def run(batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        outputs = model(**inputs_for(model, names, head, batch, vocabulary))
        return outputs if vocabulary is None else vocabulary.outputs_for_student(head, outputs)

    with evaluating(model), torch.no_grad():
        return check_teacher(head, run, batches)
