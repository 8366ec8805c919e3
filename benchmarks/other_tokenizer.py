r"""A teacher with another tokenizer beside one with the student's: the runs behind RESULTS.md.

Of each task: both teachers, the student alone, and the student with each teacher. Trainings are
`hf-distill train` commands as a user would type them, executed in this process. Each finished run
leaves one JSON file in ``results/``; what is there is not run again, so the program can be stopped
and started again, and several processes can share the work:

    OMP_NUM_THREADS=1 python benchmarks/other_tokenizer.py --data_dir DIR \
        --large_encoder DIR --other_encoder DIR
    python benchmarks/other_tokenizer.py --table

With ``--quick`` everything is run for three steps on a few rows, which takes some minutes and shows
that it runs; its figures mean nothing, and are kept in ``--work_dir``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from created_students import SQUAD, SQUAD_QUESTIONS
from report import RESULTS, circumstances, replace_section
from squad_distillation import claim
from squad_stages import write_sample
from task_distillation import COMMON, JOBS, Job, Material, run_command
from torch import nn
from transformers import AutoModel, AutoTokenizer

from hf_distill.files import write_json

WAYS = ("alone", "same", "other")
TEACHERS = {"same": "large_encoder", "other": "other_encoder"}
TEACHER_OPTIONS = {
    "squad": "--max_steps 400 --learning_rate 1e-4 --per_device_train_batch_size 24",
    **{job.name: job.teacher for job in JOBS},
}
QUICK = "--max_steps 3 --max_train_samples 48 --max_eval_samples 24 --teacher_check_samples 0"
ALL_JOBS = (SQUAD, *(job for job in JOBS if job.name != "wikitext"))


def teacher(material: Material, job: Job, way: str) -> Path:
    """The folder of a teacher."""
    return material.work / f"{job.name}-teacher-{way}"


def cut(source: str, folder: Path) -> str:
    """Make an encoder of every second layer of another one; its folder."""
    if not (folder / "config.json").exists():
        encoder: Any = AutoModel.from_pretrained(source, dtype=torch.float32)
        encoder.encoder.layer = nn.ModuleList(encoder.encoder.layer[::2])
        encoder.config.num_hidden_layers = len(encoder.encoder.layer)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        encoder.save_pretrained(folder)
    return str(folder)


def measure(material: Material, job: Job, way: str, seed: int) -> dict[str, Any]:
    """Train and score by one command; ``teacher-…`` is a teacher."""
    role, _, which = way.partition("-")
    output = material.work / f"{job.name}-{way}-{seed}"
    if role == "teacher":
        output = teacher(material, job, which)
        options = f"{TEACHER_OPTIONS[job.name]} --baseline --student_model "
        options += str(getattr(material.options, TEACHERS[which]))
    else:
        options = f"{job.student} --student_model {material.options.small_encoder}"
        options += f" --max_steps {material.options.steps}" if material.options.steps else ""
        if way == "alone":
            options += " --baseline"
        else:
            options += f" {job.distillation} --teacher_model {teacher(material, job, way)}"
            options += " --no_eval_with_teacher"
    if material.options.quick:
        options += f" {QUICK}"
    cpu, is_there = time.process_time(), (output / "metrics.json").exists()
    if not is_there:
        run_command("train", "--task", job.task, *material.data(job), *options.split(),
                    *COMMON.split(), "--seed", str(seed), "--overwrite_output_dir",
                    "--output_dir", str(output))  # fmt: skip
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    return {
        "options": f"{job.data} {job.student} {job.distillation}",
        "eval": metrics["eval"],
        "steps": metrics["steps"],
        "cpu_seconds": None if is_there else round(time.process_time() - cpu, 1),
        **circumstances(),
    }


def work(options: argparse.Namespace) -> None:
    """Do every run that has no result yet and that no other process is doing."""
    material, results = Material(options), results_of(options)
    with claim(material.work / "student.lock", wait=True):
        options.small_encoder = cut(options.large_encoder, material.work / "student")
    results.mkdir(exist_ok=True)
    sample = material.work / f"train-{SQUAD_QUESTIONS}.json"
    with claim(material.work / "sample.lock", wait=True):
        if "squad" in options.jobs and not sample.exists():
            write_sample(Path(options.data_dir) / "squad", sample, SQUAD_QUESTIONS)
    runs = [(job, f"teacher-{way}", 0) for job in ALL_JOBS for way in TEACHERS]
    runs += [(job, way, seed) for seed in options.seeds for job in ALL_JOBS for way in WAYS]
    for job, way, seed in runs:
        if job.name not in options.jobs:
            continue
        # A student waits for the teachers that another process trains.
        name = f"other-tokenizer-{job.name}-{way}-{seed}"
        with claim(material.work / f"{name}.lock", wait=way.startswith("teacher")) as mine:
            if mine and not (results / f"{name}.json").exists():
                print(f"{time.strftime('%X')} {name}", flush=True)
                write_json(results / f"{name}.json", measure(material, job, way, seed))


def results_of(options: argparse.Namespace) -> Path:
    """The folder of the finished runs."""
    return Path(options.work_dir) / "quick-results" if options.quick else RESULTS


def scores(results: Path, job: Job, way: str) -> dict[str, float]:
    """The scores of a way by seed."""
    found = {}
    for path in sorted(results.glob(f"other-tokenizer-{job.name}-{way}-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem.rpartition("-")[2]] = float(content["eval"][job.metric])
    return found


def spread(values: list[float]) -> str:
    """The mean, and the lowest and highest."""
    return f"{mean(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def render(results: Path = RESULTS) -> str:
    """Markdown: one row per task and teacher."""
    lines = [
        "| task | tokenizer of the teacher | teacher | student alone | distilled | gap closed |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for job in ALL_JOBS:
        alone = scores(results, job, "alone")
        for way, words in (("same", "the student's"), ("other", "another")):
            theirs = scores(results, job, f"teacher-{way}")
            distilled = scores(results, job, way)
            seeds = sorted(alone.keys() & distilled.keys())
            if not (theirs and seeds):
                continue
            top = theirs["0"]
            gaps = [(distilled[s] - alone[s], top - alone[s]) for s in seeds]
            closed = [100 * gain / gap for gain, gap in gaps if gap > 0]
            shown = [spread([one[seed] for seed in seeds]) for one in (alone, distilled)]
            cells = [job.title, words, f"{top:.1f}", *shown]
            cells.append(f"{mean(closed):.0f} %" if len(closed) == len(seeds) else "no gap")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only write the table, run nothing")
    parser.add_argument("--quick", action="store_true", help="three steps of each run, one seed")
    parser.add_argument("--data_dir", help="squad/, sst2/ and wnut17/")
    parser.add_argument("--large_encoder", help="an encoder with the student's tokenizer")
    parser.add_argument("--other_encoder", help="with another: see byte_level_encoder.py")
    parser.add_argument("--work_dir", default="build/other_tokenizer", help="models, locks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each student, instead of its epochs")
    names = [job.name for job in ALL_JOBS]
    parser.add_argument("--jobs", nargs="+", default=names, choices=names)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.work_dir = options.seeds[:1], f"{options.work_dir}-quick"
    if not options.table:
        for name in ("data_dir", "large_encoder", "other_encoder"):
            if getattr(options, name) is None:
                parser.error(f"--{name} is needed to run anything")
        work(options)
    if options.quick:
        print(render(results_of(options)))
    else:
        replace_section("other_tokenizer", render())


if __name__ == "__main__":
    main()
