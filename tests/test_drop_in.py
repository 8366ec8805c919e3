"""What is saved, evaluated and refused, and that scripts for Trainer keep their meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import TASKS, CountingTeacher, arguments, distil, logged
from tiny import dataset_for, model_for
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from hf_distill import DistillationTrainer

AUTO = {
    "question-answering": AutoModelForQuestionAnswering,
    "text-classification": AutoModelForSequenceClassification,
}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# ---- promise 4: what is saved is a plain student -----------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_checkpoints_and_the_saved_model_are_plain_students(task: str, tmp_path: Path) -> None:
    trainer, _ = distil(task, tmp_path, save_strategy="steps", save_steps=3, max_steps=3)
    trainer.save_model(str(tmp_path / "saved"))
    for directory in (tmp_path / "checkpoint-3", tmp_path / "saved"):
        model, info = AUTO[task].from_pretrained(directory, output_loading_info=True)
        assert not info["unexpected_keys"] and not info["missing_keys"]
        assert same_weights(model, trainer.model)


# ---- promise 5: evaluation is Trainer's --------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_sees_what_it_sees_under_trainer(task: str, tmp_path: Path) -> None:
    seen: list[EvalPrediction] = []

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        return {"mean": float(np.mean(np.concatenate([np.ravel(x) for x in prediction[0]])))}

    dataset = dataset_for(task, 10, seed=5, ignored=(2,))
    model = model_for(task, seed=0)
    plain = Trainer(
        model, arguments(tmp_path), eval_dataset=dataset, compute_metrics=metrics
    ).evaluate()
    ours = DistillationTrainer(
        model,
        arguments(tmp_path),
        eval_dataset=dataset,
        compute_metrics=metrics,
        teacher_model=model_for(task, seed=1),
    ).evaluate()
    for a, b in zip(seen[0], seen[1], strict=True):
        assert isinstance(a, tuple) == isinstance(b, tuple)
        for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
            np.testing.assert_array_equal(x, y)
    assert ours["eval_loss"] == plain["eval_loss"]
    assert ours["eval_mean"] == plain["eval_mean"]
    assert {"eval_loss_task", "eval_loss_prediction"} <= set(ours)


def test_evaluation_keeps_the_order_of_the_data(tmp_path: Path) -> None:
    """Trainer shuffles it under group_by_length; EM and F1 would then be nonsense."""
    task = "question-answering"
    dataset = dataset_for(task, 12)
    found: dict[str, np.ndarray] = {}
    for cls in (Trainer, DistillationTrainer):
        trainer = cls(
            model_for(task, seed=0),
            arguments(
                tmp_path, train_sampling_strategy="group_by_length", distillation_loss_weight=0.0
            ),
            train_dataset=dataset,
        )
        found[cls.__name__] = trainer.predict(dataset).label_ids[0]
        assert trainer.args.train_sampling_strategy == "group_by_length"
    assert found["DistillationTrainer"].tolist() == dataset["start_positions"][:]
    assert found["Trainer"].tolist() != dataset["start_positions"][:]  # else drop the override


def test_eval_with_teacher_off_does_not_run_it(tmp_path: Path) -> None:
    task = "question-answering"
    teacher = CountingTeacher(model_for(task, seed=1))
    trainer = DistillationTrainer(
        model_for(task, seed=0),
        arguments(tmp_path, eval_with_teacher=False),
        eval_dataset=dataset_for(task),
        teacher_model=teacher,
    )
    assert "eval_loss_prediction" not in trainer.evaluate()
    assert teacher.calls == 0


# ---- promise 6: launches that would train in the wrong shape -----------------------------------


def test_independent_processes_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    args = arguments(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(RuntimeError, match="accelerate launch"):
        DistillationTrainer(model_for("question-answering", seed=0), args, teacher_model="x")


def test_data_parallel_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(RuntimeError, match="--num_processes 2"):
        DistillationTrainer(model_for("question-answering", seed=0), args, teacher_model="x")


def test_an_objective_without_anything_to_compare_raises(tmp_path: Path) -> None:
    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"hidden": self.layer(input_ids.float()[..., None])}

    with pytest.raises(ValueError, match="start_logits"):
        distil("question-answering", tmp_path, teacher=Headless())


# ---- promise 7: the teacher is frozen and outside of everything --------------------------------


def test_the_teacher_is_frozen_and_outside_of_optimizer_and_checkpoint(tmp_path: Path) -> None:
    task = "question-answering"
    teacher = model_for(task, seed=1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer, _ = distil(task, tmp_path, teacher=teacher, max_steps=3)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    ids = {id(p) for p in teacher.parameters()}
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not ids & optimized
    assert len(trainer.accelerator._models) == 1  # the student alone was prepared
    assert all(p.grad is None for p in teacher.parameters())


def test_evaluating_first_does_not_change_training(tmp_path: Path) -> None:
    """A teacher that the accelerator had recorded would leave the student unprepared."""
    task = "question-answering"
    results = []
    for evaluate_first in (False, True):
        trainer = DistillationTrainer(
            model_for(task, seed=0),
            arguments(tmp_path, bf16=True),
            train_dataset=dataset_for(task),
            eval_dataset=dataset_for(task, 4),
            teacher_model=model_for(task, seed=1),
        )
        if evaluate_first:
            trainer.evaluate()
        trainer.train()
        results.append(trainer)
    assert logged(results[0], "loss") == logged(results[1], "loss")
    assert same_weights(results[0].model, results[1].model)


# ---- drop-in -----------------------------------------------------------------------------------


def test_plain_training_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DistillationTrainingArguments"):
        DistillationTrainer(
            model_for("question-answering", seed=0), TrainingArguments(str(tmp_path), use_cpu=True)
        )


def test_options_of_trainer_keep_their_meaning(tmp_path: Path) -> None:
    """Label smoothing and compute_loss_func shape the task loss as they do under Trainer."""
    task = "text-classification"
    for options, trainer_options in (
        ({"label_smoothing_factor": 0.2}, {}),
        (
            {},
            {
                "compute_loss_func": lambda outputs, labels, num_items_in_batch=None: (
                    3 * nn.functional.cross_entropy(outputs.logits, labels)
                )
            },
        ),
    ):
        plain, _ = distil(
            task, tmp_path, trainer_class=Trainer, trainer_options=trainer_options, **options
        )
        ours, _ = distil(
            task, tmp_path, distillation_loss_weight=0.0, trainer_options=trainer_options, **options
        )
        assert logged(ours, "loss") == logged(plain, "loss")


def test_the_best_model_is_chosen_as_under_trainer(tmp_path: Path) -> None:
    task = "text-classification"
    trainer, _ = distil(
        task,
        tmp_path,
        trainer_options={"eval_dataset": dataset_for(task, 8, seed=9)},
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss_prediction",
        greater_is_better=False,
    )
    assert trainer.state.best_metric == min(logged(trainer, "eval_loss_prediction"))


def test_hyperparameters_set_after_construction_are_used(tmp_path: Path) -> None:
    """As hyperparameter_search does: it sets attributes of args before each trial."""
    task = "question-answering"
    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=1, distillation_loss_weight=0.0),
        model_init=lambda: model_for(task, seed=0),
        train_dataset=dataset_for(task),
        teacher_model=model_for(task, seed=1),
    )
    trainer.train()
    assert logged(trainer, "loss_prediction") == []
    losses = []
    for temperature in (1.0, 4.0):
        trainer.args.temperature, trainer.args.distillation_loss_weight = temperature, 1.0
        trainer.train()
        losses.append(logged(trainer, "loss_prediction")[0])
    assert losses[0] != losses[1]
    trainer.args.temperature = -1.0
    with pytest.raises(ValueError, match="temperature must be"):
        trainer.train()


def test_hyperparameter_search_varies_the_options_of_distillation(tmp_path: Path) -> None:
    task = "question-answering"
    teacher = CountingTeacher(model_for(task, seed=1))
    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=2, eval_strategy="no"),
        model_init=lambda: model_for(task, seed=0),
        train_dataset=dataset_for(task),
        eval_dataset=dataset_for(task, 4),
        teacher_model=teacher,
    )
    used: list[tuple[float, float]] = []

    def objective(metrics: dict[str, float]) -> float:
        used.append((trainer.args.temperature, trainer.args.distillation_loss_weight))
        return metrics["eval_loss_prediction"]

    best = trainer.hyperparameter_search(
        lambda trial: {
            "temperature": trial.suggest_categorical("temperature", [1.0, 4.0]),
            "distillation_loss_weight": trial.suggest_float("distillation_loss_weight", 0.5, 1.0),
        },
        compute_objective=objective,
        n_trials=3,
        direction="minimize",
    )
    assert set(best.hyperparameters) == {"temperature", "distillation_loss_weight"}
    assert len(set(used)) == 3
    # A trial has two training batches and one of evaluation; the teacher is tried once.
    assert teacher.calls == 3 * (2 + 1) + 1
