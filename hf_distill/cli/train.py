"""``hf-distill train``: a student, with a teacher or alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_distill.cli.arguments import TaskArguments, names, task_sections
from hf_distill.cli.loading import check_model_source, check_paths
from hf_distill.cli.parsing import CommandParser, Preset, Section
from hf_distill.cli.stages import INTERMEDIATE, intermediate_stage, prediction_arguments, train
from hf_distill.cli.tasks import create_task
from hf_distill.cli.train_arguments import (
    IntermediateStageArguments,
    TrainArguments,
    TrainDataArguments,
)
from hf_distill.cli.training_run import Request, prepare, report
from hf_distill.recipes import load_recipe
from hf_distill.training_args import DistillationTrainingArguments

EXAMPLES = """\
examples:
  a teacher: any model that is good enough, fine-tuned without help
    hf-distill train --task question-answering --baseline --student_model BIG_MODEL \\
        --train_file train.json --validation_file dev.json --output_dir teacher

  a student that learns from it
    hf-distill train --task question-answering --student_model SMALL_MODEL \\
        --teacher_model teacher --train_file train.json --validation_file dev.json \\
        --temperature 5 --distillation_loss_weight 1.0 --output_dir distilled

  the same student alone, to see what the teacher was worth
    the same command with --baseline and another --output_dir, then
    hf-distill compare --teacher teacher --student_alone alone \\
        --student_distilled distilled --file dev.json

  a pair that is known to work (`hf-distill recipes` lists them), then with other data
    hf-distill train --recipe bert-medium-squad2 --output_dir distilled
    hf-distill train --recipe bert-medium-squad2 --train_file train.json \\
        --validation_file dev.json --output_dir distilled

  options from a file; those on the command line come first
    hf-distill train --config run.yaml --seed 1

  two GPUs; two processes on a CPU
    accelerate launch --num_processes 2 -m hf_distill train …
    accelerate launch --multi_gpu --num_processes 2 -m hf_distill train … --use_cpu

  two stages: hidden states and attentions first, then the answers (TinyBERT)
    hf-distill train … --intermediate_epochs 5 --intermediate_train_file augmented.json

  go on after an interruption: the same command with --resume_from_checkpoint last
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

# What an earlier run leaves behind, which a new one would overwrite or mistake for its own.
_RUN_FILES = (
    "config.json", "*.safetensors", "checkpoint-*", "metrics.json", "predictions.json", INTERMEDIATE
)  # fmt: skip


def run(argv: Sequence[str]) -> None:
    """Train, save, score and report.

    Args:
        argv: the options, without the command's name.

    Raises:
        ValueError: an option, a model or the data cannot be used; nothing was trained then.
        OSError: a file or a download failed.
        RuntimeError: the processes were launched in a way that cannot train one model.
    """
    request = _read(argv)
    args = request.args
    resumes = args.resume_from_checkpoint is not None
    checkpoint = _check(request)
    if request.run.recipe is not None and args.process_index == 0:
        sys.stderr.write(load_recipe(request.run.recipe).in_words())
    if request.has_two_stages:
        if checkpoint is None:
            student = intermediate_stage(request, resumes=resumes)
            request = replace(request, run=replace(request.run, student_model=student))
        prediction_arguments(args)
    trainer = prepare(request)
    train_metrics = train(trainer, checkpoint)
    metrics: dict[str, Any] = {}
    scorer: Any = trainer.compute_metrics
    if scorer is not None:
        metrics = {**trainer.evaluate(), **scorer.finish(trainer)}
    if trainer.is_world_process_zero():
        report(request, trainer, scorer, train_metrics, metrics)
    if args.push_to_hub:
        trainer.push_to_hub()


def build_parser() -> CommandParser:
    """The parser of the command."""
    inherited = {f.name for f in fields(TrainingArguments)}
    own = [f.name for f in fields(DistillationTrainingArguments) if f.name not in inherited]
    sections = [
        Section("model", names(TrainArguments)),
        Section("data", names(TrainDataArguments)),
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
            TrainArguments,
            TrainDataArguments,
            IntermediateStageArguments,
            TaskArguments,
            DistillationTrainingArguments,
        ],
        prog="hf-distill train",
        usage="hf-distill train --task TASK --student_model MODEL --teacher_model MODEL "
        "--train_file FILE\n"
        "                        [--validation_file FILE] --output_dir FOLDER [options]",
        description="Fine-tune a small model (the student) with the help of a bigger, fine-tuned "
        "one (the teacher).",
        sections=sections,
        rest="everything else that transformers.TrainingArguments takes",
        hidden=_WITHOUT_EFFECT,
        preset=Preset(
            "recipe",
            lambda name: load_recipe(name).options(),
            part=names(TrainDataArguments),
            replaced_by=("train_file", "dataset_name"),
        ),
        epilog=EXAMPLES,
    )
    _describe_as_here(parser)
    return parser


def _describe_as_here(parser: CommandParser) -> None:
    """Say what this program makes of options that ``TrainingArguments`` leaves to scripts."""
    texts = {
        "output_dir": "Where the student, its tokenizer, checkpoints, metrics.json and the "
        "predictions go.",
        "resume_from_checkpoint": "Go on from a checkpoint: its folder, or `last` for the last "
        "one in --output_dir.",
    }
    for action in parser._actions:
        if action.dest in texts:
            action.help = texts[action.dest]
            action.required = action.dest == "output_dir"


def _read(argv: Sequence[str]) -> Request:
    parser = build_parser()
    run_arguments, data, first_stage, options, args = parser.parse(argv)
    if run_arguments.baseline:
        args.distillation_loss_weight = 0.0
        args.distillation_loss_weight_schedule = "constant"
        args.distillation_loss_weight_end = None
    elif run_arguments.teacher_model is None and args.distils:
        parser.error(
            "--teacher_model is missing; name the model to learn from, or add --baseline to train "
            "without one."
        )
    if data.dataset_name is None and data.train_file is None:
        parser.error("there is no training data; pass --train_file or --dataset_name.")
    if data.dataset_name is not None and (data.train_file or data.validation_file):
        parser.error("pass either --dataset_name or --train_file and --validation_file, not both.")
    validates = data.validation_file is not None or (
        data.dataset_name is not None and data.validation_split != "none"
    )
    if str(args.eval_strategy.value) != "no" and not validates:
        parser.error(
            f"--eval_strategy {args.eval_strategy.value} needs data to score on: pass "
            "--validation_file."
        )
    _check_first_stage(parser, run_arguments, first_stage, args)
    task = create_task(run_arguments.task, options)
    return Request(run_arguments, data, first_stage, task, args)


def _check_first_stage(
    parser: CommandParser,
    run_arguments: TrainArguments,
    first_stage: IntermediateStageArguments,
    args: DistillationTrainingArguments,
) -> None:
    wanted = first_stage.intermediate_epochs, first_stage.intermediate_max_steps
    if all(value is None for value in wanted):
        for name in ("intermediate_train_file", "intermediate_learning_rate"):
            if getattr(first_stage, name) is not None:
                parser.error(f"--{name} needs --intermediate_epochs.")
        return
    for name in ("intermediate_epochs", "intermediate_max_steps"):
        value = getattr(first_stage, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} {value} must be above 0.")
    if args.stage == "intermediate":
        parser.error(
            "--stage intermediate is the first stage alone; leave it out for two stages, or leave "
            "--intermediate_epochs out and set --num_train_epochs."
        )


def _check(request: Request) -> str | None:
    """Find what would fail later, at once; and the checkpoint to go on from, if any."""
    run, data = request.run, request.data
    run.student_model = check_model_source("student_model", run.student_model)
    if run.teacher_model is not None and not run.baseline:
        run.teacher_model = check_model_source("teacher_model", run.teacher_model)
    check_paths(
        {
            "train_file": data.train_file,
            "validation_file": data.validation_file,
            "intermediate_train_file": request.first_stage.intermediate_train_file,
        }
    )
    folder, wanted = str(request.args.output_dir), request.args.resume_from_checkpoint
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder.")
    if wanted is not None:
        return _find_checkpoint(folder, wanted, first_stage=request.has_two_stages)
    found = sorted(path.name for name in _RUN_FILES for path in Path(folder).glob(name))
    if found and not run.overwrite_output_dir:
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ValueError(
            f"--output_dir {folder} holds an earlier run ({shown}). Choose another folder, "
            "go on with that run (--resume_from_checkpoint last), or replace it "
            "(--overwrite_output_dir)."
        )
    return None


def _find_checkpoint(folder: str, wanted: str, *, first_stage: bool) -> str | None:
    if wanted.lower() in ("last", "true"):
        last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        if last is None and first_stage and (Path(folder) / INTERMEDIATE).is_dir():
            return None
        if last is None:
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: there is no checkpoint in --output_dir "
                f"{folder}; leave the option out to begin anew."
            )
        return last
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise ValueError(
            f"--resume_from_checkpoint {wanted}: this is no checkpoint (no trainer_state.json); "
            "name a folder checkpoint-…, or `last` for the last one in --output_dir."
        )
    return wanted
