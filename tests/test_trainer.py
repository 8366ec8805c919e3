"""The promises of the design, on one process."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import concatenate_datasets
from runs import TASKS, CountingTeacher, arguments, distil, logged
from tiny import dataset_for, model_for
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainerCallback,
)

import hf_distill
from hf_distill import DistillationTrainer
from hf_distill.checks import NanGuard

AUTO = {
    "question-answering": AutoModelForQuestionAnswering,
    "text-classification": AutoModelForSequenceClassification,
}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# ---- promise 1: one step is one step, however it is split ------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("task", TASKS)
def test_accumulation_changes_neither_loss_nor_gradient(
    task: str, weight: float, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "train_dataset": dataset_for(task, ignored=(1, 2, 7)),
        "distillation_loss_weight": weight,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
    }
    whole, norms_whole = distil(task, tmp_path, per_device_train_batch_size=16, **options)
    split, norms_split = distil(
        task, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, **options
    )
    assert logged(split, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-5)
    assert norms_split.norms == pytest.approx(norms_whole.norms, rel=1e-5)
    for part in ("loss_task", "loss_prediction"):
        assert logged(split, part) == pytest.approx(logged(whole, part), rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_last_accumulation_group_that_is_short_is_not_weaker(task: str, tmp_path: Path) -> None:
    """12 rows as 4 + 4 + 4 with 2 steps accumulated: the second update has one batch only."""
    dataset = dataset_for(task, 12)
    options: dict[str, Any] = {
        "num_train_epochs": 1,
        "max_steps": -1,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.0,
    }
    split, norms = distil(
        task, tmp_path, train_dataset=dataset, gradient_accumulation_steps=2, **options
    )
    alone, norms_alone = distil(
        task, tmp_path, train_dataset=dataset.select(range(8, 12)), **options
    )
    assert norms.norms[1:] == pytest.approx(norms_alone.norms, rel=1e-5)
    assert logged(split, "loss")[1:] == pytest.approx(logged(alone, "loss"), rel=1e-5)


# ---- promise 2: w = 0 is Trainer, w = 1 needs no labels ----------------------------------------


@pytest.mark.parametrize(
    ("task", "accumulation"),
    [("question-answering", 1), ("question-answering", 3), ("text-classification", 1)],
)
def test_weight_0_is_a_plain_trainer_run_bit_for_bit(
    task: str, accumulation: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "gradient_accumulation_steps": accumulation,
        "max_steps": 4,
        "train_dataset": dataset_for(task, 24),
    }
    plain_student, our_student = (
        model_for(task, seed=0, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
        for _ in range(2)
    )
    plain, _ = distil(
        task, tmp_path / "plain", student=plain_student, trainer_class=Trainer, **options
    )
    ours, _ = distil(
        task,
        tmp_path / "ours",
        student=our_student,
        teacher=str(tmp_path / "not there"),  # it would fail, were it loaded
        distillation_loss_weight=0.0,
        **options,
    )
    assert ours.teacher_model is None
    assert logged(ours, "loss") == logged(plain, "loss")
    assert logged(ours, "grad_norm") == logged(plain, "grad_norm")
    assert same_weights(ours.model, plain.model)


def test_weight_0_never_runs_the_teacher_and_a_schedule_through_0_skips_it(tmp_path: Path) -> None:
    task = "question-answering"
    teacher = CountingTeacher(model_for(task, seed=1))
    distil(task, tmp_path, teacher=teacher, distillation_loss_weight=0.0)
    assert teacher.calls == 0
    distil(
        task,
        tmp_path,
        teacher=teacher,
        distillation_loss_weight=0.0,
        distillation_loss_weight_end=1.0,
        distillation_loss_weight_schedule="linear",
        max_steps=4,
    )
    assert teacher.calls == 3  # not in the first step, where the weight is still 0
    assert teacher.training_during_calls == [False] * 3


@pytest.mark.parametrize("part", ["", "bert.encoder.layer.0"])
def test_a_callback_that_puts_the_teacher_into_training_mode_changes_nothing(
    part: str, tmp_path: Path
) -> None:
    class Train(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            teacher.get_submodule(part).train()

    losses = []
    for callbacks in ([], [Train()]):
        teacher = model_for("question-answering", seed=1, hidden_dropout_prob=0.5)
        trainer, _ = distil(
            "question-answering",
            tmp_path,
            teacher=teacher,
            trainer_options={"callbacks": callbacks},
        )
        losses.append(logged(trainer, "loss_prediction"))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("task", TASKS)
def test_weight_1_needs_no_labels_and_ignores_them(task: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"distillation_loss_weight": 1.0, "max_steps": 3}
    without, _ = distil(task, tmp_path, train_dataset=dataset_for(task, labels=False), **options)
    having, _ = distil(task, tmp_path, train_dataset=dataset_for(task), **options)
    assert same_weights(without.model, having.model)
    assert logged(without, "loss_task") == []
    assert len(logged(having, "loss_task")) == 3
    assert logged(having, "loss") == pytest.approx(logged(having, "loss_prediction"), abs=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_unlabelled_evaluation_reports_the_prediction_loss(task: str, tmp_path: Path) -> None:
    trainer, _ = distil(task, tmp_path, distillation_loss_weight=1.0)
    seen: list[EvalPrediction] = []
    trainer.compute_metrics = lambda p: seen.append(p) or {}
    metrics = trainer.evaluate(dataset_for(task, labels=False))
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_loss_prediction"], rel=1e-5)
    assert "eval_loss_task" not in metrics


# ---- the loss itself ---------------------------------------------------------------------------


def reference_qa_loss(student: nn.Module, teacher: nn.Module, batch: dict, t: float) -> Tensor:
    """HF's run_squad_w_distillation, a row at a time over the unpadded positions, float64."""
    total = torch.tensor(0.0, dtype=torch.float64)
    with torch.no_grad():
        s, z = student(**batch), teacher(**batch)
    rows = batch["input_ids"].shape[0]
    for row in range(rows):
        n = int(batch["attention_mask"][row].sum())
        for name in ("start_logits", "end_logits"):
            log_p = (z[name][row, :n].double() / t).log_softmax(0)
            log_q = (s[name][row, :n].double() / t).log_softmax(0)
            total += t**2 * (log_p.exp() * (log_p - log_q)).sum() / 2
    return total / rows


def test_evaluation_reports_hintons_loss_over_unpadded_positions(tmp_path: Path) -> None:
    task = "question-answering"
    dataset = dataset_for(task, 11, ignored=(3,))
    student, teacher = model_for(task, seed=0, layers=1).eval(), model_for(task, seed=1).eval()
    trainer = DistillationTrainer(
        model=student,
        args=arguments(tmp_path, temperature=3.0, per_device_eval_batch_size=4),
        teacher_model=teacher,
        eval_dataset=dataset,
    )
    metrics = trainer.evaluate()
    batch = {k: torch.tensor(v) for k, v in dataset.to_dict().items() if "positions" not in k}
    expected = reference_qa_loss(student, teacher, batch, 3.0)
    assert metrics["eval_loss_prediction"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("weight", [0.25, 1.0])
@pytest.mark.parametrize("task", TASKS)
def test_the_log_adds_up(task: str, weight: float, tmp_path: Path) -> None:
    trainer, _ = distil(
        task, tmp_path, distillation_loss_weight=weight, max_steps=6, logging_steps=3
    )
    for loss, part_task, prediction in zip(
        logged(trainer, "loss"),
        logged(trainer, "loss_task"),
        logged(trainer, "loss_prediction"),
        strict=True,
    ):
        assert loss == pytest.approx((1 - weight) * part_task + weight * prediction, abs=2e-4)


def test_the_log_is_the_mean_over_its_window(tmp_path: Path) -> None:
    task = "question-answering"
    every, _ = distil(task, tmp_path, max_steps=4, logging_steps=1)
    window, _ = distil(task, tmp_path, max_steps=4, logging_steps=4)
    for part in ("loss_task", "loss_prediction"):
        assert logged(window, part) == [pytest.approx(np.mean(logged(every, part)), rel=1e-5)]


class Waits(TorchDispatchMode):
    """Counts where hf_distill makes the host wait for a GPU: operations that hand it a number.

    Those of the models themselves (transformers looks at attention masks) do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            homes = [Path(library.__file__).parent for library in (hf_distill, transformers)]
            files = [Path(frame.filename) for frame in reversed(traceback.extract_stack())]
            asked = next(home for file in files for home in homes if home in file.parents)
            self.count += asked == homes[0]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", TASKS)
def test_no_step_waits_for_the_device(task: str, tmp_path: Path) -> None:
    """Only the first batch is looked at, and what is logged is fetched once."""
    trainer = DistillationTrainer(
        model_for(task, seed=0, layers=1),
        arguments(tmp_path, max_steps=6, logging_steps=6),
        train_dataset=dataset_for(task),
        teacher_model=model_for(task, seed=1),
    )
    trainer.distiller.guard = NanGuard(at_once=False)
    steps: list[int] = []
    compute_loss, get_batch_samples = trainer.compute_loss, trainer.get_batch_samples

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with Waits() as waits:
                result = function(*args, **kwargs)
            steps.append(waits.count)
            return result

        return call

    trainer.compute_loss = watched(compute_loss)
    trainer.get_batch_samples = watched(get_batch_samples)
    trainer.train()
    assert len(steps) == 12
    assert sum(steps[:1]) > 0  # the first batch is looked at, so the count does count
    assert steps[1:] == [0] * 11


def test_an_epoch_of_unknown_length_ends_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """Trainer would make one step of 5 of these micro-batches, with twice the gradient."""
    rows = dataset_for("text-classification", 8)
    options: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "train_sampling_strategy": "sequential",
    }
    stream, norms = distil(
        "text-classification", tmp_path / "a", train_dataset=rows.to_iterable_dataset(), **options
    )
    twelve = concatenate_datasets([rows, rows.select(range(4))])
    whole, expected = distil("text-classification", tmp_path / "b", train_dataset=twelve, **options)
    assert norms.norms == pytest.approx(expected.norms, rel=1e-5)
    for name in ("loss", "loss_task", "loss_prediction"):
        assert logged(stream, name) == pytest.approx(logged(whole, name), rel=1e-5)
    options["gradient_accumulation_steps"] = 9
    with pytest.raises(ValueError, match="has 8 batches, fewer than the gradient_acc.*=9"):
        distil(
            "text-classification",
            tmp_path / "c",
            train_dataset=rows.to_iterable_dataset(),
            **options,
        )


def test_schedules_are_followed_and_logged(tmp_path: Path) -> None:
    seen: list[float] = []

    def loss(student: Tensor, teacher: Tensor, *, temperature: float, mask: Tensor) -> Tensor:
        seen.append(temperature)
        return (student - teacher).masked_fill(~mask, 0).square().mean(-1)

    trainer, _ = distil(
        "question-answering",
        tmp_path,
        max_steps=4,
        temperature=8.0,
        temperature_end=4.0,
        temperature_schedule="linear",
        distillation_loss_weight=0.8,
        distillation_loss_weight_end=0.4,
        distillation_loss_weight_schedule="linear",
        trainer_options={"distillation_loss": loss},
    )
    assert seen == logged(trainer, "temperature") == [8.0, 7.0, 6.0, 5.0]
    weights = logged(trainer, "distillation_loss_weight")
    assert weights == pytest.approx([0.8, 0.7, 0.6, 0.5])
    parts = zip(logged(trainer, "loss_task"), logged(trainer, "loss_prediction"), strict=True)
    mixed = [(1 - w) * own + w * taught for w, (own, taught) in zip(weights, parts, strict=True)]
    assert logged(trainer, "loss") == pytest.approx(mixed, rel=1e-4)


@pytest.mark.parametrize("name", ["kl_div", "mse", "reverse_kl", "js_div", "skew_kl"])
@pytest.mark.parametrize("task", TASKS)
def test_every_loss_brings_the_student_closer_to_the_teacher(
    task: str, name: str, tmp_path: Path
) -> None:
    trainer, _ = distil(
        task,
        tmp_path,
        distillation_loss=name,
        distillation_loss_weight=1.0,
        max_steps=40,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
    )
    losses = logged(trainer, "loss_prediction")
    assert losses[-1] < 0.5 * losses[0]
