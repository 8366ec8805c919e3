"""``hf-distill shrink`` by its defaults, on three tasks at several speed-ups.

Each run is the command as a user types it, with ``--speedup``, ``--seed`` and ``--baseline`` alone;
with ``--augment --masked_lm DIR`` also with ``--augment``, in rows of their own.
The predicted time is that of as many steps as were trained: a training may end early. It times
models, so let it have the machine to itself, one run at a time. What has a result is not run again,
and a run that was stopped continues:

    python benchmarks/shrink_tasks.py --data_dir DIR --squad_teacher DIR --large_encoder DIR \
        --small_encoder DIR
    python benchmarks/shrink_tasks.py --table
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from statistics import mean
from typing import Any

from created_students import ALL_JOBS, Created, add_options
from report import RESULTS, circumstances, read_json, replace_section
from squad_table import spread
from task_distillation import Job, run_command

SPEEDUPS = ("2", "3", "4")
AIMS = {"2": 98, "3": 95, "4": 92}
"""Percent of the teacher's metric."""
VERSIONS = 10
COLUMNS = {
    "wnut17": "--text_column tokens --label_column tags",
    "sst2": "--text_column sentence",
    "squad": "",
    "squad-all": "",
}
"""Those that are augmented."""
MODELS = {
    "teacher": "teacher",
    "student": "student_distilled",
    "alone": "student_alone",
    "int8": "int8",
}


def measure(material: Created, job: Job, speedup: str, seed: int) -> dict[str, Any]:
    """Shrink the teacher by one command; what it predicted and what came of it."""
    folder = material.work / result_name(job, speedup, seed, augment=material.options.augment)
    more = []
    if material.options.augment:
        more = ["--augment", str(VERSIONS), "--augment_model", material.options.masked_lm,
                *COLUMNS[job.name].split()]  # fmt: skip
    before = sum(os.times()[:4])
    run_command("shrink", "--task", job.task, "--teacher_model", material.teacher(job),
                *material.data(job), "--speedup", speedup, "--seed", str(seed), "--baseline",
                "--use_cpu", "--output_dir", str(folder), *more)  # fmt: skip
    content = read_json(folder / "shrink.json")
    plan, models = content["plan"], read_json(folder / "comparison" / "comparison.json")["models"]
    by_role = {**models, **{one["name"]: one for one in models.values()}}
    found = {name: by_role[role] for name, role in MODELS.items() if role in by_role}
    predicted = dict(plan["seconds"])
    for name in ("student", "student_alone"):  # a training that ends early takes its share
        run = read_json(folder / name / "metrics.json")["steps"]
        predicted[name] *= run / plan["decisions"]["prediction_steps"]["value"]
    return {
        "job": job.name, "speedup": speedup, "seed": seed, "shape": plan["shape"],
        "scores": {name: one["quality"][job.metric] for name, one in found.items()},
        "ms": {name: one["latency"]["median"] for name, one in found.items()},
        "parameters": found["student"]["parameters"],
        "predicted": {"speedup": plan["speedup"], "seconds": sum(plan["seconds"].values()),
                      "seconds_of_steps_run": sum(predicted.values())},
        "seconds": sum(content["seconds"].values()), "failures": content["failures"],
        "cpu_seconds": round(sum(os.times()[:4]) - before, 1), **circumstances(),
    }  # fmt: skip


def result_name(job: Job, speedup: str, seed: int | str, *, augment: bool) -> str:
    """Return the name of the result of a run."""
    return f"shrink-{job.name}-{speedup}{'-augmented' if augment else ''}-{seed}"


def render(jobs: list[Job]) -> str:
    """Return one row per task and speed-up."""
    lines = [
        "| task | asked | shapes | teacher | student | kept (aim) | alone | gap closed | × | "
        "× int8 | int8 | predicted × | predicted time | CPU minutes |",
        f"|{'---|' * 14}",
    ]
    for job in jobs:
        for augment in (False, True):
            title = f"{job.title}, {VERSIONS} versions of each text" if augment else job.title
            for speedup in SPEEDUPS:
                name = result_name(job, speedup, "[0-9]", augment=augment)
                if paths := sorted(RESULTS.glob(f"{name}.json")):
                    lines.append(_row(title, speedup, [read_json(path) for path in paths]))
    return "\n".join(lines) + "\n"


def _row(title: str, speedup: str, runs: list[dict[str, Any]]) -> str:
    scores = [one["scores"] for one in runs]
    ms = [one["ms"] for one in runs]
    kept = mean(100 * one["student"] / one["teacher"] for one in scores)
    closed = [(one["student"] - one["alone"]) / (one["teacher"] - one["alone"]) for one in scores]
    shapes = sorted({_shape(one["shape"]) for one in runs})
    int8 = [one for one in runs if "int8" in one["scores"]]
    cells = [
        title, f"{speedup} ×", ", ".join(shapes), f"{scores[0]['teacher']:.1f}",
        f"{spread([one['student'] for one in scores])} ({len(runs)})",
        f"{kept:.1f} % ({AIMS[speedup]} %)", spread([one["alone"] for one in scores]),
        f"{100 * mean(closed):.0f} %", _times(ms, "student"),
        _times([one["ms"] for one in int8], "int8"),
        spread([one["scores"]["int8"] for one in int8]) if int8 else "–",
        f"{mean(one['predicted']['speedup'] for one in runs):.2f}",
        f"{100 * mean(_predicted_of_measured(one) for one in runs):.0f} %",
        f"{mean(one['cpu_seconds'] for one in runs) / 60:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _predicted_of_measured(run: dict[str, Any]) -> float:
    return float(run["predicted"]["seconds_of_steps_run"] / run["seconds"])


def _shape(shape: dict[str, int]) -> str:
    return f"{shape['num_hidden_layers']} × {shape['hidden_size']} ({shape['intermediate_size']})"


def _times(ms: list[dict[str, float]], name: str) -> str:
    return f"{mean(one['teacher'] / one[name] for one in ms):.2f}" if ms else "–"


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.set_defaults(jobs=["squad", "sst2", "wnut17"])
    parser.add_argument("--speedups", nargs="+", default=SPEEDUPS, choices=SPEEDUPS)
    parser.add_argument("--augment", action="store_true", help=f"{VERSIONS} versions of each text")
    parser.add_argument("--masked_lm", help="a masked language model, for --augment")
    options = parser.parse_args()
    jobs = [job for job in ALL_JOBS if job.name in options.jobs]
    for seed in () if options.table else options.seeds:
        material = Created(options)
        for speedup in options.speedups:
            for job in jobs:
                result = result_name(job, speedup, seed, augment=options.augment)
                material.run_once(result, job, partial(measure, material, job, speedup, seed))
    replace_section("shrink_tasks", render(jobs))


if __name__ == "__main__":
    main()
