"""Where the teacher's signal comes from."""

from hf_distill.teachers.cached import CachedTeacher
from hf_distill.teachers.ensemble import EnsembleTeacher
from hf_distill.teachers.live import (
    LiveTeacher,
    block_classes,
    input_names,
    inputs_for,
    load_teacher,
)

Teacher = LiveTeacher | EnsembleTeacher | CachedTeacher
"""Called with a batch, it gives a teacher's outputs for it."""

__all__ = [
    "CachedTeacher",
    "EnsembleTeacher",
    "LiveTeacher",
    "Teacher",
    "block_classes",
    "input_names",
    "inputs_for",
    "load_teacher",
]
