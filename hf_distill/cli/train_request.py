"""One call of ``hf-distill train``: its options, read and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import integrations
from transformers.trainer_utils import IntervalStrategy

from hf_distill.checks import check_steps
from hf_distill.cli.arguments import DataSource
from hf_distill.cli.loading import as_typed, check_model_source, check_paths, choose_task
from hf_distill.cli.parsing import CommandParser
from hf_distill.cli.run_folder import (
    METRICS,
    Start,
    check_kind,
    check_sources,
    check_strangers,
    check_unused,
    find_start,
    is_of_a_beginning,
    is_of_a_run,
)
from hf_distill.cli.train_arguments import (
    IntermediateStageArguments,
    TrainArguments,
    TrainDataArguments,
)
from hf_distill.console import log_rank_0
from hf_distill.files import display_name
from hf_distill.recipes import load_recipe
from hf_distill.tasks import TASKS, create_task
from hf_distill.tasks.base import Task
from hf_distill.tasks.options import TaskArguments
from hf_distill.teachers.caching import cached_teacher
from hf_distill.training_args import DistillationTrainingArguments


@dataclass(frozen=True)
class Request:
    """The options of one call, or of one of its stages."""

    run: TrainArguments
    data: TrainDataArguments
    first_stage: IntermediateStageArguments
    options: TaskArguments
    args: DistillationTrainingArguments
    begins_with: str | None = None
    """The folder of the student of the stage before, if there was one."""
    shows_data: bool = True
    """Show an overview of the data; it may have been shown before."""

    @cached_property
    def task(self) -> Task:
        """The task of ``--task``, or else of the teacher."""
        return choose_task(
            self.run.task,
            self.options,
            {"teacher_model": self.run.teacher_model},
            teacher_outputs=self.run.teacher_outputs,
        )

    @property
    def training_data(self) -> DataSource:
        """The data to train on, which in the first stage may be other data."""
        source, other = self.data.training, self.first_stage.intermediate_train_file
        is_other = self.args.stage == "intermediate" and other is not None
        return source._replace(option="intermediate_train_file") if is_other else source

    @property
    def has_two_stages(self) -> bool:
        """Return whether intermediate layers come first; not without a teacher."""
        return self.first_stage.wanted and not self.run.baseline

    @property
    def needs_live_teacher(self) -> list[str]:
        """Return what was asked for that stored outputs are not enough for."""
        asked = {
            "the intermediate stage (--intermediate_…)": self.first_stage.wanted,
            "--stage intermediate": self.args.stage == "intermediate",
            "recorded samples (--record_steps)": self.run.record_steps is not None,
        }
        return [what for what, wanted in asked.items() if wanted]

    @property
    def title(self) -> str:
        """Name of the training, or of the stage, on its progress bar."""
        if not self.has_two_stages:
            return "Training"
        return f"Stage {1 if self.args.stage == 'intermediate' else 2}"

    @property
    def trained(self) -> str:
        """Name of the trained model in messages: without a teacher it may become one."""
        return "model" if self.teacher_name is None else "student"

    @property
    def output_dir(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def teacher(self) -> list[str] | str | None:
        """The live teacher or teachers; ``None`` without one."""
        sources = self.run.teacher_model
        if self.run.baseline or sources is None:
            return None
        return sources[0] if len(sources) == 1 else sources

    @property
    def teacher_name(self) -> str | None:
        """Name of the teacher in reports."""
        if self.run.baseline:
            return None
        if self.run.teacher_outputs is not None:
            return cached_teacher(self.run.teacher_outputs).teacher
        if self.run.teacher_column is not None:
            return f"the column {self.run.teacher_column!r}"
        return " + ".join(map(display_name, self.run.teacher_model or ())) or None


def read_request(parser: CommandParser, argv: Iterable[str]) -> Request:
    """Read the options, and check what they alone determine; ``parser.error`` reports faults."""
    request = Request(*parser.parse(argv))
    try:
        _check_options(request)
    except ValueError as error:
        parser.error(str(error))
    return request


def _check_options(request: Request) -> None:
    run, data, args = request.run, request.data, request.args
    if run.recipe is not None:
        run.recipe = load_recipe(run.recipe).name
    _check_teacher(request)
    if run.baseline:
        _leave_the_teacher_out(request)
    if data.dataset_name is None and data.train_file is None:
        raise ValueError("there is no training data; pass --train_file or --dataset_name.")
    if data.dataset_name is not None and (data.train_file or data.validation_file):
        raise ValueError(
            "pass either --dataset_name or --train_file and --validation_file, not both."
        )
    data.check()
    if args.eval_strategy != "no" and data.validation is None:
        raise ValueError(
            f"--eval_strategy {IntervalStrategy(args.eval_strategy).value} needs data to score "
            "on: pass --validation_file."
        )
    if run.early_stopping_patience is not None and not args.load_best_model_at_end:
        raise ValueError(
            f"--early_stopping_patience {run.early_stopping_patience} needs "
            "--load_best_model_at_end, with --eval_strategy and --save_strategy."
        )
    check_training(args)
    if request.first_stage.wanted:
        _check_two_stages(request)
    if run.task is not None:
        create_task(run.task, request.options)  # which checks its options
    elif run.teacher_model is None and run.teacher_outputs is None:
        raise ValueError(
            f"--task is missing; it names what the model is to do: {', '.join(TASKS)}."
        )


def check_training(args: DistillationTrainingArguments, rows: Any = None) -> None:
    """Refuse options, or options and rows of training data, with which nothing is trained."""
    try:
        check_steps(args, rows)
    except ValueError as error:
        raise ValueError(as_typed(str(error), vars(args))) from None


def _check_teacher(request: Request) -> None:
    run, args = request.run, request.args
    if run.baseline:
        return
    stored = [name for name in ("teacher_outputs", "teacher_column") if getattr(run, name)]
    if len(stored) > 1:
        raise ValueError("pass either --teacher_outputs or --teacher_column: each is a teacher.")
    if stored:
        if run.teacher_model is not None and not request.first_stage.wanted:
            raise ValueError(
                f"pass either --teacher_model or --{stored[0]}, which has its outputs already."
            )
        asked = request.needs_live_teacher
        if run.teacher_model is not None:
            asked = asked[1:]  # it runs in the first stage
        if asked:
            raise ValueError(f"{asked[0]} needs the teacher itself: pass --teacher_model instead.")
    elif run.teacher_model is None and (args.needs_teacher or request.first_stage.wanted):
        raise ValueError(
            "--teacher_model is missing; name the model to learn from (or --teacher_outputs, or "
            "--teacher_column), or add --baseline to train without one."
        )


def _leave_the_teacher_out(request: Request) -> None:
    run, args = request.run, request.args
    if args.stage == "intermediate":
        raise ValueError(
            "--stage intermediate learns from nothing but a teacher, and --baseline leaves it out; "
            "leave one of the two out."
        )
    args.distillation_loss_weight = 0.0
    args.distillation_loss_weight_schedule = "constant"
    args.distillation_loss_weight_end = None
    args.hidden_states_loss_weight = args.attention_loss_weight = None
    for what in request.needs_live_teacher:
        log_rank_0(f"--baseline trains without a teacher, so {what} is left out.")
    run.record_steps = None


def _check_two_stages(request: Request) -> None:
    run, args = request.run, request.args
    if args.stage == "intermediate":
        raise ValueError(
            "--stage intermediate is the first stage alone; leave it out for two stages, or leave "
            "--intermediate_epochs and --intermediate_max_steps out and set --num_train_epochs."
        )
    if args.deepspeed is not None and not run.baseline:
        raise ValueError(
            "DeepSpeed's configuration is for one training, not two; run the stages one by one: "
            "first with --stage intermediate, then with that student as --student_model."
        )


def check_request(request: Request) -> tuple[Request, Start]:
    """Find at once what would fail later, and where to begin.

    Returns:
        The request, with a leading ``~`` of models replaced, and where the run begins.
    """
    run, data = request.run, request.data
    run = replace(run, student_model=check_model_source("student_model", run.student_model))
    if run.teacher_model is not None and not run.baseline:
        teachers = [check_model_source("teacher_model", source) for source in run.teacher_model]
        run = replace(run, teacher_model=teachers)
    check_paths(
        {
            "train_file": data.train_file,
            "validation_file": data.validation_file,
            "teacher_outputs": None if run.baseline else run.teacher_outputs,
            "intermediate_train_file": request.first_stage.intermediate_train_file,
        }
    )
    _check_reports(request.args.report_to or ())
    request = replace(request, run=run)
    return request, _start(request)


def _start(request: Request) -> Start:
    run, folder, wanted = request.run, request.output_dir, request.args.resume_from_checkpoint
    if run.resume and (wanted is not None or run.overwrite_output_dir):
        other = "--overwrite_output_dir" if wanted is None else "--resume_from_checkpoint"
        raise ValueError(f"--resume and {other} contradict each other; leave one of them out.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder.")
    check_kind(folder, METRICS)
    if run.overwrite_output_dir or run.resume:
        models: dict[str, Any] = {"student_model": run.student_model}
        if not run.baseline:
            models |= {name: getattr(run, name) for name in ("teacher_model", "teacher_outputs")}
        # A run that resumes replaces the model of the folder, not its checkpoints.
        replaced = is_of_a_run if run.overwrite_output_dir else lambda path: not path.parts
        check_sources(folder, models, replaced)
    if wanted is not None or run.resume:
        return find_start(folder, wanted, two_stages=request.has_two_stages)
    if not run.overwrite_output_dir:
        check_unused(folder)
        remedy = ", or replace what has the names of a run's files (--overwrite_output_dir)"
        check_strangers(folder, METRICS, is_of_a_beginning, remedy)
    return Start()


def _check_reports(names: Sequence[str]) -> None:
    known = integrations.integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            raise ValueError(f"--report_to {name} must be one of {', '.join(known)}, all or none.")
        is_there = getattr(integrations, f"is_{name.removesuffix('_ml')}_available", None)
        if is_there is not None and not is_there():
            raise ValueError(
                f"--report_to {name}: the package {name} is not installed; `pip install {name}`, "
                "or leave --report_to out."
            )
