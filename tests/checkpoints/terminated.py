"""A run of ``trainer_for`` that sends itself a SIGTERM in a step, or goes on to its end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from checkpoint_runs import trainer_for
from transformers import TrainerCallback


class Terminate(TrainerCallback):
    """Only one of the processes gets the signal."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    folder, step = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    trainer = trainer_for(
        folder,
        max_steps=6,
        save_strategy="no" if step >= 0 else "epoch",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        callbacks=[Terminate(step)],
    )
    try:
        trainer.train(resume_from_checkpoint=any(Path(folder).glob("checkpoint-*")) or None)
        trainer.save_model(str(Path(folder) / "final"))
        trainer.distiller.layers.save(Path(folder) / "final")
    except SystemExit as exit:
        (Path(folder) / f"exit-{trainer.args.process_index}").write_text(str(exit.code))
    trainer.accelerator.wait_for_everyone()
    os._exit(0)  # gloo aborts at exit now and then
