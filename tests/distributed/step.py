"""Two optimizer steps of several cases, as one of the processes: what it logged, where it ended."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.state import AcceleratorState
from runs import distil, logged
from transformers import default_data_collator
from zoo import zoo_dataset, zoo_model

from hf_distill import cache_teacher_outputs

LOSSES = ("loss", "loss_task", "loss_prediction", "loss_hidden_states", "loss_attention")


def summed(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A label loss of one's own, over the labels of the whole step."""
    loss = torch.nn.functional.cross_entropy(
        outputs.logits.flatten(0, -2), labels.flatten(), reduction="sum"
    )
    return loss / num_items_in_batch


def sums(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: tensor.detach().double().sum().item() for name, tensor in tensors.items()}


if __name__ == "__main__":
    output, batch_size, accumulation, cases = sys.argv[1:]
    torch.set_num_threads(1)
    results = {}
    for name, case in json.loads(cases).items():
        task, architecture = case.pop("task"), case.pop("architecture")
        AcceleratorState._reset_state()
        teacher = zoo_model(task, architecture, seed=1, layers=2)
        data = zoo_dataset(task)
        if case.pop("cached", False):
            data = cache_teacher_outputs(
                teacher,
                data,
                output_dir=Path(output) / f"cache-{task}",
                data_collator=default_data_collator,
                dtype="float32",
                batch_size=3,
            )
            teacher = None
        trainer, norms = distil(
            task,
            output,
            student=zoo_model(task, architecture, seed=0, **case.pop("student", {})),
            teacher=teacher,
            train_dataset=data,
            trainer_options={
                "data_collator": default_data_collator,
                "compute_loss_func": summed if case.pop("own_loss", False) else None,
            },
            per_device_train_batch_size=int(batch_size),
            gradient_accumulation_steps=int(accumulation),
            max_steps=2,  # DDP notices in the second what the first left out
            optim="sgd",
            learning_rate=1e-3,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            **case,
        )
        student = trainer.accelerator.unwrap_model(trainer.model)
        layers = trainer.distiller.layers
        projections = None if layers is None else layers._projections
        results[name] = {
            **{loss: logged(trainer, loss) for loss in LOSSES},
            "norms": norms.norms,
            "processes": trainer.args.world_size,
            "teacher_class": type(trainer.teacher_model).__name__,
            "weights": sums(dict(student.named_parameters())),
            "projections": sums(projections.state_dict()) if projections else {},
        }
    path = Path(output) / f"rank{os.environ.get('RANK', '0')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))
    os._exit(0)  # gloo aborts at exit now and then
