"""SIGTERM: save a checkpoint, then end. Machines that can be taken away send it first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

TERMINATED = 128 + 15
"""The exit status of a process that ended because of SIGTERM."""


class Terminated(BaseException):
    """Training was told to end."""


@contextmanager
def noting_sigterm(note: Callable[[], None]) -> Iterator[None]:
    """Inside, a SIGTERM is noted and does not end the process. Only the main thread can listen."""
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
    """A SIGTERM inside waits until what is inside is done.

    Raises:
        SystemExit: then, with 143.
    """
    told: list[bool] = []
    with noting_sigterm(lambda: told.append(True)):
        yield
    if told:
        raise SystemExit(TERMINATED)


class TerminationCallback(TrainerCallback):
    """Leaves a training in which a SIGTERM came, so that a checkpoint can be saved at once.

    At the end of an optimizer step the checkpoint is saved as any other, and an evaluation that is
    due is left out, as there may not be time for it. One that is running is left.

    All processes agree on the moment: each gets the signal at a moment of its own.

    Args:
        accelerator: whose processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._told = False
        self._stops = False

    def note(self) -> None:
        """Take note of a SIGTERM."""
        self._told = True

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask for a checkpoint if any process was told to end."""
        if self.any_was_told():
            self._stops = control.should_save = True
            control.should_evaluate = False

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leave the training: whatever followed might delete the checkpoint again.

        Raises:
            Terminated: where a checkpoint was asked for.
        """
        if self._stops:
            raise Terminated

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leave an evaluation.

        Raises:
            Terminated: if any process was told to end.
        """
        if self.any_was_told():
            raise Terminated

    def any_was_told(self) -> bool:
        """Return whether any process was told to end; every process must ask."""
        if self._accelerator.num_processes == 1:
            return self._told
        told = torch.tensor(int(self._told), device=self._accelerator.device)
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
        return bool(told.item())
