"""Tasks with options, as the commands make them."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from hf_distill.tasks import create_task
from hf_distill.tasks.base import Task
from hf_distill.tasks.options import TaskArguments


def any_task(name: str, **options: Any) -> Task:
    return create_task(name, TaskArguments(**options))


def classification_rows(table: Dataset, **options: Any) -> Dataset:
    return any_task("text-classification", **options).rows(table)


def tagged_rows(table: Dataset, **options: Any) -> Dataset:
    return any_task("token-classification", **options).rows(table)
