"""The worker of TextBrewer: its distillers, with adaptors as its examples have them."""

from __future__ import annotations

import os
from typing import Any

import torch
from hugging_face import INPUTS, load_models
from textbrewer import BasicDistiller, DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler
from worker import LEARNING_RATE, MAX_GRAD_NORM, Gate, Setting, serve

NOTES = {
    "hidden": "GeneralDistiller",
    "attention": "GeneralDistiller; attentions after dropout, of eager attention",
}
CROSS_ENTROPY = "BasicDistiller; cross-entropy in place of the divergence, not multiplied by T²"


def logits_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Return what is compared by the loss between logits."""
    names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
    return {"logits": tuple(outputs[name] for name in names)}


def masked_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Return logits without padding: as its example for CMRC 2018 does, or by its mask."""
    found, mask = logits_adaptor(batch, outputs), batch["attention_mask"]
    if "start_logits" in outputs:
        found["logits"] = tuple(logits + (mask - 1) * 1e4 for logits in found["logits"])
    elif outputs["logits"].dim() == 3:
        found["logits_mask"] = mask
    return found


def layers_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Return what is compared by intermediate matches."""
    found = {"hidden": outputs.hidden_states, "attention": outputs.attentions}
    return {name: states for name, states in found.items() if states is not None}


def matches(setting: Setting) -> list[dict[str, Any]]:
    """Return all pairs of hidden states, and of attentions if they are compared."""
    pairs = [("hidden", "hidden_mse", *pair) for pair in setting.layer_pairs]
    if setting.task == "attention":
        # There are no attentions of the embeddings: layer 1 is the first of that list.
        pairs += [
            ("attention", "attention_mse", teacher - 1, student - 1)
            for teacher, student in setting.layer_pairs[1:]
        ]
    return [
        {"feature": feature, "loss": loss, "layer_T": teacher, "layer_S": student, "weight": 1}
        for feature, loss, teacher, student in pairs
    ]


def make_distiller(setting: Setting, teacher: Any, student: Any) -> Any:
    """Make the distiller that TextBrewer recommends for a task."""
    training = TrainingConfig(
        output_dir=setting.output,
        log_dir=None,
        device="cpu",
        gradient_accumulation_steps=setting.accumulation,
        local_rank=int(os.environ.get("LOCAL_RANK", "-1")),
    )
    if setting.task in NOTES:
        config = DistillationConfig(intermediate_matches=matches(setting))
        return GeneralDistiller(training, config, teacher, student, layers_adaptor, layers_adaptor)
    config = DistillationConfig(
        temperature=setting.temperature, is_caching_logits=setting.task.endswith("_cached")
    )
    adaptor = masked_adaptor if setting.update else logits_adaptor
    return BasicDistiller(training, config, teacher, student, adaptor, adaptor)


def join_processes(teacher: torch.nn.Module) -> None:
    """Make its way to several processes, which is for GPUs, one for CPUs."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
        wrapper: Any = torch.nn.parallel.DistributedDataParallel

        def without_devices(model: Any, **options: Any) -> Any:
            options |= {"device_ids": None, "output_device": None}
            return wrapper(model, **options)

        torch.nn.parallel.DistributedDataParallel = without_devices  # type: ignore[assignment,misc]
    # It wraps the teacher as well, which takes weights with gradients; none are computed.
    teacher.requires_grad_(True)


def distil(setting: Setting) -> None:
    """Train, as the gate lets it."""
    gate = Gate(setting, "textbrewer", NOTES.get(setting.task, CROSS_ENTROPY))
    wanted = {
        "hidden": {"output_hidden_states": True},
        "attention": {"output_hidden_states": True, "output_attentions": True},
    }.get(setting.task, {})
    torch.manual_seed(42)  # as its examples do
    # SDPA returns no attentions.
    teacher, student = load_models(
        setting, attn_implementation="eager" if setting.task == "attention" else "sdpa"
    )
    several = "LOCAL_RANK" in os.environ
    if several:
        join_processes(teacher)
    columns = {name: column for name, column in setting.load_rows().items() if name in INPUTS}
    rows: Any = [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]
    distiller = make_distiller(setting, teacher, student)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    if setting.sgd:
        optimizer = torch.optim.SGD(student.parameters(), lr=setting.sgd)
    sampler: Any = DistributedSampler(rows) if several else RandomSampler(rows)
    gate.hold(distiller, "train_on_batch", student)
    with distiller:
        distiller.train(
            optimizer,
            DataLoader(rows, setting.batch_size, sampler=sampler),
            num_epochs=1,
            max_grad_norm=-1.0 if setting.sgd else MAX_GRAD_NORM,
            **wanted,
        )
    gate.end()


if __name__ == "__main__":
    serve(distil)
