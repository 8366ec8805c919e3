"""What a tutorial has: ``Trainer``, its defaults, and a ``compute_loss`` written by hand."""

from __future__ import annotations

from typing import Any

import torch
from complete import Checkpoints, features, read_setting
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForQuestionAnswering,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

TEMPERATURE, WEIGHT = 5.0, 0.5
"""Those of the guide to distillation in the documentation of transformers."""


class DistillingTrainer(Trainer):
    """Half the labels, half the teacher."""

    teacher: nn.Module

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the mix of both losses."""
        outputs = model(**inputs)
        with torch.no_grad():
            wanted = self.teacher(**inputs)
        losses = [
            F.kl_div(
                F.log_softmax(outputs[name] / TEMPERATURE, dim=-1),
                F.softmax(wanted[name] / TEMPERATURE, dim=-1),
                reduction="batchmean",
            )
            for name in ("start_logits", "end_logits")
        ]
        distilled = TEMPERATURE**2 * torch.stack(losses).mean()
        return (1 - WEIGHT) * outputs.loss + WEIGHT * distilled


class Saving(TrainerCallback):
    """Saves after each epoch."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the model."""
        self._checkpoints.save(kwargs["model"])


def main() -> None:
    """Train."""
    setting = read_setting()
    checkpoints = Checkpoints(setting)
    load = AutoModelForQuestionAnswering.from_pretrained
    trainer = DistillingTrainer(
        model=load(setting.student),
        args=TrainingArguments(
            output_dir=setting.output,
            num_train_epochs=setting.epochs,
            seed=setting.seed,
            bf16=setting.bf16,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict(features(setting)),
        data_collator=default_data_collator,
        callbacks=[Saving(checkpoints)],
    )
    trainer.teacher = load(setting.teacher).eval()
    trainer.train()
    checkpoints.write()


if __name__ == "__main__":
    main()
