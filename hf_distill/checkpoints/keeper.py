"""Complete checkpoints, resumed by the same distillation, and one more after a SIGTERM.

Machines that can be taken away send SIGTERM first.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, has_length, rotate_checkpoints

from hf_distill.checkpoints.record import (
    RECORD_FILE,
    UNFINISHED_FILE,
    check_checkpoint,
    last_complete_checkpoint,
    write_record,
)
from hf_distill.restoring import restore_rng_states, rng_states

logger = logging.getLogger(__name__)

TERMINATED = 128 + 15
"""The exit status of a process that ended because of SIGTERM."""

_TORCH_SAVE = ("inline_container", "PytorchStreamWriter")
"""Parts of the error messages of ``torch.save``, whose errors have no class of their own."""

T = TypeVar("T")


class Terminated(BaseException):
    """Training ends because of a SIGTERM."""


@contextmanager
def noting_sigterm(note: Callable[[], None]) -> Iterator[None]:
    """Note a SIGTERM inside instead of ending the process. Only the main thread can listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: note())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def deferring_sigterm() -> Iterator[None]:
    """Let a SIGTERM wait until the block is done.

    Raises:
        SystemExit: then, with 143.
    """
    told: list[bool] = []
    with noting_sigterm(lambda: told.append(True)):
        yield
    if told:
        raise SystemExit(TERMINATED)


class CheckpointKeeper(TrainerCallback):
    """Marks the checkpoints of a run as complete, and leaves a training in which a SIGTERM came.

    At the end of an optimizer step the checkpoint is saved as any other, and an evaluation that is
    due is left out, as there may not be time for it. One that is running is left. The run that
    resumes makes up for it before its first step.

    All processes agree on the moment, as each gets the signal at its own time.
    """

    advice = "; resume with resume_from_checkpoint=True"
    """Advice after a SIGTERM; empty in a command, which prints its own."""
    keeps = True
    """A SIGTERM saves a checkpoint; not in a trial, whose folder is deleted."""

    def __init__(self) -> None:
        self._accelerator: Accelerator | None = None
        self._settings: Mapping[str, Any] = {}
        self._evaluate: Callable[[], object] | None = None
        self._makes_up_evaluation = False
        self._left_out_evaluation = False
        self._saved_step = self._passes = 0
        self._states: dict[str, Any] | None = None
        self._told = self._stops = self._listens = False

    # ---- before training -----------------------------------------------------------------------

    def begin(
        self,
        resume_from_checkpoint: str | bool | None,
        output_dir: str,
        settings: Mapping[str, Any],
        accelerator: Accelerator,
        evaluate: Callable[[], object],
        *,
        student: Any = None,
        skips_data: bool = True,
    ) -> str | None:
        """Return the checkpoint to begin with.

        Args:
            resume_from_checkpoint: a folder, or ``True`` for the last complete one.
            output_dir: where the run writes.
            settings: ``distillation_settings`` of the run.
            accelerator: its processes.
            evaluate: evaluates the student, where the run before was stopped while that was due.
            student: the model that is trained further.
            skips_data: whether the data that the run before was trained on is skipped.

        Raises:
            ValueError: there is none, it is incomplete or of another run, or its place in the data
                cannot be found.
        """
        self._accelerator, self._settings, self._evaluate = accelerator, settings, evaluate
        self._told = self._stops = self._listens = False
        self._makes_up_evaluation = self._left_out_evaluation = False
        self._saved_step = self._passes = 0
        if not resume_from_checkpoint:
            return None
        folder: str | None = None
        if resume_from_checkpoint is not True:
            folder = str(resume_from_checkpoint)
        else:
            folder = last_complete_checkpoint(output_dir, of_plain_trainer=not settings)
            if folder is None:
                raise ValueError(
                    "resume_from_checkpoint=True: there is no complete checkpoint in output_dir "
                    f"{output_dir!r}; leave it out to begin again."
                )
        record = check_checkpoint(folder, settings, student)
        if skips_data and record.get("passes", 0) > 1:
            raise ValueError(
                f"resume_from_checkpoint={folder!r} was saved in pass {record['passes']} over a "
                "train_dataset without a length, where Trainer cannot find the place again. Give "
                "it data with a length (Dataset.from_generator); for the next time, let the stream "
                "repeat itself (train_dataset.repeat(None)); or begin with its first rows "
                "(ignore_data_skip=True)."
            )
        self._makes_up_evaluation = bool(record.get("evaluation_left_out"))
        return folder

    # ---- saving --------------------------------------------------------------------------------

    @contextmanager
    def writing(
        self, folder: Path, state: TrainerState, *, writes: bool, limit: int | None = None
    ) -> Iterator[None]:
        """Mark what the block writes as a complete checkpoint, when all processes have written it.

        Args:
            folder: the checkpoint.
            state: how far the run is.
            writes: whether this process writes the files of the checkpoint as a whole.
            limit: how many checkpoints are kept; older ones are deleted then.

        Raises:
            OSError: it cannot be written. It is deleted then; the older ones are still there.
        """
        accelerator = self._accelerator
        try:
            if writes:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / UNFINISHED_FILE).touch()
                (folder / RECORD_FILE).unlink(missing_ok=True)
            yield
            if accelerator is not None:
                accelerator.wait_for_everyone()
            if writes:
                left_out = self._left_out_evaluation or self._makes_up_evaluation
                write_record(
                    folder, self._settings, evaluation_left_out=left_out, passes=self._passes
                )
                (folder / UNFINISHED_FILE).unlink()
            self._saved_step, self._left_out_evaluation = state.global_step, False
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(n in str(error) for n in _TORCH_SAVE):
                raise
            if writes:
                shutil.rmtree(folder, ignore_errors=True)
            last = last_complete_checkpoint(folder.parent)
            rest = "There is none before it"
            if last is not None:
                rest = f"The one before it, {last}, is complete: resume from it when there is room"
            raise OSError(
                f"The checkpoint {folder} could not be saved, and was deleted: "
                f"{str(error).splitlines()[0]}. {rest}."
            ) from error
        if writes:
            best = state.best_model_checkpoint
            rotate_checkpoints(
                str(folder.parent), limit, best_model_checkpoint=best, use_mtime=True
            )

    # ---- SIGTERM -------------------------------------------------------------------------------

    def run(self, train: Callable[[], T]) -> T:
        """Train, until a SIGTERM comes.

        Raises:
            Terminated: one came, also after the last step: a second stage must not begin.
        """
        self._listens = True
        with noting_sigterm(self._note):
            output = train()
        if self._any_was_told():
            raise Terminated
        return output

    def end(self, step: int, save: Callable[[], None]) -> NoReturn:
        """Save the step that a SIGTERM came after, unless it is saved already.

        Raises:
            SystemExit: then, with 143.
        """
        with noting_sigterm(self._note):
            due = step > self._saved_step or self._left_out_evaluation
            if self.keeps and step and due:
                if self._left_out_evaluation and self._states is not None:
                    restore_rng_states(self._states)  # the run that resumes draws them again
                save()
        saved = "before the first step, so nothing was saved."
        if not self.keeps:
            saved = "nothing was to be saved yet."
        elif step:
            saved = f"saved at step {step}{self.advice}."
        logger.warning(f"SIGTERM: {saved}")
        raise SystemExit(TERMINATED)

    def _note(self) -> None:
        self._told = True

    def _any_was_told(self) -> bool:
        """Return whether any process was told to end; every process must ask."""
        accelerator = self._accelerator
        if accelerator is None or accelerator.num_processes == 1 or not self._listens:
            return self._told
        told = torch.tensor(int(self._told), device=accelerator.device)
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
        return bool(told.item())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the passes over data whose length is not known."""
        self._passes += not has_length(kwargs.get("train_dataloader"))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make up for an evaluation, when the random numbers of the checkpoint are back."""
        self.make_up_evaluation()

    def make_up_evaluation(self) -> None:
        """Evaluate, if the run before was stopped while that was due; at most once."""
        if self._makes_up_evaluation and self._evaluate is not None:
            self._states = rng_states()
            self._evaluate()
            self._makes_up_evaluation = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint if any process was told to end."""
        if self._any_was_told():
            epoch = state.epoch or 0.0
            ends_epoch = epoch == int(epoch) or state.global_step >= state.max_steps
            self._left_out_evaluation = control.should_evaluate or (
                args.eval_strategy == IntervalStrategy.EPOCH
                and ends_epoch
                and args.eval_delay <= epoch
            )
            self._stops = control.should_save = True
            control.should_evaluate = False
        if control.should_evaluate:
            self._states = rng_states()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the random numbers that an evaluation begins with."""
        if control.should_evaluate:
            self._states = rng_states()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the training: whatever followed might delete the checkpoint again.

        Raises:
            Terminated: where a checkpoint was asked for.
        """
        if self._stops:
            raise Terminated

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave an evaluation.

        Raises:
            Terminated: if any process was told to end.
        """
        if self._any_was_told():
            self._left_out_evaluation = True
            raise Terminated
