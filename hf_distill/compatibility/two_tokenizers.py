"""Teachers with another tokenizer than the data's: are they aligned, or what stands against it?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_distill.alignment import Alignment, SameEncoding, find_alignment
from hf_distill.compatibility.findings import Finding, error, info
from hf_distill.compatibility.tokenizers import (
    check_map,
    check_padding,
    check_vocabulary,
    compare_tokenizers,
    special_ids_of,
    tokenizer_of,
    tokenizer_of_data,
)
from hf_distill.compatibility.vocabulary_map import VocabularyMap
from hf_distill.heads import TaskHead


def choose_alignment(
    student: nn.Module, head: TaskHead, processing_class: Any, teacher_processing_class: Any
) -> Alignment:
    """Return how a teacher's outputs come to the student's tokens.

    Args:
        student: the student; its tokenizer counts if ``processing_class`` is none.
        head: the task.
        processing_class: what the data was prepared with.
        teacher_processing_class: the teacher's tokenizer; without one the data's is the teacher's.

    Raises:
        ValueError: the tokenizers differ and cannot be aligned.
    """
    if teacher_processing_class is None:
        return SameEncoding(head)
    ours = tokenizer_of_data(student, processing_class)
    given = {"processing_class": ours, "teacher_processing_class": teacher_processing_class}
    for name, tokenizer in given.items():
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                f"{name} is a {type(tokenizer).__name__}, and a teacher with a tokenizer of its "
                "own needs both tokenizers: pass the student's as processing_class and the "
                "teacher's as teacher_processing_class."
            )
    assert ours is not None
    if are_equal(teacher_processing_class, ours, head):
        return SameEncoding(head)
    found = find_alignment(head, ours, teacher_processing_class)
    if found is None:
        raise ValueError(
            "Teacher and student have different tokenizers, and their predictions for "
            f"{head.task} cannot be aligned. Choose a teacher and a student that share one, and "
            "leave teacher_processing_class out."
        )
    for name, tokenizer in given.items():
        if found.unit is not None and not tokenizer.is_fast:
            raise ValueError(
                f"{name} is a {type(tokenizer).__name__}, a slow tokenizer, which cannot say where "
                f"in the text a token is; aligning by {found.unit} needs fast ones."
            )
    return found


def are_equal(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, head: TaskHead
) -> bool:
    """Return whether data of the student's tokenizer can be given to the teacher as it is.

    That of a vocabulary that was trimmed from the teacher's can: its ids are mapped.
    """
    names = special_ids_of(head)
    vocabulary = VocabularyMap.of(student)
    if vocabulary is None or VocabularyMap.of(teacher) is not None:
        # Tokens that were added to the student's alone are judged by the teacher's embeddings.
        found = compare_tokenizers(teacher, student, teacher_size=sys.maxsize, special_ids=names)
        return found.status != "error"
    try:
        check_map(vocabulary, teacher, student, names)
    except ValueError:
        return False
    return True


def of_other_tokens(findings: Sequence[Finding]) -> list[Finding]:
    """Leave out what is said of two models that read the same tokens."""
    return [finding for finding in findings if finding.about not in ("length", "vocabulary")]


def check_reader(
    teacher: nn.Module,
    teacher_processing_class: Any,
    found: Alignment,
    student: nn.Module | None = None,
    processing_class: Any = None,
) -> Finding:
    """Check that tokenizers are the teacher's and the student's, and report what is aligned."""
    own = tokenizer_of(teacher)
    if own is not None and not are_equal(own, teacher_processing_class, found.head):
        return error(
            "tokenizer",
            "The tokenizer that is saved with the teacher is not the one that the data is encoded "
            "with for it: vocabulary, special tokens or the encoding of probe texts differ. "
            "Several teachers (teacher_model) must have one tokenizer; pass it as "
            "teacher_processing_class, and encode the data for the teacher with it.",
        )
    try:
        check_vocabulary(teacher_processing_class, teacher, "teacher")
        check_padding(teacher_processing_class.pad_token_id, teacher, "teacher")
        ours = None if student is None else tokenizer_of_data(student, processing_class)
        if student is not None and ours is not None:
            check_vocabulary(ours, student, "student")
    except ValueError as problem:
        return error("tokenizer", str(problem))
    how = "each reads its own encoding" if found.unit is None else f"aligned by {found.unit}"
    return info("tokenizer", f"Different tokenizers: {how}.")
