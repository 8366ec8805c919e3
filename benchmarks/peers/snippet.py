"""The worker of what one writes by hand: ``Trainer`` with a ``compute_loss`` of ten lines."""

from __future__ import annotations

from typing import Any

import torch
from hugging_face import load_models, train, trainer_options, unlabelled
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, default_data_collator
from worker import Gate, read_setting


class SnippetTrainer(Trainer):
    """The teacher's logits alone, temperature and all, as tutorials have it."""

    teacher: nn.Module
    temperature: float

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the mean divergence of the logits."""
        outputs = model(**inputs)
        with torch.no_grad():
            wanted = self.teacher(**inputs)
        names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
        losses = [
            F.kl_div(
                F.log_softmax(outputs[name] / self.temperature, dim=-1).flatten(0, -2),
                F.softmax(wanted[name] / self.temperature, dim=-1).flatten(0, -2),
                reduction="batchmean",
            )
            for name in names
        ]
        return self.temperature**2 * torch.stack(losses).mean()


def main() -> None:
    """Train, as the gate lets it."""
    setting = read_setting()
    gate = Gate(setting, "transformers", "the bare minimum: no masks, checks or log of parts")
    teacher, student = load_models(setting)
    trainer = SnippetTrainer(
        model=student,
        args=TrainingArguments(**trainer_options(setting)),
        train_dataset=unlabelled(setting),
        data_collator=default_data_collator,
    )
    trainer.teacher, trainer.temperature = teacher, setting.temperature
    train(trainer, gate)


if __name__ == "__main__":
    main()
