"""One optimizer step of every task under `accelerate launch`: what it logged, where it ended."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.state import AcceleratorState
from runs import distil, logged
from transformers import default_data_collator
from zoo import zoo_dataset, zoo_model

if __name__ == "__main__":
    output, batch_size, accumulation, weight, *pairs = sys.argv[1:]
    torch.set_num_threads(1)
    results = {}
    for pair in pairs:
        task, architecture = pair.split("/")
        AcceleratorState._reset_state()
        trainer, norms = distil(
            task,
            output,
            student=zoo_model(task, architecture, seed=0),
            teacher=zoo_model(task, architecture, seed=1, layers=2),
            train_dataset=zoo_dataset(task),
            trainer_options={"data_collator": default_data_collator},
            per_device_train_batch_size=int(batch_size),
            gradient_accumulation_steps=int(accumulation),
            distillation_loss_weight=float(weight),
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
        )
        student = trainer.accelerator.unwrap_model(trainer.model)
        results[pair] = {
            "loss": logged(trainer, "loss"),
            "loss_task": logged(trainer, "loss_task"),
            "loss_prediction": logged(trainer, "loss_prediction"),
            "norms": norms.norms,
            "processes": trainer.args.world_size,
            "teacher_class": type(trainer.teacher_model).__name__,
            "weights": {n: p.detach().double().sum().item() for n, p in student.named_parameters()},
        }
    path = Path(output) / f"rank{os.environ.get('RANK', '0')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))
    os._exit(0)  # gloo aborts at exit now and then
