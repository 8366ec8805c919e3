"""Weights of the losses that a schedule or a callback changes during the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import CountingTeacher, arguments, logged
from torch import nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, default_data_collator
from zoo import zoo_dataset, zoo_model

from hf_distill import DistillationTrainer, cache_teacher_outputs

TASK = "text-classification"
TEMPERATURE = 2.0


class SetWeight(TrainerCallback):
    """Changes arguments when a step is done."""

    def __init__(self, step: int, **changes: float) -> None:
        self.step, self.changes = step, changes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            for name, value in self.changes.items():
                setattr(args, name, value)


def trainer_for(
    path: Path,
    *,
    student: str = "bert",
    teacher: Any = None,
    callbacks: Any = (),
    train_dataset: Any = None,
    eval_dataset: Any = None,
    task: str = TASK,
    **options: Any,
) -> DistillationTrainer:
    return DistillationTrainer(
        zoo_model(task, student, seed=0),
        arguments(path, temperature=TEMPERATURE, teacher_check_samples=0, **options),
        teacher_model=teacher,
        train_dataset=zoo_dataset(task) if train_dataset is None else train_dataset,
        eval_dataset=zoo_dataset(task, 6, seed=1) if eval_dataset is None else eval_dataset,
        data_collator=default_data_collator,
        callbacks=list(callbacks),
    )


def hinton(student: nn.Module, teacher: nn.Module, data: Dataset) -> float:
    """T² KL(teacher ‖ student), the mean over the rows, in float64."""
    batch = default_data_collator([{k: v for k, v in row.items() if k != "labels"} for row in data])
    with torch.no_grad():
        z = [model.eval()(**batch).logits.double() / TEMPERATURE for model in (student, teacher)]
    log_q, log_p = (logits.log_softmax(-1) for logits in z)
    return float(TEMPERATURE**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean())


TO_0: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "schedule": (
        {
            "distillation_loss_weight": 0.5,
            "distillation_loss_weight_end": 0.0,
            "distillation_loss_weight_schedule": "linear",
        },
        [],
    ),
    "callback": (
        {"distillation_loss_weight": 0.5},
        [SetWeight(3, distillation_loss_weight=0.0)],
    ),
}


@pytest.mark.parametrize("how", TO_0)
def test_at_weight_0_in_the_end_the_last_evaluation_has_every_metric(
    how: str, tmp_path: Path
) -> None:
    options, callbacks = TO_0[how]
    teacher = CountingTeacher(zoo_model(TASK, "bert", seed=1))
    evaluation = zoo_dataset(TASK, 6, seed=1)
    trainer = trainer_for(
        tmp_path,
        teacher=teacher,
        callbacks=callbacks,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_only_model=True,
        metric_for_best_model="loss_prediction",
        greater_is_better=False,
        eval_dataset=evaluation,
        load_best_model_at_end=False,
        **options,
    )
    trainer.train()
    assert trainer.args.distillation_loss_weight_at(1.0) == 0
    values = logged(trainer, "eval_loss_prediction")
    assert len(values) == 4
    expected = hinton(trainer.model, teacher.wrapped, evaluation)
    assert values[-1] == pytest.approx(expected, rel=1e-5)
    assert trainer.state.best_metric == min(values)
    unlabelled = trainer.evaluate(evaluation.remove_columns("labels"))
    assert unlabelled["eval_loss"] == pytest.approx(expected, rel=1e-5)
    # In training the teacher rests where it has no weight.
    calls = teacher.calls
    trainer.model.train()
    trainer.compute_loss(trainer.model, default_data_collator(list(evaluation)))
    assert teacher.calls == calls


def test_a_weight_of_0_throughout_runs_no_teacher_in_evaluation(tmp_path: Path) -> None:
    teacher = CountingTeacher(zoo_model(TASK, "bert", seed=1))
    trainer = trainer_for(tmp_path, teacher=teacher, distillation_loss_weight=0.0)
    trainer.train()
    assert "eval_loss_prediction" not in trainer.evaluate()
    assert teacher.calls == 0


# ---- raised from 0 -------------------------------------------------------------------------------

RAISED = {"distillation_loss_weight": 0.5}


def test_a_weight_raised_by_a_callback_teaches_what_it_teaches_from_the_start(
    tmp_path: Path,
) -> None:
    losses = []
    for before in (0.0, 1e-12):
        trainer = trainer_for(
            tmp_path,
            teacher=zoo_model(TASK, "bert", seed=1),
            callbacks=[SetWeight(2, **RAISED)],
            max_steps=4,
            distillation_loss_weight=before,
        )
        trainer.train()
        losses.append(logged(trainer, "loss_prediction"))
    assert len(losses[0]) == 2 and len(losses[1]) == 4
    assert losses[0] == pytest.approx(losses[1][2:], rel=1e-5)


class Wrapped(TorchDataset):
    """Not a ``datasets.Dataset``: what columns it has is seen in its rows."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


class Stream(IterableDataset):
    """Nobody can tell what columns it has."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


@pytest.mark.parametrize(
    "wrap", [lambda data: data, Wrapped, Stream, lambda data: data.to_iterable_dataset()]
)
@pytest.mark.parametrize("eval_steps", [0, 2])
def test_inputs_that_only_the_late_teacher_reads_are_not_missed(
    wrap: Any, eval_steps: int, tmp_path: Path
) -> None:
    """DistilBERT has no token types, so they were dropped; an evaluation comes with all columns."""
    task = "question-answering"
    teacher = zoo_model(task, "bert", seed=1)
    evaluation = zoo_dataset(task, 6, seed=1)
    options = {"eval_strategy": "steps", "eval_steps": 2} if eval_steps else {}
    trainer = trainer_for(
        tmp_path,
        task=task,
        student="distilbert",
        teacher=teacher,
        train_dataset=wrap(zoo_dataset(task)),
        eval_dataset=evaluation,
        callbacks=[SetWeight(2, **RAISED)],
        max_steps=4,
        distillation_loss_weight=0.0,
        **options,
    )
    with pytest.raises(ValueError, match=r"lack what only the teacher reads \(.*token_type_ids"):
        trainer.train()
    assert trainer.state.global_step == 2
    if eval_steps:
        other = trainer_for(tmp_path, task=task, student="distilbert", teacher=teacher)
        other.model.load_state_dict(trainer.model.state_dict())
        expected = other.evaluate(evaluation)["eval_loss_prediction"]
        assert logged(trainer, "eval_loss_prediction") == [pytest.approx(expected, rel=1e-5)]


def test_cached_columns_that_were_dropped_are_not_missed(tmp_path: Path) -> None:
    data = cache_teacher_outputs(
        zoo_model(TASK, "bert", seed=1),
        zoo_dataset(TASK),
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        dtype="bfloat16",
        use_cpu=True,
    )
    for removes in (True, False):
        trainer = trainer_for(
            tmp_path,
            train_dataset=data,
            callbacks=[SetWeight(2, **RAISED)],
            max_steps=4,
            distillation_loss_weight=0.0,
            remove_unused_columns=removes,
        )
        with pytest.raises(ValueError, match=r"reads \(teacher_checksum, teacher_logits\)"):
            trainer.train()


def test_a_teacher_that_was_loaded_for_its_layers_is_not_asked_for_labels(tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path,
        teacher=zoo_model(TASK, "bert", seed=1, id2label={0: "yes", 1: "no", 2: "maybe"}),
        callbacks=[SetWeight(2, **RAISED)],
        max_steps=4,
        distillation_loss_weight=0.0,
        hidden_states_loss_weight=1.0,
    )
    with pytest.raises(ValueError, match="its labels and vocabulary were not compared"):
        trainer.train()
    assert trainer.state.global_step == 2
