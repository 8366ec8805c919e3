"""Two stages in one command: intermediate layers first, then the prediction layer."""

from __future__ import annotations

import copy
import gc
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from hf_distill.cli.tasks import say
from hf_distill.cli.training_run import Request, prepare
from hf_distill.reporting.files import write_json
from hf_distill.trainer import DistillationTrainer
from hf_distill.training_args import DistillationTrainingArguments

INTERMEDIATE = "intermediate"
_DONE = "metrics.json"


def train(trainer: DistillationTrainer, checkpoint: str | None) -> dict[str, Any]:
    """Train, from a checkpoint or anew; what an earlier run left is deleted then.

    Returns:
        The training metrics.
    """
    folder = str(trainer.args.output_dir)
    if checkpoint is None and trainer.is_world_process_zero():
        for earlier in Path(folder).glob("checkpoint-*"):
            shutil.rmtree(earlier)
    trainer.accelerator.wait_for_everyone()
    try:
        output = trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            _say_how_to_resume(folder)
        raise
    trainer.save_model()
    trainer.save_state()
    metrics: dict[str, Any] = output.metrics
    return metrics


def intermediate_stage(request: Request, *, resumes: bool) -> str:
    """Train the first stage, as far as that was not done before.

    Args:
        request: of the whole command.
        resumes: go on with what is there.

    Returns:
        The folder of the student that the second stage begins with.
    """
    folder = Path(str(request.args.output_dir)) / INTERMEDIATE
    if resumes and (folder / _DONE).exists():
        say(f"The intermediate stage is done; its student is in {folder}.")
        return str(folder)
    checkpoint = get_last_checkpoint(str(folder)) if resumes and folder.is_dir() else None
    say("Stage 1 of 2: intermediate layers.")
    trainer = prepare(_first_stage(request, folder))
    metrics = train(trainer, checkpoint)
    if trainer.is_world_process_zero():
        last = [entry for entry in trainer.state.log_history if "loss" in entry][-1:]
        write_json(folder / _DONE, {"steps": trainer.state.global_step, "train": metrics,
                                    "last_log": last})  # fmt: skip
    trainer.accelerator.wait_for_everyone()
    del trainer
    gc.collect()  # both models and the optimizer, before the second stage loads its own
    say("Stage 2 of 2: prediction layer.")
    return str(folder)


def prediction_arguments(args: DistillationTrainingArguments) -> None:
    """Leave the options of intermediate layers to the first of two stages."""
    args.hidden_states_loss_weight = args.attention_loss_weight = None


def _first_stage(request: Request, folder: Path) -> Request:
    stage, args = request.first_stage, copy.copy(request.args)
    args.output_dir = str(folder)
    args.stage = "intermediate"
    args.eval_strategy = IntervalStrategy.NO
    args.load_best_model_at_end = args.push_to_hub = False
    if stage.intermediate_epochs is not None:
        args.num_train_epochs = stage.intermediate_epochs
    args.max_steps = stage.intermediate_max_steps or -1
    if stage.intermediate_learning_rate is not None:
        args.learning_rate = stage.intermediate_learning_rate
    args.check_distillation_options()
    data = replace(request.data, validation_file=None, validation_split="none")
    if stage.intermediate_train_file is not None:
        data = replace(data, train_file=stage.intermediate_train_file, dataset_name=None)
    return replace(request, args=args, data=data)


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
