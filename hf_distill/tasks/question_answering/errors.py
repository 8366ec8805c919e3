"""Names of the errors of question-answering data."""

from __future__ import annotations

from hf_distill.tasks.errors import MissingLabelsError, TaskDataError

QuestionAnsweringDataError = TaskDataError
MissingAnswersError = MissingLabelsError
