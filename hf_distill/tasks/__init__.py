"""Data, label names and metrics of the tasks beside question answering.

Everything here works without the command line: tables become rows of a task, rows become the
inputs of a model, and the outputs of a model become scores.
"""

from __future__ import annotations

from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.tables import load_table

__all__ = ["TaskDataError", "load_table"]
