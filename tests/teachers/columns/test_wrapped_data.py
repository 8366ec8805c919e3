"""Cached teacher outputs inside other data sets: found, and read row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from runs import arguments, distil, logged
from tiny import dataset_for, model_for
from torch import utils
from transformers import default_data_collator

from hf_distill import DistillationTrainer, cache_teacher_outputs

TASK = "question-answering"


def cached(folder: Path, seed: int = 1, rows: Dataset | None = None) -> Dataset:
    return cache_teacher_outputs(
        model_for(TASK, seed=seed),
        dataset_for(TASK) if rows is None else rows,
        output_dir=folder,
        dtype="float32",
        use_cpu=True,
        data_collator=default_data_collator,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return cached(tmp_path_factory.mktemp("cache"))


class Streamed(utils.data.IterableDataset):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


class Wrapper:
    """What a script may have around its data: no torch class, a name of its own."""

    def __init__(self, rows: Any) -> None:
        self.tokenized, self.cache = rows, [{"a": 1}]

    def __len__(self) -> int:
        return len(self.tokenized)

    def __getitem__(self, index: int) -> Any:
        return dict(self.tokenized[index])


class LeavesOut(Wrapper):
    def __getitem__(self, index: int) -> Any:
        return {k: v for k, v in self.tokenized[index].items() if not k.startswith("teacher_")}


WRAPPED: dict[str, Callable[[Dataset], Any]] = {
    "Subset": lambda rows: utils.data.Subset(rows, range(len(rows))),
    "Subset of a Subset": lambda rows: utils.data.Subset(
        utils.data.Subset(rows, range(len(rows))), range(len(rows))
    ),
    "ConcatDataset": lambda rows: utils.data.ConcatDataset(
        [rows.select(range(5)), rows.select(range(5, len(rows)))]
    ),
    "IterableDataset": Streamed,
    "ChainDataset": lambda rows: utils.data.ChainDataset([Streamed(rows)]),
    "a class of one's own": Wrapper,
    "streaming": lambda rows: rows.to_iterable_dataset(),
    "a Subset of streamed": lambda rows: Streamed(utils.data.Subset(rows, range(len(rows)))),
}


def losses(path: Path, train: Any, **options: Any) -> list[float]:
    trainer, _ = distil(
        TASK, path, train_dataset=train, train_sampling_strategy="sequential", **options
    )
    return logged(trainer, "loss_prediction")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(tmp_path_factory.mktemp("live"), dataset_for(TASK))


@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_columns_teach_as_the_live_teacher(
    how: str, data: Dataset, live: list[float], tmp_path: Path
) -> None:
    found = losses(tmp_path, WRAPPED[how](data), teacher=None)
    assert found == pytest.approx(live, rel=1e-5)


def trainer_for(path: Path, train: Any, **options: Any) -> DistillationTrainer:
    return DistillationTrainer(
        model_for(TASK, seed=0, layers=1), arguments(path), train_dataset=train, **options
    )


@pytest.mark.parametrize("how", ["Subset", "a class of one's own", "IterableDataset"])
def test_wrapped_columns_are_a_teacher(how: str, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are two teachers"):
        trainer_for(tmp_path, WRAPPED[how](data), teacher_model=model_for(TASK, seed=1))


def test_a_wrapper_that_leaves_them_out_has_none(
    data: Dataset, live: list[float], tmp_path: Path
) -> None:
    assert losses(tmp_path, LeavesOut(data)) == pytest.approx(live, rel=1e-5)
    message = "needs a teacher.*as an attribute of the LeavesOut, if it hands them on"
    with pytest.raises(ValueError, match=message):
        trainer_for(tmp_path, LeavesOut(data))


def test_rows_of_two_teachers_and_rows_without_any(data: Dataset, tmp_path: Path) -> None:
    other = cached(tmp_path / "cache", seed=2)
    with pytest.raises(ValueError, match="A ConcatDataset has the cached outputs of .*: weights"):
        trainer_for(tmp_path, utils.data.ConcatDataset([data, other]))
    plain = dataset_for(TASK, 3)
    mixed = trainer_for(tmp_path, utils.data.ConcatDataset([data.select(range(2)), plain]))
    mixed.args.train_sampling_strategy = "sequential"
    with pytest.raises(ValueError, match="Row 2 of a batch has no teacher columns, and others"):
        mixed.train()
    trainer = trainer_for(tmp_path, data)
    with pytest.raises(ValueError, match=r"evaluation data.*cannot be read.*weights"):
        trainer.evaluate(Wrapper(other))  # type: ignore[arg-type]
