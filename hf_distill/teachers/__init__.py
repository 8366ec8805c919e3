"""Where the teacher's signal comes from."""

from hf_distill.teachers.base import Teacher
from hf_distill.teachers.cached import CachedTeacher
from hf_distill.teachers.ensemble import EnsembleTeacher
from hf_distill.teachers.live import (
    LiveTeacher,
    block_classes,
    input_names,
    inputs_for,
    load_teacher,
)

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
