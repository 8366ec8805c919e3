"""The map between the hidden states of a created student and those of its teacher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_distill.files import write_atomically
from hf_distill.loading import find_file

BASIS_FILE = "student_basis.safetensors"
_ATTRIBUTE, _KEY = "distillation_basis", "basis"


def basis_of(student: nn.Module) -> Tensor | None:
    """Return the map P under which a created student's hidden states were fitted to its teacher's.

    ``P @ teacher_state`` is what the student's hidden state should be, and ``P.T @ student_state``
    is nearest to the teacher's: the rows of P are orthonormal up to one factor.

    Args:
        student: a model from ``create_student``, or one that was loaded from a folder or a Hub
            repository with a ``student_basis.safetensors`` (``save_basis`` writes it).

    Returns:
        Float32, ``(width of the student, width of the teacher)``; ``None`` if the student was not
        created, or is as wide as its teacher.

    Raises:
        ValueError: the file is damaged.
    """
    basis: Tensor | None = getattr(student, _ATTRIBUTE, None)
    source = getattr(student, "name_or_path", "")
    if basis is not None or not source:
        return basis
    file = find_file(source, BASIS_FILE)
    if file is None:
        return None
    try:
        return load_file(file)[_KEY]
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): create the student again, or delete the file."
        ) from error


def keep_basis(student: nn.Module, basis: Tensor) -> None:
    """Let ``basis_of`` find the map; it is not among the student's weights."""
    holder: Any = student
    setattr(holder, _ATTRIBUTE, basis.float().contiguous())


def save_basis(student: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the student's map next to its weights; nothing if it has none."""
    basis = basis_of(student)
    if basis is not None:
        write_atomically(
            Path(folder) / BASIS_FILE, lambda path: save_file({_KEY: basis.contiguous()}, path)
        )
