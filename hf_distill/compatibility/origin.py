"""Of which teacher a student was made, as ``create_student`` notes on it and in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from hf_distill.files import display_name, read_json
from hf_distill.heads import unwrapped

STUDENT_FILE = "student.json"
_ATTRIBUTE = "distillation_record"


def keep_record(student: nn.Module, record: dict[str, Any] | None) -> None:
    """Note on a student how it was made; ``None`` is not known."""
    if record is not None:
        vars(student)[_ATTRIBUTE] = record


def kept_record(student: nn.Module) -> dict[str, Any] | None:
    """Return what ``keep_record`` noted."""
    return vars(unwrapped(student)).get(_ATTRIBUTE)


def read_record(source: str) -> dict[str, Any] | None:
    """Return how the student in a folder was made; ``None`` of any other model."""
    file = Path(source).expanduser() / STUDENT_FILE
    return read_json(file, "make the student again") if file.is_file() else None


def is_made_of(student: nn.Module, teacher: nn.Module, name: str | None = None) -> bool:
    """Return whether a student was made of a teacher, as far as it is known.

    Args:
        student: the student.
        teacher: the teacher.
        name: the teacher's, if its module does not know it.
    """
    named: Any = getattr(unwrapped(student), "name_or_path", None)
    record = kept_record(student) or (read_record(named) if named else None) or {}
    name = name or getattr(unwrapped(teacher), "name_or_path", None)
    return bool(name) and record.get("teacher") == display_name(str(name))
