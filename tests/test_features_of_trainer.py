"""What Trainer can do stays as it is: without a teacher, with a live one and with a cached one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from runs import TASKS, arguments
from tiny import dataset_for, model_for, tokenizer
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from hf_distill import DistillationTrainer, cache_teacher_outputs

ROWS = 16
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}
SAVES = {"save_strategy": "steps", "save_steps": 1}


def means(prediction: Any) -> dict[str, float]:
    """What a metric sees: predictions, labels, and inputs and losses where they are asked for."""
    found = {}
    for name in ("predictions", "label_ids", "inputs", "losses"):
        value = getattr(prediction, name, None)
        if value is not None:
            parts = value if isinstance(value, tuple) else (value,)
            found[name] = float(np.mean([np.float64(part).mean() for part in parts]))
    return found


def batch_metric(prediction: Any, compute_result: bool) -> dict[str, float]:
    return {"last": float(prediction.predictions.sum())} if compute_result else {}


class Events(TrainerCallback):
    """Every event, with what the callback is told, and a wish: to stop."""

    def __init__(self, stop_at: int = 0) -> None:
        self.seen: list[Any] = []
        self.stop_at = stop_at

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name != "on_init_end":
            return lambda args, state, control, **kwargs: self.note(name, state, control, kwargs)
        return super().__getattribute__(name)

    def note(self, name: str, state: Any, control: Any, kwargs: Any) -> None:
        self.seen.append((name, state.global_step, state.epoch, sorted(kwargs)))
        if self.stop_at and name == "on_step_end" and state.global_step == self.stop_at:
            control.should_training_stop = True


def constant(prediction: Any) -> dict[str, float]:
    return {"constant": 1.0}


FEATURES: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "metrics": (
        {**EVALUATES, "include_for_metrics": ["inputs", "loss"], "eval_on_start": True},
        lambda: {"compute_metrics": means},
    ),
    "metrics by batch": (
        {**EVALUATES, "batch_eval_metrics": True},
        lambda: {"compute_metrics": batch_metric},
    ),
    "preprocessed logits": (
        {**EVALUATES, "eval_accumulation_steps": 1},
        lambda: {
            "compute_metrics": means,
            "preprocess_logits_for_metrics": lambda logits, labels: torch.atleast_1d(
                logits[0].argmax(-1)
            ),
        },
    ),
    "several evaluation sets": (EVALUATES, dict),
    "loss only": ({**EVALUATES, "prediction_loss_only": True, "eval_delay": 2}, dict),
    "label smoothing": ({"label_smoothing_factor": 0.2, **EVALUATES}, dict),
    "a callback that stops": (
        {**EVALUATES, **SAVES, "logging_first_step": True, "logging_steps": 2},
        lambda: {"callbacks": [Events(stop_at=2)]},
    ),
    "early stopping": (
        {
            **EVALUATES,
            **SAVES,
            "load_best_model_at_end": True,
            "metric_for_best_model": "constant",
            "save_total_limit": 1,
        },
        lambda: {"callbacks": [EarlyStoppingCallback(1)], "compute_metrics": constant},
    ),
    "optimizer and schedule": (
        {
            "optim": "sgd",
            "lr_scheduler_type": "cosine",
            "warmup_steps": 1,
            "max_grad_norm": 0.1,
            "weight_decay": 0.1,
        },
        dict,
    ),
    "plateau": ({"lr_scheduler_type": "reduce_lr_on_plateau", **EVALUATES}, dict),
    "an optimizer's class": (
        {},
        lambda: {"optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 1e-3})},
    ),
    "epochs": (
        {
            "max_steps": -1,
            "num_train_epochs": 2,
            "eval_strategy": "epoch",
            "logging_strategy": "epoch",
            "per_device_train_batch_size": 6,
            "dataloader_drop_last": True,
            "include_num_input_tokens_seen": "all",
        },
        dict,
    ),
    "noise, checkpointing": (
        {"neftune_noise_alpha": 5.0, "gradient_checkpointing": True, "seed": 7, "data_seed": 8},
        dict,
    ),
    "bfloat16": ({"bf16": True, **EVALUATES, "bf16_full_eval": True}, dict),
    "collator and lengths": (
        {"train_sampling_strategy": "group_by_length", "length_column_name": "length"},
        lambda: {"data_collator": DataCollatorWithPadding(tokenizer())},
    ),
    "batch size that is found": ({"auto_find_batch_size": True}, dict),
    "torch_compile": ({"torch_compile": True, "torch_compile_backend": "eager"}, dict),
}


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Dataset]]:
    """By task: training and evaluation data."""
    return {
        task: [
            cache_teacher_outputs(
                model_for(task, seed=1),
                dataset_for(task, rows, seed=seed),
                output_dir=tmp_path_factory.mktemp("cache"),
                dtype="float32",
                use_cpu=True,
                data_collator=default_data_collator,
            )
            for rows, seed in ((ROWS, 0), (6, 1))
        ]
        for task in TASKS
    }


def run(
    name: str,
    task: str,
    path: Path,
    trainer_class: type[Trainer] = DistillationTrainer,
    data: list[Dataset] | None = None,
    **extra: Any,
) -> tuple[Trainer, list[Any]]:
    options, trainer_options = FEATURES[name]
    further, events = trainer_options(), Events()
    train, evaluation = data or [dataset_for(task, n, seed=s) for n, s in ((ROWS, 0), (6, 1))]
    weight = extra.pop("weight", 0.0)
    torch.manual_seed(0)  # some kinds of noise are drawn before Trainer's seed
    trainer = trainer_class(
        model_for(task, seed=0, layers=1, hidden_dropout_prob=0.1),
        arguments(path / "run", distillation_loss_weight=weight, temperature=1.0, **options),
        train_dataset=train,
        eval_dataset={"a": evaluation, "b": train} if name.startswith("several") else evaluation,
        callbacks=[*further.pop("callbacks", []), events],
        **further,
        **extra,
    )
    trainer.train()
    trainer.predict(evaluation)
    return trainer, events.seen


def assert_same(ours: Trainer, theirs: Trainer, rel: float) -> None:
    """All that ``theirs`` logged is the same, but for times; bit for bit with ``rel=0``."""
    assert len(ours.state.log_history) == len(theirs.state.log_history)
    for own, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for key, value in other.items():
            if not key.endswith(("_runtime", "_per_second")):
                assert own[key] == (pytest.approx(value, rel=rel, abs=1e-5) if rel else value), key
    if rel == 0:
        weights = ours.model.state_dict()
        for key, value in theirs.model.state_dict().items():
            assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature(name: str, cached: Any, tmp_path: Path) -> None:
    """Each with one of the two tasks."""
    task = TASKS[list(FEATURES).index(name) % 2]
    plain, events = run(name, task, tmp_path, Trainer)
    ours, own_events = run(name, task, tmp_path)
    assert own_events == events
    assert_same(ours, plain, rel=0)
    weight = {"weight": 0.5}
    live, live_events = run(name, task, tmp_path, teacher_model=model_for(task, seed=1), **weight)
    from_cache, cached_events = run(name, task, tmp_path, data=cached[task], **weight)
    assert live_events == cached_events == events
    assert_same(from_cache, live, rel=0.05 if name == "bfloat16" else 1e-3)
    for key in [key for entry in plain.state.log_history for key in entry]:
        assert any(key in entry for entry in live.state.log_history), key
    assert any("loss_prediction" in entry for entry in live.state.log_history)


@pytest.mark.parametrize("teacher", ["live", "cached"])
def test_a_search_with_optuna(teacher: str, cached: Any, tmp_path: Path) -> None:
    """The best of a grid is found, and trials begin with the same student."""
    pytest.importorskip("optuna")
    import optuna

    task = TASKS[1]
    data = cached[task] if teacher == "cached" else [dataset_for(task, ROWS), dataset_for(task, 6)]
    extra = {} if teacher == "cached" else {"teacher_model": model_for(task, seed=1)}

    options = {"max_steps": 2, "train_sampling_strategy": "sequential"}

    def student() -> nn.Module:
        return model_for(task, seed=0, layers=1)

    trainer = DistillationTrainer(
        args=arguments(tmp_path, **options),
        model_init=student,
        train_dataset=data[0],
        eval_dataset=data[1],
        **extra,
    )
    seen: dict[float, float] = {}

    def objective(metrics: dict[str, float]) -> float:
        seen[trainer.args.learning_rate] = metrics["eval_loss_prediction"]
        return metrics["eval_loss_prediction"]

    rates = [1e-3, 3e-2]
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=objective,
        n_trials=2,
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}),
    )
    assert sorted(seen) == rates
    assert best.objective == min(seen.values()) == seen[best.hyperparameters["learning_rate"]]
    alone = DistillationTrainer(
        student(),
        arguments(
            tmp_path, max_steps=2, train_sampling_strategy="sequential", learning_rate=rates[0]
        ),
        train_dataset=data[0],
        eval_dataset=data[1],
        **extra,
    )
    alone.train()
    assert alone.evaluate()["eval_loss_prediction"] == pytest.approx(seen[rates[0]], rel=1e-6)
