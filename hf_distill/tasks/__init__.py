"""Tasks by their names on the Hub: the one place to register another.

Nothing here imports PyTorch; the module of a task is imported when the task is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_distill.tasks.base import Task
    from hf_distill.tasks.options import TaskArguments

TASKS = {
    "question-answering": "question_answering.task:QuestionAnsweringTask",
    "text-classification": "text_classification:TextClassificationTask",
    "token-classification": "token_classification:TokenClassificationTask",
    "fill-mask": "language_modeling:MaskedLanguageModelingTask",
    "text-generation": "language_modeling:CausalLanguageModelingTask",
    "summarization": "sequence_to_sequence:SummarizationTask",
    "translation": "sequence_to_sequence:TranslationTask",
}
"""Module and class of each task."""


def task_class(name: str) -> type[Task]:
    """Import the class of a task.

    Raises:
        ValueError: there is no such task; lists those that exist.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; the tasks are: {', '.join(TASKS)}.")
    module, _, attribute = TASKS[name].partition(":")
    found: type[Task] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return found


def create_task(name: str, options: TaskArguments) -> Task:
    """Create a task with its options.

    Raises:
        ValueError: there is no such task, or an option has a bad value.
    """
    return task_class(name)(options)


def task_of_class(class_name: str, config: Any) -> str | None:
    """Return the task of a class of models; ``None`` if it has none of those here."""
    from hf_distill.heads import head_of_class

    head = head_of_class(class_name, config)
    return head.task if head is not None and head.task in TASKS else None
