"""A teacher's outputs, computed once and kept as columns of the data set."""

from hf_distill.teachers.caching.cache import (
    cache_teacher_outputs,
    cached_teacher,
    load_teacher_outputs,
    teacher_tokenizer,
)
from hf_distill.teachers.caching.log_probs import (
    check_prompts_file,
    import_log_probs,
    write_token_ids,
)

__all__ = [
    "cache_teacher_outputs",
    "cached_teacher",
    "check_prompts_file",
    "import_log_probs",
    "load_teacher_outputs",
    "teacher_tokenizer",
    "write_token_ids",
]
