"""Evaluation data whose teacher columns mean something else is refused, however it is passed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from runs import arguments
from torch.utils.data import Subset
from transformers import default_data_collator
from zoo import zoo_dataset, zoo_model

from hf_distill import DistillationTrainer, cache_teacher_outputs

TASK = "text-classification"


def a_teacher(**changes: Any) -> Any:
    teacher = zoo_model(TASK, "bert", seed=changes.pop("seed", 1), layers=2)
    for name, value in changes.items():
        setattr(teacher.config, name, value)
    return teacher


def cached(folder: Path, teacher: Any, seed: int, **options: Any) -> Dataset:
    return cache_teacher_outputs(
        teacher,
        zoo_dataset(TASK, 6, seed=seed),
        output_dir=folder,
        data_collator=default_data_collator,
        use_cpu=True,
        **{"dtype": "float32", **options},
    )


def trainer_for(folder: Path, **options: Any) -> DistillationTrainer:
    return DistillationTrainer(
        zoo_model(TASK, "bert", seed=0),
        arguments(folder, distillation_loss_weight=0.5, teacher_check_samples=0),
        data_collator=default_data_collator,
        **options,
    )


Use = Callable[[Path, Dataset, Dataset], Any]
USES: dict[str, Use] = {
    "eval_dataset": lambda path, train, other: trainer_for(
        path, train_dataset=train, eval_dataset=other
    ).train(),
    "one of several": lambda path, train, other: trainer_for(
        path, train_dataset=train, eval_dataset={"same": train, "other": other}
    ).train(),
    "evaluate": lambda path, train, other: trainer_for(path, train_dataset=train).evaluate(other),
    "evaluate, several": lambda path, train, other: trainer_for(path, train_dataset=train).evaluate(
        {"same": train, "other": other}
    ),
    "a subset": lambda path, train, other: trainer_for(path, train_dataset=train).evaluate(
        Subset(other, [0, 1, 2])
    ),
    "predict": lambda path, train, other: trainer_for(path, train_dataset=train).predict(other),
}
NAMES = {"eval_dataset": "^eval_dataset has", "one of several": r"^eval_dataset\['other'\] has"}
REORDERED = {"id2label": {0: "yes", 1: "no", 2: "maybe"}}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another teacher": ({"seed": 2}, {}, "differ: weights"),
    "labels in another order": (REORDERED, {}, r"differ: config \(id2label\)"),
    "another number format": ({}, {"dtype": "bfloat16"}, "differ: dtype"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("other", OTHERS)
def test_other_columns_are_refused(other: str, use: str, tmp_path: Path) -> None:
    changes, options, message = OTHERS[other]
    train = cached(tmp_path / "train", a_teacher(), 0)
    data = cached(tmp_path / "other", a_teacher(**changes), 1, **options)
    with pytest.raises(ValueError, match=message) as raised:
        USES[use](tmp_path, train, data)
    assert raised.match(NAMES.get(use, "^The evaluation data has"))


def test_those_of_the_same_teacher_are_read(tmp_path: Path) -> None:
    """As a live teacher's; a copy elsewhere, by another name, is the same teacher."""
    teacher = a_teacher()
    moved = copy.deepcopy(teacher)
    moved.config._name_or_path = "elsewhere/moved"
    train, data = cached(tmp_path / "train", teacher, 0), cached(tmp_path / "other", moved, 1)
    plain = zoo_dataset(TASK, 6, seed=1)
    from_cache = trainer_for(tmp_path, train_dataset=train, eval_dataset={"a": data, "b": plain})
    live = trainer_for(tmp_path, teacher_model=teacher)
    expected = live.evaluate(plain)
    assert from_cache.evaluate(data)["eval_loss_prediction"] == pytest.approx(
        expected["eval_loss_prediction"], rel=1e-5
    )
    metrics = from_cache.evaluate()
    assert metrics["eval_a_loss_prediction"] == pytest.approx(
        expected["eval_loss_prediction"], rel=1e-5
    )
    assert "eval_b_loss_prediction" not in metrics
    # With evaluation data alone, the teacher is that of the first set that has one.
    alone = trainer_for(tmp_path, eval_dataset={"b": plain, "a": data})
    assert alone.evaluate()["eval_a_loss_prediction"] == metrics["eval_a_loss_prediction"]
