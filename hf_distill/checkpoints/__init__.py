"""Checkpoints that are complete, belong to the run that resumes from them, and survive any kill."""

from __future__ import annotations

from hf_distill.checkpoints.keeper import CheckpointKeeper, Terminated, deferring_sigterm
from hf_distill.checkpoints.record import RECORD_FILE, check_checkpoint, last_complete_checkpoint
from hf_distill.checkpoints.settings import distillation_settings

__all__ = [
    "RECORD_FILE",
    "CheckpointKeeper",
    "Terminated",
    "check_checkpoint",
    "deferring_sigterm",
    "distillation_settings",
    "last_complete_checkpoint",
]
