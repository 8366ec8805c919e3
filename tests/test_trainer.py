"""The promises of the design, on one process."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from runs import TASKS, arguments, distil, logged
from tiny import dataset_for, model_for
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import hf_distill
from hf_distill import DistillationTrainer
from hf_distill.checks import TeacherGuard

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


class CountingTeacher(nn.Module):
    """Wraps a model to count its forward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.wrapped, self.config, self.calls = model, model.config, 0
        self.training_during_calls: list[bool] = []

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Any:
        self.calls += 1
        self.training_during_calls.append(self.wrapped.training)
        assert not torch.is_grad_enabled()
        return self.wrapped(input_ids, attention_mask, token_type_ids)


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
    trainer._teacher_guard = TeacherGuard(at_once=False)
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
        trainer_options={"distillation_loss": loss},
    )
    assert seen == [8.0, 7.0, 6.0, 5.0]
    assert logged(trainer, "temperature") == [7.0, 6.0, 5.0, 4.0]
    assert logged(trainer, "distillation_loss_weight") == []


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
