"""The sequence-to-sequence trainer: trains like the plain one, evaluates like Seq2SeqTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distil, logged
from transformers import (
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    default_data_collator,
)
from zoo import zoo_dataset, zoo_model

from hf_distill import Seq2SeqDistillationTrainer, Seq2SeqDistillationTrainingArguments

TASK = "summarization"


def train(cls: Any, path: Path, architecture: str, **options: Any) -> tuple[Any, list[Any]]:
    """Train for three steps; also what `compute_metrics` was given."""
    seen: list[Any] = []

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"written": float(prediction.predictions.shape[0])}

    ours = cls is Seq2SeqDistillationTrainer
    arguments = Seq2SeqDistillationTrainingArguments if ours else Seq2SeqTrainingArguments
    teacher = {"teacher_model": zoo_model(TASK, architecture, seed=1, layers=2)} if ours else {}
    trainer = cls(
        model=zoo_model(TASK, architecture, seed=0),
        args=arguments(
            str(path),
            use_cpu=True,
            per_device_train_batch_size=4,
            max_steps=3,
            logging_steps=1,
            learning_rate=1e-3,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            predict_with_generate=True,
            generation_max_length=6,
            **options,
        ),
        train_dataset=zoo_dataset(TASK),
        eval_dataset=zoo_dataset(TASK, 6, seed=1),
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
        **teacher,
    )
    trainer.train()
    return trainer, seen


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_without_teacher_it_is_seq2seq_trainer(architecture: str, tmp_path: Path) -> None:
    plain, seen_plain = train(Seq2SeqTrainer, tmp_path, architecture)
    ours, seen_ours = train(
        Seq2SeqDistillationTrainer, tmp_path, architecture, distillation_loss_weight=0.0
    )
    assert logged(ours, "loss") == logged(plain, "loss")
    metrics = [trainer.evaluate(num_beams=2) for trainer in (plain, ours)]
    assert metrics[0]["eval_loss"] == metrics[1]["eval_loss"]
    assert metrics[1]["eval_written"] == 6.0
    assert (seen_ours[0] == seen_plain[0]).all()
    assert seen_ours[0].ndim == 2  # texts, not logits


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_it_trains_as_the_plain_trainer_does(architecture: str, tmp_path: Path) -> None:
    ours, _ = train(
        Seq2SeqDistillationTrainer, tmp_path, architecture, distillation_loss_weight=0.6
    )
    other, _ = distil(
        TASK,
        tmp_path,
        student=zoo_model(TASK, architecture, seed=0),
        teacher=zoo_model(TASK, architecture, seed=1, layers=2),
        train_dataset=zoo_dataset(TASK),
        trainer_options={"data_collator": default_data_collator},
        distillation_loss_weight=0.6,
    )
    assert logged(ours, "loss_prediction") == logged(other, "loss_prediction")
    weights = other.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in ours.model.state_dict().items())
