"""``hf-distill train``: a student, with a teacher or alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hf_distill.cli.arguments import task_sections
from hf_distill.cli.outline import outline
from hf_distill.cli.output import shown_command
from hf_distill.cli.parsing import CommandParser, Preset, Section
from hf_distill.cli.train_arguments import (
    IntermediateStageArguments,
    TrainArguments,
    TrainDataArguments,
)
from hf_distill.recipes import load_recipe
from hf_distill.tasks.options import TaskArguments, names

EXAMPLES = """\
examples:
  a teacher: any model that is good enough, fine-tuned without help
    hf-distill train --task question-answering --baseline --student_model BIG_MODEL \\
        --train_file train.json --validation_file dev.json --output_dir teacher

  a student that learns from it
    hf-distill train --student_model SMALL_MODEL --teacher_model teacher \\
        --train_file train.json --validation_file dev.json \\
        --temperature 5 --distillation_loss_weight 1.0 --output_dir distilled

  the same student alone, to see what the teacher was worth
    the same command with --baseline and another --output_dir, then
    hf-distill compare --teacher teacher --student_alone alone \\
        --student_distilled distilled --file dev.json

  a pair with published settings (`hf-distill recipes` lists them), then with other data
    hf-distill train --recipe bert-medium-squad2 --output_dir distilled
    hf-distill train --recipe bert-medium-squad2 --train_file train.json \\
        --validation_file dev.json --output_dir distilled

  options from a file; those on the command line come first
    hf-distill train --config run.yaml --seed 1

  two GPUs; two processes on a CPU
    accelerate launch --num_processes 2 -m hf_distill train …
    accelerate launch --multi_gpu --num_processes 2 -m hf_distill train … --use_cpu

  two stages: hidden states first, then the answers (TinyBERT)
    hf-distill train … --intermediate_epochs 5 --intermediate_train_file augmented.json

  what the two attend to, as pictures of a training sentence every 200 steps
    hf-distill train … --record_steps 200
    hf-distill plot distilled

  a command that can be given again after every interruption
    hf-distill train … --resume
"""

_TRAINING_BASICS = (
    "output_dir", "num_train_epochs", "max_steps", "learning_rate", "warmup_steps",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "bf16", "use_cpu", "seed", "logging_steps", "eval_strategy", "eval_steps", "save_strategy",
    "save_steps", "save_total_limit", "load_best_model_at_end", "resume_from_checkpoint",
    "push_to_hub",
)  # fmt: skip
# Options of TrainingArguments that are for the scripts around it; these commands do not ask.
_WITHOUT_EFFECT = ("do_train", "do_eval", "do_predict", "local_rank")


def run(argv: Sequence[str]) -> None:
    """Train, save, score and report."""
    # Help, and most mistakes, before PyTorch is imported.
    build_parser(outlined=True).given(argv)

    from hf_distill.cli.run_report import run_report
    from hf_distill.cli.stages import run_request
    from hf_distill.cli.train_request import read_request
    from hf_distill.plotting import why_no_pictures
    from hf_distill.reports.measurements import describe_machine
    from hf_distill.reports.report import write_report

    request = read_request(build_parser(), argv)
    run_request(request)
    if request.args.process_index == 0:
        command = shown_command("train", argv)
        machine = describe_machine(request.args.device)
        report = run_report(request.output_dir, command, machine)
        page, _ = write_report(report, request.output_dir)
        sys.stdout.write(f"Its report is {page}\n")
        if missing := why_no_pictures():
            sys.stderr.write(f"{missing}\n")


def build_parser(*, outlined: bool = False) -> CommandParser:
    return training_parser(
        outlined=outlined,
        prog="hf-distill train",
        usage="hf-distill train --student_model MODEL --teacher_model MODEL --train_file FILE\n"
        "                        [--validation_file FILE] --output_dir FOLDER [options]",
        description="Fine-tune a small model (the student) with the help of a bigger, fine-tuned "
        "one (the teacher).",
        epilog=EXAMPLES,
    )


def training_parser(
    *,
    further: Sequence[type] = (),
    title: str = "",
    outlined: bool = False,
    help_texts: Mapping[str, str] = {},
    **wording: Any,
) -> CommandParser:
    """Make a parser of all options of a training.

    Args:
        further: dataclasses of options that come before them.
        title: the title of those in the help text.
        outlined: read the options of ``Trainer`` from their source: for help and names, before
            PyTorch is imported.
        help_texts: the meaning of options, by name, where it is another one.
        **wording: what else ``CommandParser`` takes.
    """
    inherited, arguments = _outlined_arguments() if outlined else _training_arguments()
    own = [name for name in names(arguments) if name not in names(inherited)]
    sections = [
        *([Section(title, names(*further))] if further else []),
        Section("model", names(TrainArguments)),
        Section("data", ["train_file", "validation_file", *names(TrainDataArguments)]),
        Section("two stages", names(IntermediateStageArguments)),
        *task_sections(),
        Section(
            "distillation",
            own,
            "The loss of a step is (1 - w) * label loss + w * distillation loss.",
        ),
        Section("training", _TRAINING_BASICS),
    ]
    parser = CommandParser(
        [
            *further,
            TrainArguments,
            TrainDataArguments,
            IntermediateStageArguments,
            TaskArguments,
            arguments,
        ],
        sections=sections,
        rest="everything else that transformers.TrainingArguments takes",
        hidden=_WITHOUT_EFFECT,
        preset=Preset(
            "recipe",
            lambda name: load_recipe(name).options(),
            part=names(TrainDataArguments),
            replaced_by=("train_file", "dataset_name"),
        ),
        **wording,
    )
    texts = {
        "output_dir": "Where the student, its tokenizer, checkpoints, metrics.json and the "
        "predictions go.",
        "resume_from_checkpoint": "Resume from this checkpoint: its folder, or `last` for the last "
        "one in --output_dir. There must be one; see also --resume.",
    }
    parser.describe({**texts, **help_texts}, required="output_dir")
    return parser


def _training_arguments() -> tuple[type, type]:
    from transformers import TrainingArguments

    from hf_distill.training_args import DistillationTrainingArguments

    return TrainingArguments, DistillationTrainingArguments


@cache
def _outlined_arguments() -> tuple[type, type]:
    theirs = "transformers.training_args:TrainingArguments"
    ours = "hf_distill.training_args:DistillationTrainingArguments"
    try:
        return outline(theirs), outline(theirs, ours)
    except OSError:  # an installation without sources
        return _training_arguments()
