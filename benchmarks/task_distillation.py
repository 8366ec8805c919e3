"""Alone against distilled for classification, tagging and language models: see RESULTS.md.

Every run is an `hf-distill train` command as a user would type it, executed in this process. Each
finished run leaves one JSON file in ``results/``; what is there is not run again, so the program
can be stopped and started again, and several processes can share the work:

    OMP_NUM_THREADS=1 python benchmarks/task_distillation.py --data_dir DIR \
        --large_encoder DIR --small_encoder DIR --language_model DIR
    python benchmarks/task_distillation.py --table
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from report import RESULTS, circumstances, replace_section, write_json
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distill.cli.main import main as hf_distill
from hf_distill.cli.precision import bfloat16_pays
from hf_distill.files import write_text

SEEDS = (0, 1, 2)
WAYS = ("alone", "distilled")


@dataclass(frozen=True)
class Job:
    """A task with its data, and the options of its runs as they are typed."""

    name: str
    task: str
    metric: str
    title: str
    data: str
    distillation: str
    student: str
    teacher: str | None
    """How the teacher is trained; a language model is one as it is."""


DEVICE = "" if torch.cuda.is_available() else " --use_cpu"
"""A GPU is used where there is one."""
PRECISION = "--bf16" if bfloat16_pays() else ""
"""Of a machine without bfloat16 the figures are in float32."""
COMMON = f"{PRECISION}{DEVICE} --warmup_steps 0.1 --save_strategy no --logging_steps 100"
JOBS = (
    Job(
        "sst2",
        "text-classification",
        "accuracy",
        "SST-2, accuracy",
        "--train_file sst2/train.tsv.gz --validation_file sst2/test-labeled.tsv.gz "
        "--max_train_samples 8000 --max_length 64",
        "--temperature 4 --distillation_loss_weight 1.0",
        "--num_train_epochs 5 --learning_rate 2e-4 --per_device_train_batch_size 64",
        "--num_train_epochs 3 --learning_rate 2e-4 --per_device_train_batch_size 64",
    ),
    Job(
        "wnut17",
        "token-classification",
        "f1",
        "WNUT-17, F1 of entities",
        "--train_file wnut17/train.conll.gz --validation_file wnut17/test.conll.gz "
        "--max_length 128",
        "--temperature 2 --distillation_loss_weight 0.5",
        "--num_train_epochs 5 --learning_rate 5e-4 --per_device_train_batch_size 32",
        "--num_train_epochs 5 --learning_rate 3e-4 --per_device_train_batch_size 32",
    ),
    Job(
        "wikitext",
        "text-generation",
        "perplexity",
        "WikiText-2, perplexity",
        "--train_file {work}/wikitext-train.txt --validation_file {work}/wikitext-held-out.txt "
        "--block_size 256",
        "--temperature 1 --distillation_loss_weight 0.5",
        "--num_train_epochs 1 --learning_rate 3e-4 --per_device_train_batch_size 4",
        None,
    ),
)


class Material:
    """The models and files that the commands name."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work = Path(options.work_dir)
        self.work.mkdir(parents=True, exist_ok=True)

    def data(self, job: Job) -> list[str]:
        """The options that name the data."""
        if job.name == "wikitext":
            self._split_text()
        words = job.data.format(work=self.work).split()
        folder = Path(self.options.data_dir)
        return [str(folder / word) if word.endswith(".gz") else word for word in words]

    def student(self, job: Job) -> str:
        """The model that all students of a job start from."""
        if job.name != "wikitext":
            return str(self.options.small_encoder)
        return str(self._cut_language_model())

    def teacher(self, job: Job) -> str:
        """The fine-tuned teacher; the language model is one as it is."""
        if job.name == "wikitext":
            return str(self.options.language_model)
        return str(self.work / f"{job.name}-teacher-0")

    def encoder(self, job: Job) -> str:
        """What the teacher of a job is fine-tuned from."""
        return str(self.options.large_encoder)

    def _split_text(self) -> None:
        """The first third of the text to train on, and the last tenth to score on."""
        parts = {"train": (0.0, 0.33), "held-out": (0.9, 1.0)}
        with gzip.open(Path(self.options.data_dir) / "text/wikitext2-valid.txt.gz", "rt") as file:
            lines = file.readlines()
        for name, (begin, end) in parts.items():
            text = "".join(lines[int(begin * len(lines)) : int(end * len(lines))])
            write_text(self.work / f"wikitext-{name}.txt", text)  # others may be reading it

    def _cut_language_model(self) -> Path:
        """The language model with every third of its layers, the last one among them."""
        folder = self.work / "wikitext-student"
        if not folder.exists():
            model: Any = AutoModelForCausalLM.from_pretrained(self.options.language_model)
            layers = model.model.layers
            model.model.layers = nn.ModuleList(layers[i] for i in range(2, len(layers), 3))
            for place, layer in enumerate(model.model.layers):
                layer.self_attn.layer_idx = place
            model.config.num_hidden_layers = len(model.model.layers)
            AutoTokenizer.from_pretrained(self.options.language_model).save_pretrained(folder)
            model.save_pretrained(folder)
        return folder


def runs(options: argparse.Namespace) -> Iterator[tuple[Job, str, int]]:
    """All runs, seed by seed."""
    for job in JOBS:
        if options.only and job.name not in options.only:
            continue
        yield job, "teacher", 0
        for seed in SEEDS:
            for way in WAYS:
                yield job, way, seed


def execute(job: Job, way: str, seed: int, material: Material) -> dict[str, Any]:
    """Train and score by one command."""
    output = material.work / f"{job.name}-{way}-{seed}"
    if way == "teacher" and job.teacher is None:
        return _score(job, output, material)
    options, models = f"{job.student} --baseline", ["--student_model", material.student(job)]
    if way == "teacher":
        options = f"{job.teacher} --baseline"
        models = ["--student_model", material.encoder(job)]
    elif way == "distilled":
        options = f"{job.student} {job.distillation} --no_eval_with_teacher"
        models += ["--teacher_model", material.teacher(job)]
    options += f" {COMMON} --seed {seed}"
    wall, cpu = time.perf_counter(), time.process_time()
    run_command("train", "--task", job.task, *material.data(job), *models, *options.split(),
         "--overwrite_output_dir", "--output_dir", str(output))  # fmt: skip
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    return {
        "options": f"{job.data} {options}",
        "eval": metrics["eval"],
        "steps": metrics["steps"],
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        **circumstances(),
    }


def _score(job: Job, output: Path, material: Material) -> dict[str, Any]:
    file, options = material.data(job)[3], f"--block_size 256{DEVICE} --dtype bfloat16"
    run_command("evaluate", "--task", job.task, "--model", material.teacher(job), "--file", file,
         *options.split(), "--output_dir", str(output))  # fmt: skip
    scores = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    return {"options": options, "eval": scores["metrics"], **circumstances()}


def run_command(*command: str) -> None:
    """Run an `hf-distill` command in this process."""
    status = hf_distill(command)
    if status != 0:
        raise RuntimeError(f"hf-distill {' '.join(command)} ended with status {status}")


def work(options: argparse.Namespace) -> None:
    """Do every run that has no result yet and that no other process is doing."""
    material = Material(options)
    for job, way, seed in runs(options):
        name = f"{job.name}-{way}-{seed}"
        with (material.work / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if (RESULTS / f"{name}.json").exists():
                continue
            write_json(name, execute(job, way, seed, material))


def render() -> str:
    """Markdown: one row a task, over the seeds."""
    lines = [
        "| task | teacher | student alone | student distilled | gap closed | options |",
        "|---|---|---|---|---|---|",
    ]
    for job in JOBS:
        teacher, alone, distilled = (_scores(job, way) for way in ("teacher", *WAYS))
        if not (teacher and alone and distilled):
            continue
        shares = [
            100 * (distilled[seed] - alone[seed]) / (teacher[0] - alone[seed])
            for seed in sorted(alone.keys() & distilled.keys())
        ]
        spread = f"{mean(shares):.0f} %"
        if len(shares) > 1:
            spread += f" (sd {stdev(shares):.0f})"
        scores = [_spread(list(one.values())) for one in (alone, distilled)]
        cells = [job.title, f"{teacher[0]:.1f}", *scores, spread]
        lines.append(f"| {' | '.join(cells)} | `{job.student} {job.distillation}` |")
    return "\n".join(lines) + "\n"


def _scores(job: Job, way: str) -> dict[int, float]:
    found = {}
    for seed in SEEDS:
        path = RESULTS / f"{job.name}-{way}-{seed}.json"
        if path.exists():
            found[seed] = json.loads(path.read_text(encoding="utf-8"))["eval"][job.metric]
    return found


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    shown = f"{mean(values):.1f}"
    return f"{shown} ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else shown


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only write the table, run nothing")
    parser.add_argument("--data_dir", help="sst2/, wnut17/ and text/")
    parser.add_argument("--large_encoder", help="a BERT encoder without head, 6 layers")
    parser.add_argument("--small_encoder", help="a BERT encoder without head, 3 layers")
    parser.add_argument("--language_model", help="a Llama-like language model")
    parser.add_argument("--work_dir", default="build/task_distillation", help="models, locks")
    parser.add_argument("--only", nargs="*", choices=[job.name for job in JOBS])
    options = parser.parse_args()
    if options.table:
        replace_section("task_distillation", render())
        return
    for name in ("data_dir", "large_encoder", "small_encoder", "language_model"):
        if getattr(options, name) is None:
            parser.error(f"--{name} is needed to run anything")
    work(options)


if __name__ == "__main__":
    main()
