r"""What distillation gives, and what it does not: the runs behind docs/study.md.

An arm is one way of training a student. Every run is made of ``hf-distill`` commands as a user
would type them, executed in this process, with the same number of steps in all stages together
unless the arm is about that. Each finished run leaves one JSON file in ``results/``; what is there
is not run again, so the program can be stopped and started again, and several processes can share
the work:

    export OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=4294967296 \
        MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
    python benchmarks/study.py --data_dir DIR --squad_teacher DIR --large_encoder DIR \
        --small_encoder DIR --language_model DIR --masked_lm DIR --glove_path FILE
    python benchmarks/study.py --table
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import study_report
import torch
import transformers
from created_students import OTHERS, SQUAD, Created, add_options
from other_tokenizer import cut
from report import RESULTS, circumstances, read_json, write_json
from squad_distillation import claim
from squad_stages import write_sample
from task_distillation import COMMON, JOBS, Job, execute, run_command
from transformers import AutoConfig, AutoTokenizer, set_seed

from hf_distill.tasks import create_task
from hf_distill.tasks.options import TaskArguments

SMALL = "-small"
SMALLER = [
    replace(
        job,
        name=f"{job.name}{SMALL}",
        title=job.title.replace(",", ", 3-layer teacher,"),
        student=job.student.replace("batch_size 64", "batch_size 32"),
        teacher=f"{job.teacher} --train_sampling_strategy group_by_length",
    )
    for job in OTHERS
]
"""Teachers of three layers and students of two of them, for what takes too many runs otherwise."""
LANGUAGE_MODELS = [job for job in JOBS if job.name == "wikitext"]
TASKS = {job.name: job for job in (SQUAD, *OTHERS, *LANGUAGE_MODELS, *SMALLER)}
STEPS = {**dict.fromkeys(TASKS, 200), "wikitext": 76}
"""Of all stages of an arm."""

CREATED_RATES = {"squad": "3e-4", "sst2": "5e-5", "wnut17": "5e-5"}
"""Learning rates of created students, which begin near their teacher: ``shrink``'s."""

ENCODERS = ("squad", "sst2", "wnut17")
SMALL_ONES = tuple(job.name for job in SMALLER)
CLASSIFIERS = ("sst2", "wnut17", *SMALL_ONES)
COPIES = 20


@dataclass(frozen=True)
class Arm:
    """A student, and what it learns from."""

    title: str
    student: str = "cut"
    """``cut``: layers of the teacher's encoder before it was fine-tuned, and a new head;
    ``created``: all layers of the teacher at half their width, by ``create_student``; ``new``: the
    same with new weights."""
    labels: bool = False
    """From the labels alone."""
    first: str | None = None
    """Options of a first stage on layers, which has half of the steps."""
    distillation: str | None = None
    """Options of temperature and weight; ``None``: the job's, as in ``task_distillation.py``."""
    rows: int | None = None
    """So many training rows, of those that there are."""
    augmented: bool = False
    steps: float = 1.0
    """Times the usual number."""
    teachers: int = 1
    jobs: tuple[str, ...] = (*ENCODERS, *SMALL_ONES)


HIDDEN_STATES = "--attention_loss_weight 0"


def weighed(temperature: int, weight: float) -> str:
    """Return the options of a temperature and a weight."""
    return f"--temperature {temperature} --distillation_loss_weight {weight}"


ARMS = {
    "alone": Arm("labels alone", labels=True, jobs=tuple(TASKS)),
    "prediction": Arm("prediction layer", jobs=tuple(TASKS)),
    "stages": Arm("hidden states, then prediction layer", first=HIDDEN_STATES, jobs=tuple(TASKS)),
    "new-alone": Arm("new weights, labels alone", "new", labels=True, jobs=ENCODERS),
    "new-prediction": Arm("new weights, prediction layer", "new", jobs=ENCODERS),
    "created-alone": Arm("created, labels alone", "created", labels=True, jobs=ENCODERS),
    "created-prediction": Arm("created, prediction layer", "created", jobs=ENCODERS),
    "alone-100": Arm("labels of 100 rows", labels=True, rows=100),
    "prediction-100": Arm("teacher on 100 rows", rows=100),
    "alone-500": Arm("labels of 500 rows", labels=True, rows=500),
    "prediction-500": Arm("teacher on 500 rows", rows=500),
    "augmented-500": Arm("teacher on 500 rows and their copies", rows=500, augmented=True),
    "t1-w1.0": Arm("temperature 1, weight 1.0", distillation=weighed(1, 1.0)),
    "t2-w1.0": Arm("temperature 2, weight 1.0", distillation=weighed(2, 1.0)),
    "t4-w1.0": Arm("temperature 4, weight 1.0", distillation=weighed(4, 1.0)),
    "t8-w1.0": Arm("temperature 8, weight 1.0", distillation=weighed(8, 1.0)),
    "t1-w0.5": Arm("temperature 1, weight 0.5", distillation=weighed(1, 0.5)),
    "t2-w0.5": Arm("temperature 2, weight 0.5", distillation=weighed(2, 0.5)),
    "t4-w0.5": Arm("temperature 4, weight 0.5", distillation=weighed(4, 0.5)),
    "alone-third": Arm("labels alone", labels=True, steps=1 / 3, jobs=ENCODERS),
    "prediction-third": Arm("prediction layer", steps=1 / 3, jobs=ENCODERS),
    "stages-third": Arm(
        "hidden states, then prediction layer", first=HIDDEN_STATES, steps=1 / 3, jobs=ENCODERS
    ),
    "alone-triple": Arm("labels alone", labels=True, steps=3, jobs=CLASSIFIERS),
    "prediction-triple": Arm("prediction layer", steps=3, jobs=CLASSIFIERS),
    "stages-triple": Arm(
        "hidden states, then prediction layer", first=HIDDEN_STATES, steps=3, jobs=CLASSIFIERS
    ),
    "three-teachers": Arm("three teachers", teachers=3, jobs=CLASSIFIERS),
    "attention": Arm(
        "hidden states and attention, then prediction layer", first="--attention_loss scores"
    ),
    "relations": Arm(
        "hidden states and attention relations, then prediction layer",
        first="--attention_loss relations",
    ),
}
"""The most telling ones first."""
TITLES = {name: arm.title for name, arm in ARMS.items()}


class StudyMaterial(Created):
    """Teachers, students and training data of several sizes, each made when asked for."""

    def data_of(self, job: Job, arm: Arm) -> Job:
        """Return the job with the training data of an arm."""
        if arm.rows is None:
            return job
        name = f"{job.name}+{arm.rows}"
        file = self._subset(job, arm.rows)
        if arm.augmented:
            name, file = f"{name}x{COPIES}", self._augmented(job, file)
        words = job.data.split()
        words[words.index("--train_file") + 1] = str(file.resolve())
        if "--max_train_samples" in words:
            at = words.index("--max_train_samples")
            del words[at : at + 2]
        return replace(job, name=name, data=" ".join(words))

    def encoder(self, job: Job) -> str:
        """What the teacher of a job is fine-tuned from, and its student cut from."""
        own = self.options.small_encoder if SMALL in job.name else self.options.large_encoder
        return str(own)

    def teacher(self, job: Job) -> str:
        """The teacher of a job, whatever the training data of the arm."""
        return super().teacher(replace(job, name=job.name.partition("+")[0]))

    def teachers(self, job: Job, number: int) -> list[str]:
        """So many teachers, trained alike with other seeds."""
        for seed in range(1, number):
            with claim(self.work / f"{job.name}-teacher-{seed}.lock", wait=True):
                folder = self.work / f"{job.name}-teacher-{seed}"
                if not (folder / "metrics.json").exists():
                    execute(job, "teacher", seed, self)
        first = self.teacher(job)
        return [first, *(str(self.work / f"{job.name}-teacher-{n}") for n in range(1, number))]

    def stored(self, job: Job, teachers: list[str]) -> str:
        """Where the stored outputs of the teachers for a job's training data are."""
        several = f"-{len(teachers)}" if len(teachers) > 1 else ""
        folder = f"{self.outputs(job)}{several}"
        with claim(Path(f"{folder}.lock"), wait=True):
            self.cache(job, teachers, folder)
        return folder

    def student_of(self, job: Job, kind: str, seed: int) -> str:
        """The folder of a student; a head or weights that are new are drawn with the seed."""
        if kind == "created":
            return str(self.create(job, "6x192", seed)[0])
        if kind == "new":
            return str(self.create(job, "6x192-random", seed)[0])
        if job.name == "wikitext":
            with claim(self.work / "wikitext-student.lock", wait=True):
                return self.student(job)
        folder = self.work / f"{job.name}-cut-{seed}"
        with claim(folder.with_suffix(".lock"), wait=True):
            if not (folder / "config.json").exists():
                set_seed(seed)
                self._cut(job).save_pretrained(folder)
                AutoTokenizer.from_pretrained(self.teacher(job)).save_pretrained(folder)
        return str(folder)

    def _cut(self, job: Job) -> Any:
        """Some layers of the encoder that the teacher was fine-tuned from, and a new head."""
        auto: Any = getattr(transformers, create_task(job.task, TaskArguments()).head.auto_model)
        names = AutoConfig.from_pretrained(self.teacher(job))
        folder = self.work / (f"cut{SMALL}" if SMALL in job.name else "cut")
        with claim(folder.with_suffix(".lock"), wait=True):
            encoder = cut(self.encoder(job), folder)
        return auto.from_pretrained(
            encoder, dtype=torch.float32, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
            id2label=names.id2label, label2id=names.label2id,
        )  # fmt: skip

    def _subset(self, job: Job, rows: int) -> Path:
        """So many rows of the training data, evenly spaced; of SQuAD in whole paragraphs."""
        source = Path(self.pairs(job)["--train_file"])
        kind = source.name.removesuffix(".gz").rpartition(".")[2]
        path = self.work / f"{job.name}-train-{rows}.{kind}"
        with claim(path.with_suffix(".lock"), wait=True):
            if path.exists():
                return path
            if job is SQUAD:
                write_sample(Path(self.options.data_dir) / "squad", path, rows)
                return path
            text = gzip.decompress(source.read_bytes()).decode()
            if kind == "conll":
                units, begin, join = text.strip().split("\n\n"), "", "\n\n"
            else:
                units, begin, join = text.strip().split("\n"), "", "\n"
                begin = f"{units.pop(0)}\n"
            kept = [units[i * len(units) // rows] for i in range(rows)]
            path.write_text(f"{begin}{join.join(kept)}\n", encoding="utf-8")
        return path

    def _augmented(self, job: Job, source: Path) -> Path:
        """The rows of a file and copies of them in which words are replaced."""
        path = source.with_name(f"{source.stem}-x{COPIES}{source.suffix}")
        columns = {
            "question-answering": ["--augment_questions"],
            "text-classification": ["--text_columns", "sentence"],
            "token-classification": ["--text_columns", "tokens", "--tag_column", "tags"],
        }[job.task]
        with claim(path.with_suffix(".lock"), wait=True):
            if not path.exists():
                named = "--squad_path" if job is SQUAD else "--train_file"
                run_command("augment", named, str(source), *columns, "--output_path", str(path),
                            "--multiplication_factor", str(COPIES), "--model",
                            self.options.masked_lm, "--glove_path", self.options.glove_path,
                            "--dtype", "float32")  # fmt: skip
        return path

    def run_arm(self, job: Job, name: str, seed: int) -> dict[str, Any]:
        """Train and score as an arm says."""
        arm = ARMS[name]
        variant = self.data_of(job, arm)
        student, cpu = self.student_of(job, arm.student, seed), time.process_time()
        steps = round(STEPS[job.name] * arm.steps)
        last = steps - steps // 2 if arm.first is not None else steps
        output = self.work / f"study-{job.name}-{name}-{seed}"
        if arm.first is not None:
            first = output.with_name(f"{output.name}-first")
            if not (first / "metrics.json").exists():
                self.train(variant, Path(student), first, seed, "--stage", "intermediate",
                           "--max_steps", str(steps - last), "--teacher_model",
                           self.teacher(job), *arm.first.split())  # fmt: skip
            student = str(first)
        options = ["--baseline"]
        if not arm.labels:
            options = (arm.distillation or job.distillation).split()
            if job.name == "wikitext":  # its logits are too many to store
                options += ["--teacher_model", self.teacher(job)]
            else:
                teachers = self.teachers(job, arm.teachers)
                options += ["--teacher_outputs", self.stored(variant, teachers)]
        if arm.student == "created":
            options += ["--learning_rate", CREATED_RATES[job.name]]
        trained = self.train(variant, Path(student), output, seed, "--max_steps", str(last),
                             *options)  # fmt: skip
        for folder in (output, output.with_name(f"{output.name}-first")):
            shutil.rmtree(folder, ignore_errors=True)
        return {
            "job": job.name, "arm": name, "seed": seed, "steps": steps,
            "score": trained["eval"][job.metric], "options": f"{job.student} {COMMON}",
            "cpu_seconds": round(time.process_time() - cpu, 1), **circumstances(),
        }  # fmt: skip

    def prepare(self, job: Job) -> None:
        """Make the teacher and its outputs; a language model is one as it is."""
        if job.name != "wikitext":
            super().prepare(job)

    def run_reference(self, job: Job) -> dict[str, Any]:
        """Score the teacher."""
        if job.name == "wikitext":
            scores = execute(job, "teacher", 0, self)["eval"]
        else:
            scores = self.score(job, Path(self.teacher(job)))
        return {"score": scores[job.metric], **circumstances()}


def main() -> None:
    """Run what has no result yet, then write the tables and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, list(TASKS))
    parser.set_defaults(seeds=[0, 1, 2, 3, 4], work_dir="build/study")
    parser.add_argument("--language_model", help="a Llama-like language model")
    parser.add_argument("--masked_lm", help="a masked language model, for augmentation")
    parser.add_argument("--glove_path", help="word vectors, for augmentation")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    if not options.table:
        material = StudyMaterial(options)
        for seed in options.seeds:
            for name in options.arms:
                for job in (TASKS[one] for one in options.jobs if one in ARMS[name].jobs):
                    if seed == options.seeds[0] and name == options.arms[0]:
                        reference = partial(material.run_reference, job)
                        material.run_once(f"study-{job.name}-teacher", job, reference)
                    result = f"study-{job.name}-{name}-{seed}"
                    arm = partial(material.run_arm, job, name, seed)
                    if ARMS[name].distillation != job.distillation:
                        material.run_once(result, job, arm)
                    elif (path := RESULTS / f"study-{job.name}-prediction-{seed}.json").exists():
                        write_json(result, {**read_json(path), "arm": name})
    study_report.write(TASKS, TITLES, STEPS)


if __name__ == "__main__":
    main()
