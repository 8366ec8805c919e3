"""Where the teacher's signal comes from."""

from hf_distill.teachers.base import OneProcess, Teacher
from hf_distill.teachers.cached import CachedTeacher
from hf_distill.teachers.create import (
    TeacherSource,
    choose_source,
    create_live_teacher,
    create_teacher,
)
from hf_distill.teachers.ensemble import EnsembleTeacher
from hf_distill.teachers.identity import TeacherIdentity
from hf_distill.teachers.live import LiveTeacher, block_classes

__all__ = [
    "CachedTeacher",
    "EnsembleTeacher",
    "LiveTeacher",
    "OneProcess",
    "Teacher",
    "TeacherIdentity",
    "TeacherSource",
    "block_classes",
    "choose_source",
    "create_live_teacher",
    "create_teacher",
]
