"""Attention losses with a student created from its teacher: the runs behind RESULTS.md.

The student of half the depth has the teacher's heads and basis (3 × 384 of
``created_students.py``, which must have made it). Each row is a way of spending the first steps;
the prediction layer follows. Started, stopped and resumed as ``created_students.py``, with its
options:

    python benchmarks/created_attention.py --data_dir DIR --squad_teacher DIR --large_encoder DIR \
        --small_encoder DIR
    python benchmarks/created_attention.py --table
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from created_students import ALL_JOBS, STEPS, Created, add_options
from created_students_table import scores
from report import circumstances, replace_section
from squad_table import spread
from task_distillation import Job

STUDENT = "3x384-fitted"
LAST = ("--layer_mapping", "3:6")
LIGHT = "0.03"
"""Makes the loss of scores about as large as that of the hidden states."""


@dataclass(frozen=True)
class Row:
    """One way of training."""

    title: str
    stages: tuple[tuple[float, tuple[str, ...]], ...]
    """Of each first stage: its share of the steps of the prediction layer, and its options."""


def _with(loss: str) -> Row:
    options = (*LAST, "--attention_loss", loss)
    return Row(f"hidden states and attention {loss}, last layer", ((1, options),))


def _after(loss: str) -> Row:
    options = (*LAST, "--attention_loss", loss, "--hidden_states_loss_weight", "0")
    title = f"hidden states, then attention {loss} of the last layer"
    return Row(title, ((0.5, ()), (0.5, options)))


HIDDEN = "hidden states, all layers"
"""The row that ``created_students.py`` has run."""

ROWS = {
    "hidden-last": Row("hidden states, last layer", ((1, LAST),)),
    **{f"with-{loss}": _with(loss) for loss in ("scores", "probabilities", "relations")},
    **{f"after-{loss}": _after(loss) for loss in ("scores", "probabilities", "relations")},
    "light-scores": Row(
        f"hidden states and attention scores at weight {LIGHT}, last layer",
        ((1, (*LAST, "--attention_loss", "scores", "--attention_loss_weight", LIGHT)),),
    ),
    "light-relations": Row(
        f"hidden states and attention relations at weight {LIGHT}, last layer",
        ((1, (*LAST, "--attention_loss", "relations", "--attention_loss_weight", LIGHT)),),
    ),
    "hidden-longer": Row(f"{HIDDEN}, three times as long", ((3, ()),)),
    "relations-longer": Row(
        "hidden states and attention relations, last layer, three times as long",
        ((3, (*LAST, "--attention_loss", "relations")),),
    ),
}


def measure(material: Created, job: Job, name: str, seed: int) -> dict[str, Any]:
    """Train by the commands of a row, and return its scores."""
    student, _ = material.create(job, STUDENT, seed)
    last, cpu = STEPS[job.name] // 2, time.process_time()
    first, losses = 0, []
    for number, (share, options) in enumerate(ROWS[name].stages):
        output = material.work / f"attention-{job.name}-{name}-{seed}-{number}"
        steps = round(share * last)
        material.train(
            job, student, output, seed, "--stage", "intermediate", "--max_steps", str(steps),
            "--teacher_model", material.teacher(job), *options,
        )  # fmt: skip
        student, first = output, first + steps
        losses.append(last_losses(output))
    trained = material.train(
        job, student, material.work / f"attention-{job.name}-{name}-{seed}", seed,
        "--max_steps", str(last), "--teacher_outputs", material.outputs(job),
        *job.distillation.split(),
    )  # fmt: skip
    return {
        "job": job.name, "student": STUDENT, "row": name, "seed": seed, "steps": [first, last],
        "losses": losses, "eval": trained["eval"],
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **circumstances(),
    }  # fmt: skip


def last_losses(folder: Path) -> dict[str, float]:
    """Return the parts of the loss of a stage as they were logged last; none of a short stage."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    entries = [{}, *(one for one in state["log_history"] if "loss" in one)]
    return {name: value for name, value in entries[-1].items() if name.startswith("loss_")}


def render(jobs: list[Job]) -> str:
    """Return a table with a column for each task."""
    lines = [
        f"| first steps | {' | '.join(job.title for job in jobs)} |",
        f"|---|{'---|' * len(jobs)}",
    ]
    rows = {HIDDEN: f"created-{{}}-{STUDENT}-stages-{{}}-[0-9]"}
    rows |= {row.title: f"attention-{{}}-{name}-[0-9]" for name, row in ROWS.items()}
    for title, pattern in rows.items():
        cells = []
        for job in jobs:
            found = scores(pattern.format(job.name, STEPS[job.name]), job.metric)
            cells.append(f"{spread(found)} ({len(found)})" if found else "–")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.set_defaults(jobs=["sst2", "squad"])
    options = parser.parse_args()
    jobs = [job for job in ALL_JOBS if job.name in options.jobs]
    if not options.table:
        material = Created(options)
        for seed, job, name in itertools.product(options.seeds, jobs, ROWS):
            result = f"attention-{job.name}-{name}-{seed}"
            material.run_once(result, job, partial(measure, material, job, name, seed))
    replace_section("created_attention", render(jobs))


if __name__ == "__main__":
    main()
