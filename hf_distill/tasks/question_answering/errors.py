"""The error of question-answering data that cannot be used."""

from __future__ import annotations

from hf_distill.tasks.errors import MissingLabelsError


class QuestionAnsweringDataError(ValueError):
    """Question-answering data is missing, malformed or contradicts itself.

    The message names the source, the record (`data[3].paragraphs[0].qas[2]` or `row 17`) and
    what is wrong with it.
    """


class MissingAnswersError(QuestionAnsweringDataError, MissingLabelsError):
    """Questions have no field for their answers. For distillation alone they need none."""
