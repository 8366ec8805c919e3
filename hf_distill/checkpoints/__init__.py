"""Checkpoints that are whole, belong to the run that goes on from them, and survive any kill."""

from __future__ import annotations

from hf_distill.checkpoints.record import (
    RECORD_FILE,
    check_checkpoint,
    last_complete_checkpoint,
)
from hf_distill.checkpoints.settings import TeacherIdentity, distillation_settings, identify
from hf_distill.checkpoints.termination import deferring_sigterm
from hf_distill.checkpoints.trainer import CheckpointingTrainer

__all__ = [
    "RECORD_FILE",
    "CheckpointingTrainer",
    "TeacherIdentity",
    "check_checkpoint",
    "deferring_sigterm",
    "distillation_settings",
    "identify",
    "last_complete_checkpoint",
]
