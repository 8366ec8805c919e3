"""Can this teacher teach this student? What would train quietly and badly is refused here."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from hf_distill.heads import TaskHead, find_head

logger = logging.getLogger(__name__)

PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "Überraschung! Wo liegt Łódź? C'est où, ça?",
    "tokenisation, e-mail@example.org, 3.14 % (unbelievable)",
    "東京は日本の首都です。 Москва",
)
# Without one of them, transformers makes up an empty tokenizer instead of raising.
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)


def check_models(teacher: nn.Module, student: nn.Module, head: TaskHead) -> None:
    """Check that two models fit together, before the teacher is frozen.

    Raises:
        ValueError: if they are one model, share weights, have different tasks or labels.
    """
    student_parameters = {id(parameter) for parameter in student.parameters()}
    shared = [name for name, p in teacher.named_parameters() if id(p) in student_parameters]
    if shared:
        raise ValueError(
            f"teacher_model and model share {len(shared)} weights (the first is {shared[0]!r}); "
            "the teacher is frozen, so the student could not learn. Give the student weights of "
            "its own (copy.deepcopy)."
        )
    if isinstance(find_head(teacher), TaskHead) and type(find_head(teacher)) is not type(head):
        raise ValueError(
            f"teacher_model is a {type(teacher).__name__} and model a {type(student).__name__}; "
            "both must have the same task."
        )
    teacher_config, student_config = (getattr(m, "config", None) for m in (teacher, student))
    if teacher_config is not None and student_config is not None:
        head.check_models(student_config, teacher_config)


def check_tokenizers(teacher: nn.Module, student: nn.Module, processing_class: Any) -> None:
    """Check that the ids that the data consists of mean the same to the teacher.

    The teacher's tokenizer is read from where the teacher was loaded, a directory or the Hub.

    Args:
        teacher: the teacher.
        student: the student.
        processing_class: what the data was prepared with; only a tokenizer is checked.

    Raises:
        ValueError: if vocabulary, special tokens or the encoding of a probe text differ.
    """
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        return
    tokenizer = processing_class
    teacher_tokenizer = _tokenizer_of(teacher)
    if teacher_tokenizer is not None:
        compare_tokenizers(teacher_tokenizer, tokenizer)
        return
    size = getattr(getattr(teacher, "config", None), "vocab_size", None)
    if size is not None and len(tokenizer) > size:
        raise ValueError(
            f"The tokenizer (processing_class) has {len(tokenizer)} tokens and the teacher knows "
            f"only {size}: it was trained with another tokenizer. Choose a teacher and a student "
            "that share one."
        )
    student_size = getattr(getattr(student, "config", None), "vocab_size", None)
    if size is not None and size != student_size:
        logger.warning(
            "The teacher's vocabulary has %s entries and the student's %s, and the teacher's "
            "tokenizer is not at hand to compare; make sure that both use the same one, or pass "
            "teacher_model as a directory that holds its tokenizer, too.",
            size,
            student_size,
        )


def compare_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Check that two tokenizers give the same ids.

    Raises:
        ValueError: names the first difference: vocabulary, special tokens, or a probe text.
    """
    remedy = (
        "A teacher's predictions mean nothing for ids of another tokenizer; choose a teacher and a "
        "student that share one, and prepare the data with it (processing_class)."
    )
    teacher_vocabulary, student_vocabulary = teacher.get_vocab(), student.get_vocab()
    if teacher_vocabulary != student_vocabulary:
        differing = sorted(
            set(teacher_vocabulary.items()) ^ set(student_vocabulary.items()),
            key=lambda item: (item[1], item[0]),
        )
        token, token_id = differing[0]
        raise ValueError(
            f"Teacher and student have different tokenizers: {len(teacher_vocabulary)} and "
            f"{len(student_vocabulary)} tokens, and {token!r} (id {token_id}) is only in one of "
            f"them. {remedy}"
        )
    for name in ("cls_token_id", "sep_token_id", "pad_token_id", "mask_token_id", "unk_token_id"):
        ids = getattr(teacher, name, None), getattr(student, name, None)
        if ids[0] != ids[1]:
            raise ValueError(
                f"Teacher and student have different tokenizers: {name} is {ids[0]} for the "
                f"teacher and {ids[1]} for the student. {remedy}"
            )
    for probe in PROBES:
        if teacher(probe)["input_ids"] != student(probe)["input_ids"]:
            raise ValueError(
                "Teacher and student have the same vocabulary, but encode the text "
                f"{probe!r} differently (lower-casing or accents, often). {remedy}"
            )


def _tokenizer_of(model: nn.Module) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model's weights, on this machine or on the Hub; None without one."""
    source: Any = getattr(model, "name_or_path", None)
    try:
        if not source or not any(_has_file(source, name) for name in TOKENIZER_FILES):
            return None
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):  # not a directory or a repository; a tokenizer of another kind
        return None


def _has_file(source: str, name: str) -> bool:
    found = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None
