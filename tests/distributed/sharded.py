"""A few steps with student and teacher sharded by FSDP2 or DeepSpeed over CPU processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from launch import LOSSES
from runs import arguments, logged
from tiny import dataset_for, model_for
from torch.distributed.tensor import DTensor
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerControl

from hf_distill import DistillationTrainer

TASK = "question-answering"


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def use_gloo_for_fsdp2() -> None:
    """accelerate offers FSDP2 for GPUs only: its choice of backend is replaced, nothing else."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate import DistributedType, PartialState

    PartialState._prepare_backend = lambda self, cpu, sagemaker_dp=False, backend=None: (
        "gloo",
        DistributedType.MULTI_GPU,
    )


def fsdp2_options(state_dict_type: str) -> dict[str, Any]:
    use_gloo_for_fsdp2()
    return {
        "use_cpu": False,
        "dataloader_pin_memory": False,
        "fsdp": True,
        "fsdp_config": {"fsdp_version": 2, "fsdp_state_dict_type": state_dict_type},
    }


def deepspeed_options(stage: int) -> dict[str, Any]:
    return {
        "deepspeed": {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_optimization": {"stage": stage},
        }
    }


class ReadOnce(IterableDataset):
    """Rows that projections cannot look at first, as under DeepSpeed."""

    def __iter__(self) -> Any:
        return iter(dataset_for(TASK))


def options_of(kind: str) -> dict[str, Any]:
    if kind in ("plain", "read once"):
        return {}
    if kind.startswith("zero"):
        return deepspeed_options(int(kind.removeprefix("zero")))
    return fsdp2_options({"fsdp2": "FULL_STATE_DICT", "fsdp2-sharded": "SHARDED_STATE_DICT"}[kind])


def is_sharded(parameter: torch.Tensor) -> bool:
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")


if __name__ == "__main__":
    output, kind, stage, stop_after = sys.argv[1:]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    trainer = DistillationTrainer(
        # A narrower student has projections, which are sharded, too.
        model=model_for(TASK, seed=0, layers=2, width=8),
        teacher_model=model_for(TASK, seed=1, layers=4),
        args=arguments(
            output,
            stage=stage,
            attention_loss="scores",
            save_strategy="steps",
            save_steps=2,
            per_device_train_batch_size=8 // processes,
            max_steps=4,
            train_sampling_strategy="sequential",
            **options_of(kind),
        ),
        train_dataset=ReadOnce() if kind == "read once" else dataset_for(TASK),
        callbacks=[StopAfter(int(stop_after))],
    )
    trainer.train(resume_from_checkpoint=any(Path(output).glob("checkpoint-*")))
    trainer.save_model(str(Path(output) / "student"))
    teacher: Any = trainer.teacher_model
    result = {
        **{name: logged(trainer, name) for name in LOSSES},
        "processes": trainer.args.world_size,
        "student_sharded": any(is_sharded(p) for p in trainer.model.parameters()),
        "teacher_sharded": any(is_sharded(p) for p in teacher.parameters()),
        "teacher_trains": teacher.training or any(p.requires_grad for p in teacher.parameters()),
    }
    trainer.accelerator.wait_for_everyone()
    path = Path(output) / f"rank{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps(result))
    os._exit(0)  # gloo aborts at exit now and then
