"""SIGTERM: save a checkpoint, then end. Machines that can be taken away send it first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
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


class Terminated(BaseException):
    """Training was told to end, and its checkpoint is saved."""


class TerminationCallback(TrainerCallback):
    """Saves and stops at the end of the optimizer step in which a SIGTERM came.

    All processes agree on the step: each gets the signal at a moment of its own. An evaluation that
    is due at that step is left out, as there may not be time for it.

    Args:
        accelerator: whose processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._told = False
        self._stops = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a SIGTERM is noticed. Only the main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._notice)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    def _notice(self, signal_number: int, frame: Any) -> None:
        self._told = True

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask for a checkpoint if any process was told to end."""
        if self._any_was_told():
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

    def _any_was_told(self) -> bool:
        if self._accelerator.num_processes == 1:
            return self._told
        told = torch.tensor(int(self._told), device=self._accelerator.device)
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
        return bool(told.item())
