"""A teacher with another tokenizer: both encodings in a batch, and logits for the same rows."""

from hf_distill.alignment.base import (
    INPUT_IDS,
    INPUTS,
    PREFIX,
    Alignment,
    SameEncoding,
    TokenColumn,
)
from hf_distill.alignment.blocks import encode_texts_for_teacher
from hf_distill.alignment.collator import BothEncodings, TeacherBatches
from hf_distill.alignment.encoding import TeacherReader, encode_for_teacher, teacher_inputs
from hf_distill.alignment.find import find_alignment

__all__ = [
    "INPUTS",
    "INPUT_IDS",
    "PREFIX",
    "Alignment",
    "BothEncodings",
    "SameEncoding",
    "TeacherBatches",
    "TeacherReader",
    "TokenColumn",
    "encode_for_teacher",
    "encode_texts_for_teacher",
    "find_alignment",
    "teacher_inputs",
]
