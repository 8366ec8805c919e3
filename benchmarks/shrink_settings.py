"""Settings for as many steps as ``hf-distill shrink`` trains: the runs behind its defaults.

Six epochs in batches of 16 on the prediction layer alone, from a created student, scored before and
eight times on the way. Started, stopped and resumed as ``created_students.py``, with its options:

    python benchmarks/shrink_settings.py --data_dir DIR --squad_teacher DIR --large_encoder DIR \
        --small_encoder DIR
    python benchmarks/shrink_settings.py --table
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from created_students import ALL_JOBS, Created, add_options
from report import RESULTS, circumstances, read_json, replace_section
from squad_table import spread
from task_distillation import Job

SCORINGS = 8
STEPS = {"squad": 816, "sst2": 3000, "wnut17": 1272}


class Setting(NamedTuple):
    """The task and student of a run, and what its training differs in."""

    job: str
    student: str
    rate: str
    temperature: str
    weight: str
    dropout: str = "0"


SETTINGS = (
    *(Setting("sst2", "6x192", rate, "4", "1.0") for rate in ("5e-5", "1e-4", "3e-4")),
    Setting("sst2", "3x192", "1e-4", "4", "1.0"),
    *(Setting("sst2", size, "1e-4", "4", "0.5") for size in ("6x192", "3x192")),
    *(Setting("wnut17", "6x192", rate, "2", "0.5") for rate in ("3e-5", "1e-4")),
    *(Setting("wnut17", "6x192", rate, "4", "1.0") for rate in ("5e-5", "1e-4")),
    *(Setting("wnut17", "3x192", "1e-4", "4", weight) for weight in ("1.0", "0.5", "0.0")),
    Setting("wnut17", "3x192", "3e-4", "4", "0.5"),
    *(Setting("squad", "6x192", rate, "4", "1.0") for rate in ("1e-4", "3e-4")),
    Setting("sst2", "6x192", "5e-5", "4", "1.0", "0.1"),
    Setting("wnut17", "6x192", "5e-5", "4", "1.0", "0.1"),
    Setting("squad", "6x192", "3e-4", "4", "1.0", "0.1"),
    *(Setting("wnut17", "3x192", rate, "1", "1.0") for rate in ("5e-5", "1e-4", "3e-4")),
    Setting("wnut17", "3x192", "3e-4", "1", "0.5"),
    Setting("wnut17", "6x192", "5e-5", "1", "1.0"),
    Setting("sst2", "6x192", "5e-5", "1", "1.0"),
)


def measure(material: Created, job: Job, setting: Setting, seed: int) -> dict[str, Any]:
    """Train with a setting, unless that is done; the scores on the way."""
    student, _ = material.create(job, setting.student, seed)
    steps, cpu = STEPS[job.name], time.process_time()
    every, output = str(steps // SCORINGS), material.work / result_name(setting, seed)
    if setting.dropout != "0":  # those that are there have none
        student = _with_dropout(student, float(setting.dropout), material.work)
    if not (output / "metrics.json").exists():
        material.train(
            job, student, output, seed, "--max_steps", str(steps), "--learning_rate",
            setting.rate, "--per_device_train_batch_size", "16", "--temperature",
            setting.temperature, "--distillation_loss_weight", setting.weight,
            "--teacher_outputs", material.outputs(job), "--save_strategy", "steps",
            "--save_steps", every, "--save_total_limit", "1", "--eval_strategy", "steps",
            "--eval_steps", every, "--train_sampling_strategy", "random",
        )  # fmt: skip
    state = read_json(next(output.glob("checkpoint-*/trainer_state.json")))
    name = f"eval_{job.metric}"
    curve = {str(log["step"]): log[name] for log in state["log_history"] if name in log}
    return {
        **setting._asdict(), "seed": seed, "steps": steps, "curve": curve,
        "start": material.score(job, student)[job.metric],
        "teacher": material.score(job, Path(material.teacher(job)))[job.metric],
        "cpu_seconds": round(time.process_time() - cpu, 1), **circumstances(),
    }  # fmt: skip


def _with_dropout(student: Path, dropout: float, work: Path) -> Path:
    """Copy a student and set its dropout; the new folder."""
    folder = work / f"{student.name}-dropout-{dropout:g}"
    shutil.copytree(student, folder, dirs_exist_ok=True)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def result_name(setting: Setting, seed: int | str) -> str:
    """Return the name of the result of a run."""
    *words, dropout = setting
    more = "" if dropout == "0" else f"-dropout-{dropout}"
    return f"shrink-settings-{'-'.join(words)}{more}-{seed}"


def render(jobs: list[Job]) -> str:
    """Return a row per setting: the scores before, half-way, at the end and at their best."""
    lines = [
        "| task | student | learning rate | T | weight | dropout | teacher | untrained | "
        "half-way | end | best |",
        f"|{'---|' * 11}",
    ]
    titles = {job.name: job.title for job in jobs}
    for setting in SETTINGS:
        paths = sorted(RESULTS.glob(f"{result_name(setting, '[0-9]')}.json"))
        runs = [read_json(path) for path in paths]
        if not runs or setting.job not in titles:
            continue
        curves = [[*run["curve"].values()] for run in runs]
        columns = [
            [run["teacher"] for run in runs], [run["start"] for run in runs],
            [curve[SCORINGS // 2 - 1] for curve in curves], [curve[-1] for curve in curves],
            [max(curve) for curve in curves],
        ]  # fmt: skip
        cells = [titles[setting.job], *setting[1:], *map(spread, columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.set_defaults(jobs=list(STEPS), seeds=[0])
    options = parser.parse_args()
    jobs = {job.name: job for job in ALL_JOBS if job.name in options.jobs}
    for seed in () if options.table else options.seeds:
        material = Created(options)
        for setting in SETTINGS:
            if (job := jobs.get(setting.job)) is not None:
                run = partial(measure, material, job, setting, seed)
                material.run_once(result_name(setting, seed), job, run)
    replace_section("shrink_settings", render([*jobs.values()]))


if __name__ == "__main__":
    main()
