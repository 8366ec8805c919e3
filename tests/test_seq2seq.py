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

from hf_distill import (
    Seq2SeqDistillationTrainer,
    Seq2SeqDistillationTrainingArguments,
    cache_teacher_outputs,
)

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
    if "teacher_model" in options:
        teacher["teacher_model"] = options.pop("teacher_model")
    data = options.pop("train_dataset", None) or zoo_dataset(TASK)
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
        train_dataset=data,
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


@pytest.mark.parametrize("labelled", [True, False])
def test_texts_are_written_from_data_with_teacher_columns(labelled: bool, tmp_path: Path) -> None:
    """They are those of the same data without the columns."""
    data = zoo_dataset(TASK, 6, seed=1, labels=labelled, target=not labelled)
    cached = cache_teacher_outputs(
        zoo_model(TASK, "t5", seed=1, layers=2),
        data,
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        use_cpu=True,
    )
    trainer, _ = train(
        Seq2SeqDistillationTrainer,
        tmp_path,
        "t5",
        teacher_model=None,
        train_dataset=cached,
        distillation_loss_weight=1.0,
    )
    for prediction_loss_only in (False, True):
        trainer.args.prediction_loss_only = prediction_loss_only
        found, expected = (trainer.predict(rows, max_length=18) for rows in (cached, data))
        if prediction_loss_only:
            assert "test_loss_prediction" in found.metrics
        else:
            assert (found.predictions == expected.predictions).all()
            assert found.predictions.ndim == 2  # texts, not logits
        if labelled:
            assert found.metrics["test_loss"] == expected.metrics["test_loss"]


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
