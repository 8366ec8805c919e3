"""What a tutorial has: ``Trainer``, its defaults, and a ``compute_loss`` written by hand.

Options of the setting take the place of the defaults.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from complete import Checkpoints, features, read_setting
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

TEMPERATURE, WEIGHT = 5.0, 0.5
"""Those of the guide to distillation in the documentation of transformers."""


class DistillingTrainer(Trainer):
    """A part the labels, a part the teacher."""

    teacher: nn.Module
    temperature: float
    weight: float

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
        temperature, weight = self.temperature, self.weight
        losses = [
            F.kl_div(
                F.log_softmax(outputs[name] / temperature, dim=-1),
                F.softmax(wanted[name] / temperature, dim=-1),
                reduction="batchmean",
            )
            for name in ("start_logits", "end_logits")
        ]
        distilled = temperature**2 * torch.stack(losses).mean()
        return (1 - weight) * outputs.loss + weight * distilled


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
    parser = argparse.ArgumentParser()
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--distillation_loss_weight", type=float, default=WEIGHT)
    mix, more = parser.parse_known_args(setting.more)
    always = ["--output_dir", setting.output, "--num_train_epochs", str(setting.epochs), "--seed",
              str(setting.seed), "--bf16", str(setting.bf16), "--use_cpu", "--save_strategy", "no",
              "--disable_tqdm", "True", "--report_to", "none"]  # fmt: skip
    arguments: Any = TrainingArguments
    (args,) = HfArgumentParser([arguments]).parse_args_into_dataclasses([*always, *more])
    load = AutoModelForQuestionAnswering.from_pretrained
    trainer = DistillingTrainer(
        model=load(setting.student),
        args=args,
        train_dataset=Dataset.from_dict(features(setting)),
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(setting.student)),
        callbacks=[Saving(checkpoints)],
    )
    trainer.teacher = load(setting.teacher).eval()
    trainer.temperature, trainer.weight = mix.temperature, mix.distillation_loss_weight
    trainer.train()
    checkpoints.write()


if __name__ == "__main__":
    main()
