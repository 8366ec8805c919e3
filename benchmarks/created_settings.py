"""Settings that train a created student: the runs behind the defaults of ``hf-distill shrink``.

The student of half the width (6 × 192 of ``created_students.py``, which must have made it) on the
prediction layer alone, with each learning rate, and with each way of weighting teacher and labels.
Started, stopped and resumed as ``created_students.py``, with its options:

    python benchmarks/created_settings.py --data_dir DIR --squad_teacher DIR --large_encoder DIR \
        --small_encoder DIR
    python benchmarks/created_settings.py --table
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

from created_students import ALL_JOBS, STEPS, Created, add_options
from created_students_table import scores
from report import circumstances, replace_section
from squad_table import spread
from task_distillation import Job

STUDENT = "6x192"
RATES = ("1e-4", "3e-4", "5e-4")
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "t4w1": ("T 4, teacher alone", ("--temperature", "4", "--distillation_loss_weight", "1")),
    "t2w1": ("T 2, teacher alone", ("--temperature", "2", "--distillation_loss_weight", "1")),
    "t2w05": ("T 2, half labels", ("--temperature", "2", "--distillation_loss_weight", "0.5")),
    "labels": ("labels alone", ("--baseline",)),
}


def measure(material: Created, job: Job, way: str, rate: str, seed: int) -> dict[str, Any]:
    """Train the student with these settings, and return its scores."""
    student, _ = material.create(job, STUDENT, seed)
    options, cpu = WAYS[way][1], time.process_time()
    outputs = () if "--baseline" in options else ("--teacher_outputs", material.outputs(job))
    trained = material.train(
        job, student, material.work / f"settings-{job.name}-{way}-{rate}-{seed}", seed,
        "--max_steps", str(STEPS[job.name]), "--learning_rate", rate, *outputs, *options,
    )  # fmt: skip
    return {
        "job": job.name, "way": way, "learning_rate": float(rate), "seed": seed,
        "steps": STEPS[job.name], "eval": trained["eval"],
        "cpu_seconds": round(time.process_time() - cpu, 1), **circumstances(),
    }  # fmt: skip


def render(jobs: list[Job]) -> str:
    """Return a table for each task, with a column for each learning rate."""
    parts = []
    for job in jobs:
        start = scores(f"created-{job.name}-{STUDENT}-untrained-0-[0-9]", job.metric)
        lines = [
            f"**{job.title}**, {STEPS[job.name]} steps; untrained {spread(start)} ({len(start)})\n",
            f"| | {' | '.join(RATES)} |",
            f"|---|{'---|' * len(RATES)}",
        ]
        for way, (title, _) in WAYS.items():
            cells = []
            for rate in RATES:
                found = scores(f"settings-{job.name}-{way}-{rate}-[0-9]", job.metric)
                cells.append(f"{spread(found)} ({len(found)})" if found else "–")
            lines.append(f"| {title} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.set_defaults(jobs=["squad", "sst2", "wnut17"])
    parser.add_argument("--rates", nargs="+", default=RATES, choices=RATES)
    options = parser.parse_args()
    jobs = [job for job in ALL_JOBS if job.name in options.jobs]
    for seed in () if options.table else options.seeds:
        material = Created(options)
        for job in jobs:
            for rate in options.rates:
                for way in WAYS:
                    result = f"settings-{job.name}-{way}-{rate}-{seed}"
                    run = partial(measure, material, job, way, rate, seed)
                    material.run_once(result, job, run)
    replace_section("created_settings", render(jobs))


if __name__ == "__main__":
    main()
