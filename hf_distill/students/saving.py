"""A created student on disk: its weights, its tokenizer, and how it was made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from hf_distill.compatibility.origin import STUDENT_FILE, kept_record
from hf_distill.compatibility.tokenizers import tokenizer_of
from hf_distill.compatibility.vocabulary_map import VocabularyMap, mark_of
from hf_distill.files import display_name, temporary_path, write_json
from hf_distill.students.sentence_embeddings import is_sentence_transformer


def save_student(
    student: Any, folder: str | os.PathLike[str], processing_class: Any = None
) -> dict[str, Any]:
    """Write a student of ``create_student`` to a folder.

    Args:
        student: a model of transformers, or a ``SentenceTransformer``; it is written with
            ``save_pretrained``, and what it was made of as ``student.json``.
        folder: is made if need be; a student that is there already is replaced.
        processing_class: its tokenizer or processor, which is saved with it. A student with a
            trimmed vocabulary has its own, ``tokenizer_of(student)``, which is the default.

    Returns:
        The content of ``student.json``.

    Raises:
        ValueError: ``create_student`` did not make the model, or its vocabulary is trimmed and
            ``processing_class`` has another, or another model is in the folder, such as the
            teacher.
        OSError: the folder cannot be written to.
    """
    encoder = student[0].model if is_sentence_transformer(student) else student
    record = kept_record(encoder)
    if record is None:
        raise ValueError(
            f"student is a {type(student).__name__} that create_student did not make: use "
            "save_pretrained."
        )
    mark = mark_of(encoder)
    if mark is not None and processing_class is None:
        processing_class = tokenizer_of(encoder)
    if mark is not None and processing_class is not None:
        vocabulary = VocabularyMap.of(processing_class)
        if vocabulary is None or vocabulary.mark != mark:
            raise ValueError(
                f"processing_class is a {type(processing_class).__name__} that does not have the "
                "student's trimmed vocabulary: pass tokenizer_of(student), or leave it out."
            )
    target = Path(folder)
    found = [name for name in ("modules.json", "config.json") if (target / name).exists()]
    is_of_another_kind = "modules.json" in found and encoder is student
    if is_of_another_kind or (found and not (target / STUDENT_FILE).exists()):
        raise ValueError(
            f"folder={display_name(target)!r} holds a model that is not a student of this kind "
            f"({found[0]}), whose files would be mixed up: choose another folder."
        )
    target.mkdir(parents=True, exist_ok=True)
    with temporary_path(target / "student") as made:
        student.save_pretrained(made)
        if processing_class is not None:
            processing_class.save_pretrained(made)
        write_json(made / STUDENT_FILE, record)
        shutil.copytree(made, target, copy_function=os.replace, dirs_exist_ok=True)
    return record
