"""A few steps under FSDP2 on CPU processes, which accelerate only offers for GPUs.

Two lines replace its choice of backend; everything after that is what runs on GPUs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch
from accelerate import DistributedType, PartialState
from runs import distil, logged
from torch.distributed.tensor import DTensor

if __name__ == "__main__":
    output, processes = sys.argv[1], int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    options: dict = {}
    if processes > 1:
        PartialState._prepare_backend = lambda self, cpu, sagemaker_dp=False, backend=None: (
            "gloo",
            DistributedType.MULTI_GPU,
        )
        options = {
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
    trainer, _ = distil(
        "question-answering",
        output,
        per_device_train_batch_size=8 // processes,
        max_steps=4,
        train_sampling_strategy="sequential",
        **options,
    )
    teacher = trainer.teacher_model
    result = {
        "loss": logged(trainer, "loss"),
        "loss_task": logged(trainer, "loss_task"),
        "loss_prediction": logged(trainer, "loss_prediction"),
        "student_sharded": sum(isinstance(p, DTensor) for p in trainer.model.parameters()),
        "teacher_sharded": sum(isinstance(p, DTensor) for p in teacher.parameters()),
        "teacher_trains": teacher.training or any(p.requires_grad for p in teacher.parameters()),
    }
    path = Path(output) / f"rank{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps(result))
    os._exit(0)  # gloo aborts at exit now and then
