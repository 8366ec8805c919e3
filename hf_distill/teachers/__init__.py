"""Where the teacher's signal comes from."""

from hf_distill.teachers.live import LiveTeacher, load_teacher

__all__ = ["LiveTeacher", "load_teacher"]
