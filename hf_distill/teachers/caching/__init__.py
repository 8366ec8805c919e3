"""A teacher's outputs, computed once and kept as columns of the data set."""

from hf_distill.teachers.caching.cache import (
    cache_teacher_outputs,
    cached_teacher,
    load_teacher_outputs,
    teacher_tokenizer,
)

__all__ = [
    "cache_teacher_outputs",
    "cached_teacher",
    "load_teacher_outputs",
    "teacher_tokenizer",
]
