"""Runs ``hf-distill train``: one training, or intermediate layers first and then predictions."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_distill.checkpoints import deferring_sigterm, last_complete_checkpoint
from hf_distill.cli.continuing import is_said_outside
from hf_distill.cli.finished import check_finished
from hf_distill.cli.precision import warn_if_bfloat16_is_slow
from hf_distill.cli.progress import StageProgress, WholeRun, whole_run
from hf_distill.cli.run_folder import (
    INTERMEDIATE,
    LOCK,
    METRICS,
    Start,
    delete_first_stage,
    delete_steps,
    first_stage_summary,
    is_finished,
    make_output_folder,
)
from hf_distill.cli.train_request import Request, check_request
from hf_distill.cli.training_run import prepare, report, summary
from hf_distill.console import log_rank_0
from hf_distill.files import in_use, write_json
from hf_distill.launch import check_launch
from hf_distill.recipes import Recipe, load_recipe
from hf_distill.trainer import DistillationTrainer


def run_request(request: Request) -> None:
    """Train, save, score and report."""
    if request.run.resume and is_finished(request.output_dir):
        check_finished(_split(request) if request.has_two_stages else [request])
        rest = "nothing is left to do"
        if request.args.push_to_hub:
            rest = f"if it was not pushed, `hf-distill push {request.output_dir} …` does it"
        log_rank_0(f"The run in {request.output_dir} is finished; {rest}.")
        return
    request, start = check_request(request)
    # Before a lock that processes of one launch would keep from each other.
    check_launch(request.args)
    folder = request.output_dir
    busy = (
        f"--output_dir {folder}: another training is at work in this folder; wait for it, or "
        "choose another folder."
    )
    with ExitStack() as stack:
        if request.args.process_index == 0:  # which writes for all processes of a run
            make_output_folder(folder)
            stack.enter_context(in_use(folder / LOCK, busy))
        _run(request, start)


def _run(request: Request, start: Start) -> None:
    warn_if_bfloat16_is_slow(request.args)
    if request.run.recipe is not None and request.args.process_index == 0:
        sys.stderr.write(_recipe_in_words(request, load_recipe(request.run.recipe)))
    first_stage: dict[str, Any] | None = None
    with whole_run() as whole:
        if request.has_two_stages:
            first, request = _split(request)
            first_stage = _run_first_stage(first, request, start, whole)
            shows_data = request.shows_data and start.first_stage_done
            request = replace(request, shows_data=shows_data)
        trainer = prepare(request)
        if start == Start() and not request.has_two_stages and trainer.is_world_process_zero():
            delete_first_stage(request.output_dir, steps=True)
        with _finishing(request):
            train_metrics = _train(request, trainer, start.checkpoint)
    try:
        metrics: dict[str, Any] = {}
        if request.data.validation is not None:
            metrics = trainer.evaluate()
            scorer: Any = trainer.compute_metrics
            metrics |= {} if scorer is None else scorer.finish(trainer)
        if trainer.is_world_process_zero():
            report(request, trainer, train_metrics, metrics, first_stage)
    except BaseException:
        folder = request.output_dir
        log_rank_0(
            f"The student is trained and saved in {folder}, but its scores failed; "
            f"`hf-distill evaluate --model {folder} …` makes them without training again."
        )
        raise
    if request.args.push_to_hub:
        trainer.push_to_hub()


def _split(request: Request) -> tuple[Request, Request]:
    """Return the requests of the two stages; the first is refused if it has nothing to learn."""
    stage = request.first_stage
    args = copy.copy(request.args)
    args.output_dir = str(request.output_dir / INTERMEDIATE)
    args.stage = "intermediate"
    args.eval_strategy = IntervalStrategy.NO
    args.eval_on_start = args.load_best_model_at_end = args.push_to_hub = False
    if args.save_strategy == SaveStrategy.BEST:
        args.save_strategy = SaveStrategy.EPOCH
    if stage.intermediate_epochs is not None:
        args.num_train_epochs = stage.intermediate_epochs
    args.max_steps = stage.intermediate_max_steps or -1
    if stage.intermediate_learning_rate is not None:
        args.learning_rate = stage.intermediate_learning_rate
    args.check_distillation_options()
    data = replace(request.data, validation_file=None, validation_split="none")
    if stage.intermediate_train_file is not None:
        data = replace(data, train_file=stage.intermediate_train_file, dataset_name=None)
    run = replace(
        request.run,
        teacher_outputs=None,
        teacher_column=None,
        teacher_column_kind="probabilities",
    )
    second = copy.copy(request.args)
    # Options of intermediate layers are the first stage's.
    second.hidden_states_loss_weight = second.attention_loss_weight = None
    # The second stage's data is shown before the first stage begins.
    shows_data = stage.intermediate_train_file is not None
    first = replace(request, run=run, args=args, data=data, shows_data=shows_data)
    if request.run.teacher_outputs is not None or request.run.teacher_column is not None:
        request = replace(request, run=replace(request.run, teacher_model=None))
    return first, replace(request, args=second, begins_with=args.output_dir)


def _run_first_stage(
    first: Request, second: Request, start: Start, whole: WholeRun
) -> dict[str, Any]:
    """Train the first stage, as far as that was not done before, and return it in figures.

    Before anything is trained, the models and data of the next one are loaded, so that faults of
    theirs are found now.
    """
    folder = second.output_dir
    if start.first_stage_done:
        log_rank_0(f"The intermediate stage is done; its student is in {first.output_dir}.")
        done = first_stage_summary(folder)
        assert done is not None
        return done
    dry_run = prepare(replace(second, begins_with=None))
    dry_run.check()
    steps = _steps(dry_run)
    student: Any = dry_run.model
    tokenizer: Any = dry_run.processing_class
    del dry_run
    log_rank_0("Stage 1 of 2: intermediate layers.")
    trainer = prepare(first, student, tokenizer)
    whole.expect([_steps(trainer), steps])
    del student
    trainer.accelerator.wait_for_everyone()  # all of them know where to begin
    if trainer.is_world_process_zero():
        delete_first_stage(folder, steps=start.first_stage_checkpoint is None)
        delete_steps(folder)
    with _finishing(first):
        metrics = _train(first, trainer, start.first_stage_checkpoint)
        content = {
            **summary(first, trainer, metrics),
            "stage": trainer.stage_facts(),
            "log": trainer.state.log_history[-2:],
        }
        if trainer.is_world_process_zero():
            write_json(first.output_dir / METRICS, content)
    trainer.accelerator.wait_for_everyone()
    # Both models and the optimizer, before the second stage loads its own.
    trainer.accelerator.free_memory()
    log_rank_0(f"Stage 2 of 2: prediction layer. The student of stage 1 is in {first.output_dir}.")
    return content


def _recipe_in_words(request: Request, recipe: Recipe) -> str:
    """Return what a recipe is, and which parts of it options have replaced."""
    parts = (request.run, request.data, request.first_stage, request.options, request.args)
    used = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
    yours = [n for n, value in recipe.options().items() if used[n] not in (value, [value])]
    if request.run.baseline:  # which takes out what the teacher is for
        yours = [name for name in yours if "loss_weight" not in name and name != "teacher_model"]
    if request.data.train_file is not None:
        yours = ["train_file", *(name for name in yours if name not in recipe.data)]
    text = recipe.in_words()
    if {"student_model", "teacher_model", "train_file"} <= {*yours}:
        text = (
            f"Recipe {recipe.name}: its settings, for other models and data than its own "
            f"(`hf-distill recipes {recipe.name}` explains it).\n"
        )
    if not yours:
        return text
    return f"{text}Yours instead of the recipe's: {', '.join(f'--{name}' for name in yours)}.\n"


def _steps(trainer: DistillationTrainer) -> float:
    """Return about how many steps a training takes."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.num_train_epochs * len(trainer.train_dataset) / batch  # type: ignore[arg-type]


def _train(
    request: Request, trainer: DistillationTrainer, checkpoint: str | None
) -> dict[str, Any]:
    """Train from a checkpoint, or from the beginning, which deletes what an earlier run left."""
    if checkpoint is None and trainer.is_world_process_zero():
        delete_steps(request.output_dir)
    trainer.accelerator.wait_for_everyone()
    try:
        output = trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, StageProgress):
                callback.close()
    trainer.save_model(_internal_call=True)  # which pushes nothing: the report is to come first
    trainer.save_state()
    metrics: dict[str, Any] = output.metrics
    return metrics


@contextmanager
def _finishing(request: Request) -> Iterator[None]:
    """Let a SIGTERM wait until a finished training is written, and explain how to resume."""
    try:
        with deferring_sigterm():
            yield
    except (KeyboardInterrupt, SystemExit):
        if request.args.process_index == 0:
            sys.stderr.write(f"\n{_how_to_resume(request)}\n")
        raise


def _how_to_resume(request: Request) -> str:
    """Say what is kept, and for ``train`` itself how to continue."""

    def advice(purpose: str) -> str:
        return "" if is_said_outside() else f" {purpose}, repeat the command with --resume"

    if is_finished(request.output_dir):
        return f"The training is done and its student saved.{advice('To resume after it')}"
    last = last_complete_checkpoint(request.output_dir)
    if last is not None:
        return f"The last checkpoint is {last}.{advice('To resume from it')}"
    options = "" if is_said_outside() else " (see --save_strategy and --save_steps)"
    message = f"No checkpoint had been saved yet{options}."
    if request.begins_with is None:
        return message
    return f"{message} The intermediate stage is done.{advice('To resume after it')}"
