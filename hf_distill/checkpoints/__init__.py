"""Checkpoints that are whole, belong to the run that goes on from them, and survive any kill."""

from __future__ import annotations

from hf_distill.checkpoints.record import (
    RECORD_FILE,
    check_checkpoint,
    last_complete_checkpoint,
)
from hf_distill.checkpoints.settings import distillation_settings
from hf_distill.checkpoints.termination import deferring_sigterm
from hf_distill.checkpoints.trainer import CheckpointingTrainer

__all__ = [
    "RECORD_FILE",
    "CheckpointingTrainer",
    "check_checkpoint",
    "deferring_sigterm",
    "distillation_settings",
    "last_complete_checkpoint",
]
