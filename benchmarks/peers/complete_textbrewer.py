"""TextBrewer as its README trains: hidden states and logits, temperature 8, learning rate 1e-4."""

from __future__ import annotations

from typing import Any

import torch
from complete import Checkpoints, features, read_setting
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)

LEARNING_RATE, WARM_UP, BATCH_SIZE, TEMPERATURE = 1e-4, 0.1, 32, 8


def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Return logits without padding, and hidden states."""
    padding = (batch["attention_mask"] - 1) * 1e4
    return {
        "logits": (outputs.start_logits + padding, outputs.end_logits + padding),
        "hidden": outputs.hidden_states,
        "inputs_mask": batch["attention_mask"],
    }


def matches(teacher: Any, student: Any) -> list[dict[str, Any]]:
    """Return pairs of hidden states as its examples have them; a narrower student is projected."""
    every = teacher.config.num_hidden_layers // student.config.num_hidden_layers
    widths = student.config.hidden_size, teacher.config.hidden_size
    projection = {"proj": ["linear", *widths]} if widths[0] != widths[1] else {}
    pairs = [(every * layer, layer) for layer in range(student.config.num_hidden_layers + 1)]
    common = {"feature": "hidden", "weight": 1}
    states = [
        {"layer_T": ours, "layer_S": theirs, "loss": "hidden_mse", **common, **projection}
        for ours, theirs in pairs
    ]
    kernels = [
        {"layer_T": [ours, ours], "layer_S": [theirs, theirs], "loss": "nst", **common}
        for ours, theirs in pairs
    ]
    return states + kernels


def main() -> None:
    """Train."""
    setting = read_setting()
    checkpoints = Checkpoints(setting)
    torch.manual_seed(setting.seed)
    load = AutoModelForQuestionAnswering.from_pretrained
    teacher, student = load(setting.teacher), load(setting.student)
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=setting.output, log_dir=None, device="cpu"),
        DistillationConfig(temperature=TEMPERATURE, intermediate_matches=matches(teacher, student)),
        teacher,
        student,
        adaptor,
        adaptor,
    )
    columns, names = features(setting), ("input_ids", "token_type_ids", "attention_mask")
    rows: Any = [
        dict(zip(names, row, strict=True))
        for row in zip(*(columns[name] for name in names), strict=True)
    ]
    pad = DataCollatorWithPadding(AutoTokenizer.from_pretrained(setting.student))
    batches = DataLoader(rows, BATCH_SIZE, shuffle=True, collate_fn=lambda rows: dict(pad(rows)))
    steps = setting.epochs * len(batches)
    with distiller:
        distiller.train(
            torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE),
            batches,
            num_epochs=setting.epochs,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={
                "num_warmup_steps": int(WARM_UP * steps),
                "num_training_steps": steps,
            },
            callback=lambda model, step: checkpoints.save(model),
            output_hidden_states=True,
        )
    checkpoints.write()


if __name__ == "__main__":
    main()
