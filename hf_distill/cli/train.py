"""``hf-distill train``: a student, with a teacher or alone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_distill._version import __version__
from hf_distill.cli.arguments import (
    TaskArguments,
    TrainArguments,
    TrainDataArguments,
    names,
    task_sections,
)
from hf_distill.cli.loading import (
    check_model_source,
    check_paths,
    data_name,
    load_config,
    load_examples,
    load_student,
    load_tokenizer,
    spread,
)
from hf_distill.cli.parsing import CommandParser, Preset, Section
from hf_distill.cli.tasks import Scorer, Task, create_task, say
from hf_distill.recipes import load_recipe
from hf_distill.reporting.files import display_name, write_json
from hf_distill.trainer import DistillationTrainer
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
_RUN_FILES = ("config.json", "*.safetensors", "checkpoint-*", "metrics.json", "predictions.json")


@dataclass(frozen=True)
class _Request:
    """The options of one call."""

    run: TrainArguments
    data: TrainDataArguments
    task: Task
    args: DistillationTrainingArguments


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
    checkpoint = _check(request)
    args = request.args
    if request.run.recipe is not None and args.process_index == 0:
        sys.stderr.write(load_recipe(request.run.recipe).in_words())
    trainer = _prepare(request)
    if checkpoint is None and trainer.is_world_process_zero():
        for earlier in Path(str(args.output_dir)).glob("checkpoint-*"):
            shutil.rmtree(earlier)
    trainer.accelerator.wait_for_everyone()
    try:
        output = trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            _say_how_to_resume(str(args.output_dir))
        raise
    trainer.save_model()
    trainer.save_state()
    metrics: dict[str, Any] = {}
    scorer: Any = trainer.compute_metrics
    if scorer is not None:
        metrics = {**trainer.evaluate(), **scorer.finish(trainer)}
    if trainer.is_world_process_zero():
        _report(request, trainer, scorer, output.metrics, metrics)
    if args.push_to_hub:
        trainer.push_to_hub()


def build_parser() -> CommandParser:
    """The parser of the command."""
    inherited = {f.name for f in fields(TrainingArguments)}
    own = [f.name for f in fields(DistillationTrainingArguments) if f.name not in inherited]
    sections = [
        Section("model", names(TrainArguments)),
        Section("data", names(TrainDataArguments)),
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


def _read(argv: Sequence[str]) -> _Request:
    parser = build_parser()
    run_arguments, data, options, args = parser.parse(argv)
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
    return _Request(run_arguments, data, create_task(run_arguments.task, options), args)


def _check(request: _Request) -> str | None:
    """Find what would fail later, at once; and the checkpoint to go on from, if any."""
    run, data = request.run, request.data
    run.student_model = check_model_source("student_model", run.student_model)
    if run.teacher_model is not None and not run.baseline:
        run.teacher_model = check_model_source("teacher_model", run.teacher_model)
    check_paths({"train_file": data.train_file, "validation_file": data.validation_file})
    folder, wanted = str(request.args.output_dir), request.args.resume_from_checkpoint
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder.")
    if wanted is not None:
        return _find_checkpoint(folder, wanted)
    found = sorted(path.name for name in _RUN_FILES for path in Path(folder).glob(name))
    if found and not run.overwrite_output_dir:
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ValueError(
            f"--output_dir {folder} holds an earlier run ({shown}). Choose another folder, "
            "go on with that run (--resume_from_checkpoint last), or replace it "
            "(--overwrite_output_dir)."
        )
    return None


def _find_checkpoint(folder: str, wanted: str) -> str:
    if wanted.lower() in ("last", "true"):
        last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
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


def _prepare(request: _Request) -> DistillationTrainer:
    """Load data and models; whatever does not fit together is refused here."""
    run, data, task, args = request.run, request.data, request.task, request.args
    source: dict[str, Any] = {
        "dataset_name": data.dataset_name,
        "config_name": data.dataset_config_name,
        "revision": data.dataset_revision,
    }
    train = load_examples(task, data.train_file, split=data.train_split, **source)
    validation = None
    if data.validation_file is not None or (data.dataset_name and data.validation_split != "none"):
        validation = load_examples(
            task,
            data.validation_file,
            split=data.validation_split,
            most=data.max_eval_samples,
            **source,
        )
    tokenizer = load_tokenizer("student_model", run.student_model)
    # From all of the data, and alike with and without --baseline: a label may be rare.
    teacher_config = None if run.teacher_model is None else load_config(run.teacher_model)
    options = task.model_options(train, load_config(run.student_model), teacher_config)
    if data.max_train_samples is not None:
        train = spread(train, data.max_train_samples)
    # Before the student: its new head begins the same with and without a teacher.
    set_seed(args.seed)
    student, new_parts = load_student(run.student_model, task, **options)
    if new_parts:
        say(f"New in the student, so trained from scratch: {', '.join(new_parts)}")
    workers = data.preprocessing_num_workers
    train_features = task.features(train, tokenizer, student, training=True, num_proc=workers)
    features = scorer = None
    if validation is not None:
        features = task.features(validation, tokenizer, student, training=False, num_proc=workers)
        scorer = task.scorer(validation, features, tokenizer, student)
    return DistillationTrainer(
        model=student,
        teacher_model=None if run.baseline else run.teacher_model,
        args=args,
        train_dataset=train_features,
        eval_dataset=features,
        data_collator=task.data_collator(tokenizer, student),
        processing_class=tokenizer,
        compute_metrics=scorer,
        preprocess_logits_for_metrics=None if scorer is None else scorer.preprocess_logits,
    )


def _say_how_to_resume(folder: str) -> None:
    last = get_last_checkpoint(folder)
    if last is None:
        message = "No checkpoint had been saved yet (see --save_strategy and --save_steps)."
    else:
        message = (
            f"The last checkpoint is {last}. To go on from it, repeat the command with "
            "--resume_from_checkpoint last"
        )
    sys.stderr.write(f"\n{message}\n")


def _report(
    request: _Request,
    trainer: DistillationTrainer,
    scorer: Scorer | None,
    train_metrics: dict[str, Any],
    eval_metrics: dict[str, Any],
) -> None:
    """Write metrics and predictions, and show the scores."""
    from hf_distill.reporting.tables import print_figures

    run, data, args = request.run, request.data, request.args
    folder = Path(str(args.output_dir))
    scores = {name.removeprefix("eval_"): value for name, value in eval_metrics.items()}
    inherited = {f.name for f in fields(TrainingArguments)}
    has_teacher = run.teacher_model is not None and not run.baseline
    teacher = display_name(str(run.teacher_model)) if has_teacher else None
    validation = None
    if scorer is not None:
        validation = data_name(data.validation_file, data.dataset_name, data.validation_split)
    content = {
        "hf_distill_version": __version__,
        "task": request.task.name,
        "recipe": run.recipe,
        "student_model": display_name(run.student_model),
        "teacher_model": teacher,
        "train_data": data_name(data.train_file, data.dataset_name, data.train_split),
        "validation_data": validation,
        "distillation": {
            f.name: getattr(args, f.name) for f in fields(args) if f.name not in inherited
        },
        "steps": trainer.state.global_step,
        "train": {name.removeprefix("train_"): value for name, value in train_metrics.items()},
        "eval": scores,
    }
    write_json(folder / "metrics.json", content)
    figures = {"training loss": train_metrics["train_loss"]}
    if scorer is not None:
        for name, predictions in scorer.files().items():
            write_json(folder / name, predictions)
        quality = scorer.measures.quality
        figures |= {label: scores[key] for key, label in quality.items()}
        figures |= {
            name: value
            for name, value in scores.items()
            if name not in quality
            and not name.endswith(("runtime", "per_second", "epoch", "_time"))
        }
    print_figures(f"{display_name(folder)}: {trainer.state.global_step} steps", figures)
    sys.stdout.write(
        f"The student is in {args.output_dir}. Its scores are in metrics.json there.\n"
    )
