"""Refuse launches whose processes would not work together."""

from __future__ import annotations

import os

from accelerate import DistributedType
from transformers import TrainingArguments


def check_launch(args: TrainingArguments) -> None:
    """Refuse launches whose processes or devices would not train one model together.

    Raises:
        RuntimeError: with the command to use instead.
    """
    check_processes(args.world_size)
    if args.world_size == 1 and _several_were_asked_for():
        raise RuntimeError(
            "`accelerate launch` was told to start several processes, but has started this one "
            "only, as it does with --cpu and where it finds one GPU or none. On a machine without "
            "GPU use `accelerate launch --multi_gpu --num_processes 2 … --use_cpu`; for one "
            "process, --num_processes 1."
        )
    if args.n_gpu > 1:
        raise RuntimeError(
            f"{args.n_gpu} GPUs in one process would be driven by nn.DataParallel, which "
            "distillation does not support and which is slower than one process a GPU; run "
            f"`accelerate launch --multi_gpu --num_processes {args.n_gpu} your_script.py …` (for "
            "hf-distill: `-m hf_distill train …`), or make one GPU visible "
            "(CUDA_VISIBLE_DEVICES=0)."
        )
    wants_fsdp = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if wants_fsdp and args.distributed_state.distributed_type == DistributedType.MULTI_CPU:
        raise RuntimeError(
            "FSDP was asked for, but accelerate has it for GPUs only: on CPUs nothing would be "
            "sharded, without a word. Leave --fsdp or the configuration file out and use "
            f"`accelerate launch --multi_gpu --num_processes {args.world_size} … --use_cpu`."
        )


def check_processes(world_size: int) -> None:
    """Refuse processes that were launched together but do not know of each other.

    Args:
        world_size: how many processes this one takes part in.

    Raises:
        RuntimeError: with the command to use instead.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and "LOCAL_RANK" in os.environ and world_size == 1:
        raise RuntimeError(
            f"{launched} processes were launched (WORLD_SIZE={launched}), but each of them is "
            "about to work alone, on all of the data. On a machine without GPU add --use_cpu "
            "(use_cpu=True): `accelerate launch --multi_gpu --num_processes "
            f"{launched} … --use_cpu`."
        )


def _several_were_asked_for() -> bool:
    """Return whether ``accelerate launch`` started one process instead of several.

    Its launcher for one process writes to ``ACCELERATE_USE_CPU`` what it takes the machine for, in
    Python's spelling, and names a main process only if there should be others.
    """
    by_accelerate = os.environ.get("ACCELERATE_USE_CPU") in ("True", "False")
    return (
        by_accelerate
        and "ACCELERATE_DYNAMO_BACKEND" in os.environ
        and os.environ.get("MASTER_ADDR") == "127.0.0.1"
        and "LOCAL_RANK" not in os.environ
    )
