r"""Students created from a fine-tuned teacher, in depth and in width: the runs behind RESULTS.md.

Of each student: the score untrained, after the prediction layer alone, and after hidden states and
then the prediction layer in as many steps. Trainings are `hf-distill train` commands as a user
would type them, executed in this process; the teacher's logits are cached. Each finished run leaves
one JSON file in ``results/``; what is there is not run again, so the program can be stopped and
started again, and several processes can share the work:

    export OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=4294967296 \
        MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
    python benchmarks/created_students.py --data_dir DIR --squad_teacher DIR --large_encoder DIR \
        --small_encoder DIR
    python benchmarks/created_students.py --table
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from created_students_table import STUDENTS, WAYS, render
from report import RESULTS, circumstances, replace_section, write_json
from squad_distillation import claim
from squad_stages import write_sample
from task_distillation import COMMON, DEVICE, JOBS, PRECISION, Job, Material, execute, run_command
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoTokenizer, set_seed

from hf_distill import create_student
from hf_distill.loading import load_teacher
from hf_distill.reports.measurements import measure_latencies
from hf_distill.tasks import create_task
from hf_distill.tasks.options import TaskArguments

SQUAD_QUESTIONS = 2_000
TIMED_TURNS = 30
TIMED_BATCHES = ((1, 128), (8, 128))

SQUAD = Job(
    "squad",
    "question-answering",
    "f1",
    f"SQuAD, {SQUAD_QUESTIONS:,} questions, F1",
    f"--train_file {{work}}/train-{SQUAD_QUESTIONS}.json "
    "--validation_file squad/validation-v1.1.json.gz --max_length 256 --doc_stride 64",
    "--temperature 4 --distillation_loss_weight 1.0",
    "--learning_rate 3e-4 --per_device_train_batch_size 24 "
    "--train_sampling_strategy group_by_length",
    None,
)

ALL_QUESTIONS = replace(
    SQUAD,
    name="squad-all",
    title="SQuAD, all 11,691 questions, F1",
    data=SQUAD.data.replace("{work}/train-2000.json", "squad/train-v1.1.json.gz"),
)
OTHERS = [
    replace(job, student=f"{job.student} --train_sampling_strategy group_by_length")
    for job in JOBS
    if job.name != "wikitext"
]
ALL_JOBS = (SQUAD, *OTHERS, ALL_QUESTIONS)
JOB_NAMES = [job.name for job in ALL_JOBS]
STEPS = {"squad": 200, "sst2": 300, "wnut17": 300, "squad-all": 1500}
"""Of all stages."""

LONG = {
    "6x192": ("prediction",),
    "3x384-fitted": ("prediction", "stages"),
    "3x192": ("prediction",),
}
"""The students that also learn from all questions, and in which ways."""


class Created(Material):
    """Teachers, their cached outputs and the students made from them, each made when asked for."""

    def prepare(self, job: Job) -> None:
        """Make the training data, the teacher and its outputs, unless they are there."""
        with claim(self.work / f"{job.name}.lock", wait=True):
            sample = self.work / f"train-{SQUAD_QUESTIONS}.json"
            if job is SQUAD and not sample.exists():
                write_sample(Path(self.options.data_dir) / "squad", sample, SQUAD_QUESTIONS)
            teacher = Path(self.teacher(job))
            if job in (SQUAD, ALL_QUESTIONS):
                shutil.copytree(self.options.squad_teacher, teacher, dirs_exist_ok=True)
            elif not (teacher / "metrics.json").exists():
                execute(job, "teacher", 0, self)
            self.cache(job, [str(teacher)], self.outputs(job))

    def cache(self, job: Job, teachers: Sequence[str], folder: str) -> None:
        """Store what teachers predict for a job's training data, unless that is done."""
        kept = self.data(job)
        at = kept.index("--validation_file")
        run_command("cache", "--task", job.task, *kept[:at], *kept[at + 2 :], *DEVICE.split(),
                    "--mixed_precision", "bf16" if PRECISION else "no", "--dtype", "float32",
                    "--teacher_model", *teachers, "--output_dir", folder)  # fmt: skip

    def run_once(self, result: str, job: Job, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure and write a result that is not there, and that no other process is making."""
        with claim(self.work / f"{result}.run.lock") as mine:
            if mine and not (RESULTS / f"{result}.json").exists():
                print(f"{time.strftime('%X')} {result}", flush=True)
                self.prepare(job)
                write_json(result, measure())

    def pairs(self, job: Job) -> dict[str, str]:
        """The options that name the data, by name."""
        words = self.data(job)
        return dict(zip(words[::2], words[1::2], strict=True))

    def outputs(self, job: Job) -> str:
        """Where the cached outputs of a teacher are."""
        return str(self.work / f"{job.name}-outputs")

    def create(self, job: Job, name: str, seed: int) -> tuple[Path, dict[str, Any]]:
        """Create a student, unless it is there; its folder, and what it took."""
        folder = self.work / f"{job.name}-{name}-{seed}"
        facts = folder / "created.json"
        with claim(folder.with_suffix(".lock"), wait=True):
            options = STUDENTS[name].options
            if not facts.exists() and options is None:
                set_seed(seed)
                made = OTHER_STUDENTS[name](job, self)
                made.save_pretrained(folder)
                AutoTokenizer.from_pretrained(self.teacher(job)).save_pretrained(folder)
                facts.write_text(
                    json.dumps({"parameters": made.num_parameters(), "cpu_seconds": None})
                )
            elif not facts.exists() and options is not None:
                source, typed = self.teacher(job), self.pairs(job)
                tokenizer = AutoTokenizer.from_pretrained(source)
                task = create_task(
                    job.task, TaskArguments(max_length=int(typed["--max_length"]), doc_stride=64)
                )
                teacher: Any = load_teacher(
                    source,
                    task.head.auto_model,
                    task.name,
                    dtype="float32",
                    device=torch.device("cpu" if DEVICE else "cuda"),
                )
                examples = task.load_data(typed["--train_file"], labelled=False)
                data = task.features(examples, tokenizer, teacher, training=True, labelled=False)
                copied = options.get("initialization") == "copy"
                cpu = time.process_time()
                student = create_student(teacher, **options, seed=seed,
                                         calibration_data=None if copied else data.features,
                                         processing_class=tokenizer)  # fmt: skip
                seconds = round(time.process_time() - cpu, 1)
                student.config.hidden_dropout_prob = student.config.attention_probs_dropout_prob = 0
                student.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                facts.write_text(
                    json.dumps({"parameters": student.num_parameters(), "cpu_seconds": seconds})
                )
        return folder, json.loads(facts.read_text(encoding="utf-8"))

    def train(self, job: Job, student: Path, output: Path, seed: int, *options: str) -> Any:
        """Train by one command; its metrics."""
        run_command("train", "--task", job.task, *self.data(job), "--student_model", str(student),
                    *job.student.split(), *COMMON.split(), "--seed", str(seed), *options,
                    "--no_eval_with_teacher", "--overwrite_output_dir",
                    "--output_dir", str(output))  # fmt: skip
        return json.loads((output / "metrics.json").read_text(encoding="utf-8"))

    def score(self, job: Job, model: Path) -> dict[str, float]:
        """Score a model as it is."""
        data, output = self.data(job), self.work / f"{model.name}-score"
        file = self.pairs(job)["--validation_file"]
        run_command("evaluate", "--task", job.task, "--model", str(model), "--file", file,
                    *DEVICE.split(), *data[data.index("--max_length") :],
                    "--output_dir", str(output))  # fmt: skip
        scores = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
        found: dict[str, float] = scores["metrics"]
        return found

    def measure(self, job: Job, name: str, way: str, steps: int, seed: int) -> dict[str, Any]:
        """Create a student, train it in this way, and score it."""
        if name == "teacher":
            return {"eval": self.score(job, Path(self.teacher(job))), **circumstances()}
        student, facts = self.create(job, name, seed)
        output = self.work / f"{job.name}-{name}-{way}-{steps}-{seed}"
        cached = ["--teacher_outputs", self.outputs(job), *job.distillation.split()]
        cpu, losses = time.process_time(), None
        if way == "untrained":
            scores = self.score(job, student)
        else:
            last = steps
            if way == "stages":
                last = steps // 2
                first = output.with_name(f"{output.name}-first")
                if not (first / "metrics.json").exists():
                    self.train(job, student, first, seed, "--stage", "intermediate", "--max_steps",
                               str(steps - last), "--teacher_model", self.teacher(job))  # fmt: skip
                losses, student = _logged_losses(first), first
            scores = self.train(job, student, output, seed, "--max_steps", str(last), *cached)
            scores = scores["eval"]
        return {
            "job": job.name, "student": name, "way": way, "seed": seed,
            "steps": steps, "options": f"{job.data} {job.student}",
            "distillation": job.distillation, "eval": scores, "created": facts,
            "hidden_losses": losses, "cpu_seconds": round(time.process_time() - cpu, 1),
            **circumstances(),
        }  # fmt: skip


def _narrow(job: Job, material: Created, *, copied: bool) -> Any:
    """The teacher at half its width: new weights, or the first units of each of its own."""
    model: Any = getattr(transformers, create_task(job.task, TaskArguments()).head.auto_model)
    teacher = model.from_pretrained(material.teacher(job), dtype=torch.float32)
    config = teacher.config
    config.hidden_size, config.intermediate_size = 192, config.intermediate_size // 2
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0
    narrow = model.from_config(config)
    wide = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, weight in narrow.named_parameters() if copied else ():
            weight.copy_(wide[name][tuple(slice(size) for size in weight.shape)])
    return narrow


def _small_encoder(job: Job, material: Created) -> Any:
    model: Any = getattr(transformers, create_task(job.task, TaskArguments()).head.auto_model)
    names = AutoConfig.from_pretrained(material.teacher(job))
    return model.from_pretrained(
        material.options.small_encoder, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        id2label=names.id2label, label2id=names.label2id,
    )  # fmt: skip


OTHER_STUDENTS: dict[str, Callable[[Job, Created], Any]] = {
    "6x192-random": partial(_narrow, copied=False),
    "6x192-first-units": partial(_narrow, copied=True),
    "3x384-apart": _small_encoder,
}


def _logged_losses(folder: Path) -> list[dict[str, float]]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [{"step": entry["step"], "loss": entry["loss"]}
            for entry in state["log_history"] if "loss" in entry]  # fmt: skip


def latencies(material: Created) -> dict[str, Any]:
    """Milliseconds of each size of student, side by side, on random tokens."""
    teacher = AutoModelForQuestionAnswering.from_pretrained(
        material.options.squad_teacher, dtype=torch.float32
    )
    sizes: dict[str, Any] = {"teacher": teacher}
    for name in (name for name, student in STUDENTS.items() if student.options is not None):
        config = AutoModelForQuestionAnswering.from_pretrained(
            material.create(SQUAD, name, 0)[0]
        ).config
        sizes[name] = AutoModelForQuestionAnswering.from_config(config)
    found: dict[str, Any] = {name: {} for name in sizes}

    def predictor(model: Any) -> Any:
        @torch.inference_mode()
        def predict(batches: Any) -> None:
            model.eval()(input_ids=batches[0]["input_ids"])

        return predict

    for rows, length in TIMED_BATCHES:
        set_seed(0)
        batches = [{"input_ids": torch.randint(1000, 30000, (rows, length))}] * TIMED_TURNS
        times = measure_latencies({n: predictor(m) for n, m in sizes.items()}, batches)
        for name, latency in times.items():
            found[name][f"{rows}x{length}"] = round(latency.median, 2)
    parameters = {name: model.num_parameters() for name, model in sizes.items()}
    return {"ms": found, "parameters": parameters, "turns": TIMED_TURNS, **circumstances()}


def plan(options: argparse.Namespace) -> list[tuple[Job, str, str, int, int]]:
    """Task, student, way, steps and seed of all runs, seed by seed, the shortest first."""
    runs = []
    for seed in options.seeds:
        for job in ALL_JOBS:
            if job.name not in options.jobs:
                continue
            runs += [(job, "teacher", "trained", 0, 0)] if seed == options.seeds[0] else []
            steps = options.steps or STEPS[job.name]
            runs += [
                (job, name, way, 0 if way == "untrained" else steps, seed)
                for way in WAYS
                for name in options.students
                if (
                    way in LONG.get(name, ())
                    if job is ALL_QUESTIONS
                    else STUDENTS[name].options is not None
                    or (way != "stages" and seed == options.seeds[0])
                )
            ]
    return runs


def work(options: argparse.Namespace) -> None:
    """Do every run that has no result yet and that no other process is doing."""
    material = Created(options)
    for job, name, way, steps, seed in plan(options):
        result = f"created-{job.name}-{name}-{way}-{steps}-{seed}"
        material.run_once(result, job, partial(material.measure, job, name, way, steps, seed))
    if not (RESULTS / "created-latency.json").exists():
        write_json("created-latency", latencies(material))


def add_options(parser: argparse.ArgumentParser, jobs: Sequence[str] = JOB_NAMES) -> None:
    """Add where material is, and which tasks and seeds are run."""
    parser.add_argument("--table", action="store_true", help="only write the table, run nothing")
    parser.add_argument("--small_encoder", help="a BERT encoder of 3 × 384, trained apart")
    parser.add_argument("--data_dir", help="squad/, sst2/ and wnut17/")
    parser.add_argument("--squad_teacher", help="a question-answering BERT of 6 × 384")
    parser.add_argument("--large_encoder", help="a BERT encoder of 6 × 384 without head")
    parser.add_argument("--work_dir", default="build/created_students", help="models, locks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", nargs="+", default=jobs, choices=jobs)


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--latency", action="store_true", help="measure latencies alone")
    parser.add_argument("--steps", type=int, help="of all stages, instead of each job's own")
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=list(STUDENTS))
    options = parser.parse_args()
    if options.latency:
        write_json("created-latency", latencies(Created(options)))
    elif not options.table:
        for name in ("data_dir", "squad_teacher", "large_encoder", "small_encoder"):
            if getattr(options, name) is None:
                parser.error(f"--{name} is needed to run anything")
        work(options)
    titles = {job.name: (job.title, job.metric) for job in ALL_JOBS}
    replace_section("created_students", render(titles))


if __name__ == "__main__":
    main()
