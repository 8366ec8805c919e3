"""A created student on disk: its weights, its tokenizer, and how it was made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_distill.files import temporary_path, write_json
from hf_distill.students.sentence_embeddings import is_sentence_transformer

STUDENT_FILE = "student.json"
_ATTRIBUTE = "distillation_record"


def keep_record(student: PreTrainedModel, record: dict[str, Any]) -> None:
    """Note on a student how it was made, for ``save_student``."""
    vars(student)[_ATTRIBUTE] = record


def save_student(
    student: Any, folder: str | os.PathLike[str], processing_class: Any = None
) -> dict[str, Any]:
    """Write a student of ``create_student`` to a folder.

    Args:
        student: a model of transformers, or a ``SentenceTransformer``; it is written with
            ``save_pretrained``, and what it was made of as ``student.json``.
        folder: is made if need be.
        processing_class: its tokenizer or processor, which is saved with it.

    Returns:
        The content of ``student.json``.

    Raises:
        ValueError: ``create_student`` did not make the model.
        OSError: the folder cannot be written to.
    """
    encoder = student[0].model if is_sentence_transformer(student) else student
    record: dict[str, Any] | None = vars(encoder).get(_ATTRIBUTE)
    if record is None:
        raise ValueError(
            f"student is a {type(student).__name__} that create_student did not make: use "
            "save_pretrained."
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with temporary_path(target / "student") as made:
        student.save_pretrained(made)
        if processing_class is not None:
            processing_class.save_pretrained(made)
        write_json(made / STUDENT_FILE, record)
        shutil.copytree(made, target, copy_function=os.replace, dirs_exist_ok=True)
    return record
