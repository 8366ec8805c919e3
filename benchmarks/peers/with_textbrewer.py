"""The worker of TextBrewer: its distillers, with adaptors as its examples have them."""

from __future__ import annotations

from typing import Any

import torch
from hugging_face import INPUTS, load_models
from textbrewer import BasicDistiller, DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader
from worker import LEARNING_RATE, MAX_GRAD_NORM, Gate, Setting, read_setting

NOTES = {
    "hidden": "GeneralDistiller",
    "attention": "GeneralDistiller; attentions after dropout, of eager attention",
}
CROSS_ENTROPY = "BasicDistiller; cross-entropy in place of the divergence, not multiplied by T²"


def logits_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Return what is compared by the loss between logits."""
    names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
    return {"logits": tuple(outputs[name] for name in names)}


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
    training = TrainingConfig(output_dir=setting.output, log_dir=None, device="cpu")
    if setting.task in NOTES:
        config = DistillationConfig(intermediate_matches=matches(setting))
        return GeneralDistiller(training, config, teacher, student, layers_adaptor, layers_adaptor)
    config = DistillationConfig(
        temperature=setting.temperature, is_caching_logits=setting.task.endswith("_cached")
    )
    return BasicDistiller(training, config, teacher, student, logits_adaptor, logits_adaptor)


def main() -> None:
    """Train, as the gate lets it."""
    setting = read_setting()
    gate = Gate(setting, "textbrewer", NOTES.get(setting.task, CROSS_ENTROPY))
    wanted = {
        "hidden": {"output_hidden_states": True},
        "attention": {"output_hidden_states": True, "output_attentions": True},
    }.get(setting.task, {})
    # SDPA returns no attentions.
    teacher, student = load_models(
        setting, attn_implementation="eager" if setting.task == "attention" else "sdpa"
    )
    columns = {name: column for name, column in setting.load_rows().items() if name in INPUTS}
    rows: Any = [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]
    distiller = make_distiller(setting, teacher, student)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    gate.hold(distiller, "train_on_batch")
    with distiller:
        distiller.train(
            optimizer,
            DataLoader(rows, setting.batch_size, shuffle=True),
            num_epochs=1,
            max_grad_norm=MAX_GRAD_NORM,
            **wanted,
        )


if __name__ == "__main__":
    main()
