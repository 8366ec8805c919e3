"""Writes the tables of RESULTS.md again from results/*.json: ``python benchmarks/tables.py``.

It runs no benchmark, and leaves sections that are still empty as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import attention_kernels
import augmentation
import augmentation_memory
import augmentation_peers
import cache_faults
import cached_memory
import cached_outputs
import cpu_attention
import created_attention
import created_settings
import created_students
import created_students_table
import export_int8
import export_zoo
import gpu_check
import gpu_kernels
import gradual_shrinking
import intermediate_cost
import label_words
import mutants
import other_tokenizer
import other_tokenizer_lm
import peers
import peers_correctness
import processes
import shrink_settings
import shrink_tasks
import squad_features
import squad_stages_table
import squad_table
import start_up
import step_cost
import student_dropout
import study
import study_report
import task_distillation
import tested_lines
import time_to_quality
import two_machines
from report import DOCUMENT, RESULTS, replace_section


def _load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _jobs(prefix: str) -> list[task_distillation.Job]:
    return [
        job for job in created_students.ALL_JOBS if any(RESULTS.glob(f"{prefix}-{job.name}-*.json"))
    ]


def _cached(name: str) -> Any:
    return _load("cached_outputs")[name]["results"]


def _wider_teacher() -> str:
    import wider_teacher  # needs sentence-transformers

    return wider_teacher.render(_load("wider_teacher"))


RENDER: dict[str, Callable[[], str]] = {
    "attention_kernels": lambda: attention_kernels.table(_load("attention_kernels")["rows"]),
    "augmentation_cost": lambda: augmentation.render_cost(_load("augmentation")["cost"]),
    "augmentation_peers": lambda: augmentation_peers.render(_load("augmentation_peers")["results"]),
    "augmentation_memory": lambda: augmentation_memory.render(
        _load("augmentation_memory")["results"]
    ),
    "cache_faults": lambda: cache_faults.render_trials(_load("cache_faults")),
    "cached_outputs_epochs": lambda: cached_outputs.render_epochs(_cached("epochs")),
    "cached_outputs_memory": lambda: cached_memory.render(_cached("memory")),
    "cached_outputs_size": lambda: cached_outputs.render_sizes(_cached("size")),
    "cached_outputs_step": lambda: cached_outputs.render_step(_cached("step")),
    "checkpoint_faults": lambda: cache_faults.render(
        _load("checkpoint_faults")["checkpoints"]["rows"]
    ),
    "student_dropout": lambda: student_dropout.table(_load("student_dropout")["results"]),
    "cpu_attention": lambda: cpu_attention.table(_load("cpu_attention")["rows"]),
    "created_attention": lambda: created_attention.render(_jobs("attention")),
    "created_settings": lambda: created_settings.render(_jobs("settings")),
    "created_students": lambda: created_students_table.render(
        {job.name: (job.title, job.metric) for job in created_students.ALL_JOBS}
    ),
    "export_int8": lambda: export_int8.render(_load("export_int8")),
    "export_zoo": export_zoo.render,
    "gpu_check": lambda: gpu_check.render(_load("gpu_check")),
    "gpu_kernels": lambda: gpu_kernels.render(_load("gpu_kernels")["results"]),
    "gradual_shrinking": gradual_shrinking.render,
    "hub_faults": lambda: cache_faults.render(_load("hub_faults")["push"]["rows"]),
    "intermediate_cost": lambda: intermediate_cost.render(_load("intermediate_cost")),
    "label_words": label_words.render,
    "mutants": lambda: mutants.render(_load("mutants")),
    "other_tokenizer": other_tokenizer.render,
    "other_tokenizer_lm": other_tokenizer_lm.render,
    "peers": lambda: peers.render(peers.recorded()),
    "peers_correctness": lambda: peers_correctness.render(_load("peers_correctness")),
    "processes": lambda: processes.render(_load("processes")["results"]),
    "shrink_settings": lambda: shrink_settings.render(_jobs("shrink-settings")),
    "shrink_tasks": lambda: shrink_tasks.render(_jobs("shrink")),
    "soak": lambda: _load("soak")["soak"]["verdict"] + "\n",
    "squad_distillation": squad_table.render,
    "squad_features": lambda: squad_features.render(_load("squad_features")["results"]),
    "squad_stages": squad_stages_table.render_stages,
    "start_up": lambda: start_up.table(_load("start_up")["results"]),
    "step_cost": lambda: step_cost.render(_load("step_cost")["results"]),
    "step_cost_gpu": lambda: step_cost.render(_load("step_cost_gpu")["results"]),
    "study": lambda: study_report.render(study.TASKS, study.TITLES),
    "task_distillation": task_distillation.render,
    "tested_lines": lambda: tested_lines.render(_load("tested_lines")),
    "time_to_quality": time_to_quality.render,
    "two_machines": lambda: two_machines.render(_load("two_machines")),
    "wider_teacher": _wider_teacher,
}
"""Sections of RESULTS.md by the name of their marks."""


def written() -> dict[str, str]:
    """Return the sections of RESULTS.md that have something in them."""
    document = DOCUMENT.read_text(encoding="utf-8")
    found = re.findall(r"<!-- (\w+): begin -->\n(.*?)<!-- \1: end -->", document, re.DOTALL)
    return {name: text for name, text in found if text and text != NOT_YET}


NOT_YET = "Not yet run on a GPU.\n"

if __name__ == "__main__":
    for name in written():
        replace_section(name, RENDER[name]())
