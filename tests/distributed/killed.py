"""A run of the intermediate stage that kills itself at a step, or resumes and goes to its end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from runs import arguments
from tiny import dataset_for, model_for
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import DistillationTrainer


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    output, kill_at = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    task = "question-answering"
    trainer = DistillationTrainer(
        model=model_for(task, seed=0, layers=2, width=8, hidden_dropout_prob=0.1),
        teacher_model=model_for(task, seed=1, layers=4),
        args=arguments(
            output,
            stage="intermediate",
            attention_loss="scores",
            max_steps=8,
            save_strategy="steps",
            save_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        ),
        train_dataset=dataset_for(task, 24),
        callbacks=[KillAt(kill_at)],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output))
    trainer.accelerator.wait_for_everyone()
    os._exit(0)  # gloo aborts at exit now and then
