"""Students that are made from their teacher."""

from hf_distill.compatibility.tokenizers import tokenizer_of
from hf_distill.students.basis import basis_of, save_basis
from hf_distill.students.create import create_student
from hf_distill.students.saving import save_student
from hf_distill.students.vocabulary import trim_vocabulary

__all__ = [
    "basis_of",
    "create_student",
    "save_basis",
    "save_student",
    "tokenizer_of",
    "trim_vocabulary",
]
