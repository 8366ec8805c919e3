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
from runs import distil, logged
from tiny import model_for
from torch.distributed.tensor import DTensor


def fsdp2_options() -> dict[str, Any]:
    """accelerate offers FSDP2 for GPUs only: its choice of backend is replaced, nothing else."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate import DistributedType, PartialState

    PartialState._prepare_backend = lambda self, cpu, sagemaker_dp=False, backend=None: (
        "gloo",
        DistributedType.MULTI_GPU,
    )
    return {
        "use_cpu": False,
        "dataloader_pin_memory": False,
        "fsdp": True,
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": ["BertLayer"],
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        },
    }


def deepspeed_options(stage: int) -> dict[str, Any]:
    return {
        "deepspeed": {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_optimization": {"stage": stage},
        }
    }


def is_sharded(parameter: torch.Tensor) -> bool:
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")


if __name__ == "__main__":
    output, kind, stage = sys.argv[1:]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    options: dict[str, Any] = {}
    if kind == "fsdp2":
        options = fsdp2_options()
    elif kind.startswith("zero"):
        options = deepspeed_options(int(kind.removeprefix("zero")))
    trainer, _ = distil(
        "question-answering",
        output,
        # A narrower student has projections, which are sharded, too.
        student=model_for("question-answering", seed=0, layers=2, width=8),
        teacher=model_for("question-answering", seed=1, layers=4),
        stage=stage,
        save_strategy="steps",
        save_steps=2,
        per_device_train_batch_size=8 // processes,
        max_steps=4,
        train_sampling_strategy="sequential",
        record_gradients=False,
        **options,
    )
    teacher = trainer.teacher_model
    result = {
        **{name: logged(trainer, name) for name in LOSSES},
        "processes": trainer.args.world_size,
        "student_sharded": any(is_sharded(p) for p in trainer.model.parameters()),
        "teacher_sharded": any(is_sharded(p) for p in teacher.parameters()),
        "teacher_trains": teacher.training or any(p.requires_grad for p in teacher.parameters()),
    }
    path = Path(output) / f"rank{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps(result))
    os._exit(0)  # gloo aborts at exit now and then
