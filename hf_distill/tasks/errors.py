"""Errors of data that a task cannot use."""

from __future__ import annotations


class TaskDataError(ValueError):
    """Data is missing, malformed or not that of the task.

    The message names the source, column, row or record (``data[3].paragraphs[0].qas[2]``), and what
    to change. Rows are counted from 0.
    """


class MissingLabelsError(TaskDataError):
    """Data has no labels, or not in every row. For distillation alone it needs none."""
