"""Students that are made from their teacher."""

from hf_distill.students.basis import basis_of, save_basis

__all__ = ["basis_of", "save_basis"]
