"""Knowledge distillation for the Hugging Face Trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_distill._version import __version__

if TYPE_CHECKING:
    from hf_distill.cli.shrink_run import ShrinkResult, shrink
    from hf_distill.compatibility import PairReport, check_pair
    from hf_distill.exporting import ExportReport, export
    from hf_distill.layers import TeacherRecorderCallback
    from hf_distill.seq2seq import (
        Seq2SeqDistillationTrainer,
        Seq2SeqDistillationTrainingArguments,
    )
    from hf_distill.students import create_student
    from hf_distill.tasks.question_answering.answering import QuestionAnswerer
    from hf_distill.teachers.caching import cache_teacher_outputs, load_teacher_outputs
    from hf_distill.teachers.imported import load_teacher_column
    from hf_distill.trainer import DistillationTrainer
    from hf_distill.training_args import DistillationTrainingArguments

__all__ = [
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "ExportReport",
    "PairReport",
    "QuestionAnswerer",
    "Seq2SeqDistillationTrainer",
    "Seq2SeqDistillationTrainingArguments",
    "ShrinkResult",
    "TeacherRecorderCallback",
    "__version__",
    "cache_teacher_outputs",
    "check_pair",
    "create_student",
    "export",
    "load_teacher_column",
    "load_teacher_outputs",
    "shrink",
]

# Imported when first used: `hf-distill --help` should not wait for torch.
_HOMES = {
    "DistillationTrainer": "hf_distill.trainer",
    "DistillationTrainingArguments": "hf_distill.training_args",
    "ExportReport": "hf_distill.exporting",
    "PairReport": "hf_distill.compatibility.check",
    "QuestionAnswerer": "hf_distill.tasks.question_answering.answering",
    "Seq2SeqDistillationTrainer": "hf_distill.seq2seq",
    "Seq2SeqDistillationTrainingArguments": "hf_distill.seq2seq",
    "ShrinkResult": "hf_distill.cli.shrink_run",
    "TeacherRecorderCallback": "hf_distill.layers",
    "cache_teacher_outputs": "hf_distill.teachers.caching",
    "check_pair": "hf_distill.compatibility.check",
    "create_student": "hf_distill.students",
    "export": "hf_distill.exporting",
    "load_teacher_column": "hf_distill.teachers.imported",
    "load_teacher_outputs": "hf_distill.teachers.caching",
    "shrink": "hf_distill.cli.shrink_run",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hf_distill' has no attribute {name!r}")
