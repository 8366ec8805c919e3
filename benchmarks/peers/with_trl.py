"""The worker of TRL: its ``GKDTrainer`` on given texts (``lmbda=0``), with the divergence of ours.

The prompt is the first token, so that all others are compared.
"""

from __future__ import annotations

from typing import Any

from hugging_face import dataset, load_models, train, trainer_options
from transformers import PreTrainedTokenizerFast, default_data_collator
from trl.experimental.gkd import GKDConfig, GKDTrainer
from worker import Gate, Setting, serve


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what its own collator makes of a chat."""
    batch: dict[str, Any] = default_data_collator(rows)
    ids = batch["input_ids"]
    return {"labels": ids.clone(), **batch, "prompts": ids[:, :1]}


def distil(setting: Setting) -> None:
    """Train, as the gate lets it."""
    gate = Gate(setting, "trl", "GKDTrainer, lmbda=0, beta=0; its temperature is not in its loss")
    teacher, student = load_models(setting)
    args = GKDConfig(
        **trainer_options(setting),
        lmbda=0.0,
        beta=0.0,
        temperature=setting.temperature,
        # Its defaults recompute activations, round to bfloat16 and leave dropout out.
        gradient_checkpointing=False,
        bf16=False,
        disable_dropout=False,
    )
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=args,
        train_dataset=dataset(setting),
        data_collator=collate,
        processing_class=PreTrainedTokenizerFast.from_pretrained(setting.student),
    )
    train(trainer, gate, setting)


if __name__ == "__main__":
    serve(distil)
