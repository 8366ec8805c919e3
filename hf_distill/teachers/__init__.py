"""Where the teacher's signal comes from."""

from hf_distill.teachers.live import LiveTeacher, input_names, inputs_for, load_teacher

__all__ = ["LiveTeacher", "input_names", "inputs_for", "load_teacher"]
