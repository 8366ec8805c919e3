"""Students that are made from their teacher."""

from hf_distill.compatibility.tokenizers import tokenizer_of
from hf_distill.students.create import create_student
from hf_distill.students.saving import save_student
from hf_distill.students.vocabulary import trim_vocabulary

__all__ = [
    "create_student",
    "save_student",
    "tokenizer_of",
    "trim_vocabulary",
]
