"""One call of ``hf-distill train``: its options checked, its stages run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import integrations

from hf_distill.cli.loading import check_model_source, check_paths
from hf_distill.cli.parsing import CommandParser
from hf_distill.cli.precision import say_if_bfloat16_is_slow
from hf_distill.cli.progress import whole_run
from hf_distill.cli.run_folder import (
    Start,
    check_unused,
    find_start,
    forget_first_stage,
    is_finished,
)
from hf_distill.cli.stages import finishing, run_first_stage, split, train
from hf_distill.cli.train_arguments import (
    IntermediateStageArguments,
    TrainArguments,
)
from hf_distill.cli.training_run import Request, prepare, report
from hf_distill.console import log_rank_0
from hf_distill.recipes import load_recipe
from hf_distill.tasks import TASKS, create_task
from hf_distill.trainer import DistillationTrainer
from hf_distill.training_args import DistillationTrainingArguments


def run_request(request: Request) -> None:
    """Train, save, score and report as ``read_request`` read it.

    Raises:
        ValueError: as ``run``.
        OSError: as ``run``.
        RuntimeError: as ``run``.
    """
    if request.run.resume and is_finished(request.output_dir):
        rest = "nothing is left to do"
        if request.args.push_to_hub:
            rest = f"if it was not pushed, `hf-distill push {request.output_dir} …` does it"
        log_rank_0(f"The run in {request.output_dir} is finished; {rest}.")
        return
    start = check_request(request)
    say_if_bfloat16_is_slow(request.args)
    if request.run.recipe is not None and request.args.process_index == 0:
        sys.stderr.write(load_recipe(request.run.recipe).in_words())
    first_stage: dict[str, Any] | None = None
    with whole_run() as whole:
        if request.has_two_stages:
            first, request = split(request)
            first_stage = run_first_stage(first, request, start, whole)
            shows_data = request.shows_data and start.first_stage_done
            request = replace(request, shows_data=shows_data)
        trainer = prepare(request)
        if start == Start() and not request.has_two_stages and trainer.is_world_process_zero():
            forget_first_stage(request.output_dir, steps=True)
        with finishing(request):
            train_metrics = train(request, trainer, start.checkpoint)
    try:
        _score_and_report(request, trainer, train_metrics, first_stage)
    except BaseException:
        folder = request.output_dir
        log_rank_0(
            f"The student is trained and saved in {folder}, but its scores failed; "
            f"`hf-distill evaluate --model {folder} …` makes them without training again."
        )
        raise
    if request.args.push_to_hub:
        trainer.push_to_hub()


def _score_and_report(
    request: Request,
    trainer: DistillationTrainer,
    train_metrics: dict[str, Any],
    first_stage: dict[str, Any] | None,
) -> None:
    metrics: dict[str, Any] = {}
    scorer: Any = trainer.compute_metrics
    if request.data.validates:
        metrics = trainer.evaluate()
        metrics |= {} if scorer is None else scorer.finish(trainer)
    if trainer.is_world_process_zero():
        report(request, trainer, scorer, train_metrics, metrics, first_stage)


def read_request(parser: CommandParser, argv: Sequence[str]) -> Request:
    """Read the options, and check what can be told from them alone.

    Args:
        parser: one of ``training_parser``, without further options; its ``error`` is called.
        argv: the options.
    """
    run_arguments, data, first_stage, options, args = parser.parse(argv)
    if run_arguments.recipe is not None:
        run_arguments.recipe = load_recipe(run_arguments.recipe).name
    _check_teacher(parser, run_arguments, first_stage, args)
    if run_arguments.baseline:
        _leave_the_teacher_out(parser, run_arguments, first_stage, args)
    if data.dataset_name is None and data.train_file is None:
        parser.error("there is no training data; pass --train_file or --dataset_name.")
    if data.dataset_name is not None and (data.train_file or data.validation_file):
        parser.error("pass either --dataset_name or --train_file and --validation_file, not both.")
    if str(args.eval_strategy.value) != "no" and not data.validates:
        parser.error(
            f"--eval_strategy {args.eval_strategy.value} needs data to score on: pass "
            "--validation_file."
        )
    _check_layers(parser, run_arguments, first_stage, args)
    if run_arguments.task is not None:
        create_task(run_arguments.task, options)  # which checks its options
    elif run_arguments.teacher_model is None and run_arguments.teacher_outputs is None:
        parser.error(f"--task is missing; say what the model is to do: {', '.join(TASKS)}.")
    return Request(run_arguments, data, first_stage, options, args)


def _leave_the_teacher_out(
    parser: CommandParser,
    run_arguments: TrainArguments,
    first_stage: IntermediateStageArguments,
    args: DistillationTrainingArguments,
) -> None:
    if args.stage == "intermediate":
        parser.error(
            "--stage intermediate learns from nothing but a teacher, and --baseline leaves it out; "
            "leave one of the two out."
        )
    args.distillation_loss_weight = 0.0
    args.distillation_loss_weight_schedule = "constant"
    args.distillation_loss_weight_end = None
    args.hidden_states_loss_weight = args.attention_loss_weight = None
    left_out = {
        "the intermediate stage (--intermediate_…)": first_stage.wanted,
        "recorded samples (--record_steps)": run_arguments.record_steps is not None,
    }
    run_arguments.record_steps = None
    for what, asked in left_out.items():
        if asked:
            log_rank_0(f"--baseline trains without a teacher, so {what} is left out.")


def _check_teacher(
    parser: CommandParser,
    run: TrainArguments,
    first_stage: IntermediateStageArguments,
    args: DistillationTrainingArguments,
) -> None:
    if run.teacher_outputs is not None:
        if run.teacher_model is not None:
            parser.error(
                "pass either --teacher_model or --teacher_outputs, which has its outputs already."
            )
        needs_layers = {
            "the intermediate stage (--intermediate_…)": first_stage.wanted,
            "--stage intermediate": args.stage == "intermediate",
            "recorded samples (--record_steps)": run.record_steps is not None,
        }
        for what, asked in needs_layers.items():
            if asked and not run.baseline:
                parser.error(f"{what} needs the teacher itself: pass --teacher_model instead.")
    elif (
        run.teacher_model is None
        and not run.baseline
        and (args.needs_teacher or first_stage.wanted)
    ):
        parser.error(
            "--teacher_model is missing; name the model to learn from (or --teacher_outputs), or "
            "add --baseline to train without one."
        )


def _check_layers(
    parser: CommandParser,
    run_arguments: TrainArguments,
    first_stage: IntermediateStageArguments,
    args: DistillationTrainingArguments,
) -> None:
    if run_arguments.record_steps is not None and run_arguments.record_steps < 1:
        parser.error(f"--record_steps {run_arguments.record_steps} must be at least 1.")
    for name, value in vars(first_stage).items():
        if isinstance(value, int | float) and not value > 0:
            parser.error(f"--{name} {value} must be above 0.")
    if not first_stage.wanted:
        for name in ("intermediate_train_file", "intermediate_learning_rate"):
            if getattr(first_stage, name) is not None:
                parser.error(f"--{name} needs --intermediate_epochs.")
        return
    if args.stage == "intermediate":
        parser.error(
            "--stage intermediate is the first stage alone; leave it out for two stages, or leave "
            "--intermediate_epochs and --intermediate_max_steps out and set --num_train_epochs."
        )
    if run_arguments.task in ("summarization", "translation") and not run_arguments.baseline:
        parser.error(
            f"the models of --task {run_arguments.task} are encoders with decoders, whose "
            "intermediate layers cannot be compared yet; leave --intermediate_epochs and "
            "--intermediate_max_steps out."
        )
    if args.deepspeed is not None and not run_arguments.baseline:
        parser.error(
            "DeepSpeed's configuration is for one training, not two; run the stages one by one: "
            "first with --stage intermediate, then with that student as --student_model."
        )


def check_request(request: Request) -> Start:
    """Find what would fail later, at once; and where to begin.

    Raises:
        ValueError: a model or file is not there, or --output_dir holds another run.
    """
    run, data = request.run, request.data
    run.student_model = check_model_source("student_model", run.student_model)
    if run.teacher_model is not None and not run.baseline:
        run.teacher_model = [
            check_model_source("teacher_model", source) for source in run.teacher_model
        ]
    check_paths(
        {
            "train_file": data.train_file,
            "validation_file": data.validation_file,
            "teacher_outputs": None if run.baseline else run.teacher_outputs,
            "intermediate_train_file": request.first_stage.intermediate_train_file,
        }
    )
    _check_reports(list(request.args.report_to or ()))
    folder, wanted = request.output_dir, request.args.resume_from_checkpoint
    if run.resume and (wanted is not None or run.overwrite_output_dir):
        other = "--overwrite_output_dir" if wanted is None else "--resume_from_checkpoint"
        raise ValueError(f"--resume and {other} contradict each other; leave one of them out.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder.")
    if wanted is not None or run.resume:
        return find_start(folder, wanted, two_stages=request.has_two_stages)
    if not run.overwrite_output_dir:
        check_unused(folder)
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
