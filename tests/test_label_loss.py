"""The label loss that a user brings along, and a loss that goes round the teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import arguments, distil, logged
from tiny import dataset_for, model_for
from torch import Tensor, nn
from transformers import Trainer, default_data_collator

from hf_distill import DistillationTrainer

TASK = "text-classification"
CLASS_WEIGHTS = [0.2, 1.0, 3.0]
LAST_IS_SHORT = 10
"""Rows that two micro-batches of 4 do not divide: the last step has 2 rows alone."""


def class_weighted(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """As the documentation has it: the sum over the labelled rows by their number in the step."""
    total = nn.functional.cross_entropy(
        outputs.logits, labels, weight=torch.tensor(CLASS_WEIGHTS), reduction="sum"
    )
    return total / (labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)


def by_hand(model: nn.Module, rows: list[dict[str, Any]]) -> float:
    """The same in float64 and plain Python."""
    batch = default_data_collator(rows)
    labels = batch.pop("labels").tolist()
    with torch.no_grad():
        logits = model.eval()(**batch).logits.double().tolist()
    sums = []
    for row, label in zip(logits, labels, strict=True):
        if label != -100:
            log_sum = torch.tensor(row, dtype=torch.double).exp().sum().log().item()
            sums.append(CLASS_WEIGHTS[label] * (log_sum - row[label]))
    return sum(sums) / len(sums)


def run(path: Path, trainer_class: type[Trainer] = DistillationTrainer, **options: Any) -> Trainer:
    options = {"train_sampling_strategy": "sequential", "max_steps": 2, **options}
    options.setdefault("trainer_options", {"compute_loss_func": class_weighted})
    if trainer_class is Trainer or options.get("distillation_loss_weight") == 0:
        options["teacher"] = None
    data = options.pop("train_dataset", None)
    trainer, _ = distil(
        TASK,
        path,
        trainer_class=trainer_class,
        train_dataset=dataset_for(TASK, LAST_IS_SHORT, ignored=(1,)) if data is None else data,
        **options,
    )
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_at_weight_0_a_loss_function_trains_as_under_trainer(
    accumulation: int, tmp_path: Path
) -> None:
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 2}
    plain = run(tmp_path, Trainer, **options)
    ours = run(tmp_path, distillation_loss_weight=0.0, **options)
    assert logged(ours, "loss") == logged(plain, "loss")
    for name, value in plain.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name
    assert logged(ours, "loss_task") == pytest.approx(logged(plain, "loss"), rel=1e-6)


@pytest.mark.parametrize("batch", [(8, 1), (4, 2), (2, 4)])
def test_a_loss_function_is_mixed_with_the_distillation_loss(
    batch: tuple[int, int], tmp_path: Path
) -> None:
    """The first step has rows 0 to 7, the second the two that are left, however it is split."""
    size, accumulation = batch
    data = dataset_for(TASK, LAST_IS_SHORT, ignored=(1,))
    trainer = run(
        tmp_path,
        learning_rate=0.0,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        distillation_loss_weight=0.25,
    )
    expected = [by_hand(trainer.model, list(data)[a:b]) for a, b in ((0, 8), (8, 10))]
    assert logged(trainer, "loss_task") == pytest.approx(expected, rel=1e-5)
    mixed = [
        0.75 * task + 0.25 * prediction
        for task, prediction in zip(expected, logged(trainer, "loss_prediction"), strict=True)
    ]
    assert logged(trainer, "loss") == pytest.approx(mixed, rel=1e-5)
    metrics = trainer.evaluate(data)  # batches of 8 and 2 rows
    expected = by_hand(trainer.model, list(data))
    assert metrics["eval_loss_task"] == pytest.approx(expected, rel=1e-5)


def test_without_labels_of_that_name_a_loss_function_gives_a_mean(tmp_path: Path) -> None:
    """Question answering: Trainer hands over neither labels nor their number."""
    task = "question-answering"

    def constant(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
        assert labels is None and num_items_in_batch is None
        return 3.0 + 0.0 * outputs.loss

    for accumulation in (1, 3):
        trainer, _ = distil(
            task,
            tmp_path,
            gradient_accumulation_steps=accumulation,
            trainer_options={"compute_loss_func": constant},
        )
        assert logged(trainer, "loss_task") == pytest.approx([3.0] * 3)


# ---- a loss of a subclass ------------------------------------------------------------------------


class Bypass(DistillationTrainer):
    """Class weights, as the documentation of Trainer has them."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = class_weighted(outputs, labels)
        return (loss, outputs) if return_outputs else loss


class CallsSuper(DistillationTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("stage", ["prediction", "intermediate"])
def test_a_loss_that_leaves_out_the_teacher_is_named_once(
    stage: str, steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"trainer_options": {}, "stage": stage, "max_steps": steps}
    with caplog.at_level(logging.WARNING):
        run(tmp_path, Bypass, train_dataset=dataset_for(TASK), **options)
    told = [r.getMessage() for r in caplog.records if "learns nothing from" in r.getMessage()]
    assert len(told) == 1
    for remedy in ("Bypass.compute_loss", "super().compute_loss(...)", "compute_loss_func"):
        assert remedy in told[0]


@pytest.mark.parametrize(
    ("trainer_class", "options"),
    [(CallsSuper, {}), (DistillationTrainer, {}), (Bypass, {"distillation_loss_weight": 0.0})],
)
def test_a_loss_that_leaves_out_no_teacher_is_not_warned_about(
    trainer_class: Any, options: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, trainer_class, trainer_options={}, **options)
    assert "learns nothing" not in caplog.text


# ---- outside of train() --------------------------------------------------------------------------


@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("function", [None, class_weighted])
def test_a_loss_outside_of_training_is_that_of_the_batch(
    function: Callable[..., Tensor] | None, trained_before: bool, tmp_path: Path
) -> None:
    data = dataset_for(TASK, 6, seed=3, ignored=(1,))
    found = {}
    for weight, trainer_class in ((0.0, Trainer), (0.0, DistillationTrainer),
                                  (0.25, DistillationTrainer)):  # fmt: skip
        options: dict[str, Any] = {"distillation_loss_weight": weight}
        if trainer_class is not Trainer and weight:
            options["teacher_model"] = model_for(TASK, seed=1)
        trainer = trainer_class(
            model_for(TASK, seed=0, layers=1),
            arguments(
                tmp_path,
                gradient_accumulation_steps=2,
                learning_rate=0.0,
                distillation_loss_weight=options.pop("distillation_loss_weight"),
            ),
            train_dataset=dataset_for(TASK),
            eval_dataset=data,
            compute_loss_func=function,
            **options,
        )
        if trained_before:
            trainer.train()
        prediction = trainer.evaluate().get("eval_loss_prediction", 0.0)
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, default_data_collator(list(data)))
        found[trainer_class, weight] = loss.item()
    task = found[Trainer, 0.0]
    assert found[DistillationTrainer, 0.0] == task
    mixed = 0.75 * task + 0.25 * prediction
    assert found[DistillationTrainer, 0.25] == pytest.approx(mixed, rel=1e-5)
