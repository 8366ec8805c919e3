"""The worker of what one writes by hand: ``Trainer`` with a ``compute_loss`` of ten lines."""

from __future__ import annotations

from typing import Any

import torch
from hugging_face import dataset, load_models, train, trainer_options
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, default_data_collator
from worker import Gate, Setting, serve


class SnippetTrainer(Trainer):
    """The teacher's logits alone, temperature and all, as tutorials have it."""

    teacher: nn.Module
    temperature: float
    layer_pairs: list[tuple[int, int]] | None = None
    """Hidden states that are compared in place of the logits."""
    with_attentions = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the mean divergence of the logits."""
        more: dict[str, Any] = {}
        if self.layer_pairs:
            more = {"output_hidden_states": True, "output_attentions": self.with_attentions}
        outputs = model(**inputs, **more)
        with torch.no_grad():
            wanted = self.teacher(**inputs, **more)
        if self.layer_pairs:
            return self.layers_loss(outputs, wanted, self.layer_pairs)
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

    def layers_loss(self, student: Any, teacher: Any, pairs: list[tuple[int, int]]) -> Tensor:
        """Return the distances of hidden states and attentions, zipped as one does."""
        every = pairs[1][0]
        states = zip(student.hidden_states, teacher.hidden_states[::every], strict=False)
        compared = [*states]
        if self.with_attentions:
            teachers = teacher.attentions[every - 1 :: every]
            compared += zip(student.attentions, teachers, strict=False)
        return torch.stack([F.mse_loss(ours, theirs) for ours, theirs in compared]).sum()


def distil(setting: Setting) -> None:
    """Train, as the gate lets it."""
    gate = Gate(setting, "transformers", "the bare minimum: no masks, checks or log of parts")
    teacher, student = load_models(setting)
    trainer = SnippetTrainer(
        model=student,
        args=TrainingArguments(**trainer_options(setting)),
        train_dataset=dataset(setting),
        data_collator=default_data_collator,
    )
    trainer.teacher, trainer.temperature = teacher, setting.temperature
    if setting.way == "scaled":
        trainer.loss_is_scaled_for_ga = False
    if setting.task in ("hidden", "attention"):
        trainer.layer_pairs = setting.layer_pairs
        trainer.with_attentions = setting.task == "attention"
    train(trainer, gate, setting)


if __name__ == "__main__":
    serve(distil)
