"""Weight 0 is Trainer: whatever model and data it takes, with what it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import arguments, logged
from tiny import VOCABULARY, dataset_for, model_for
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, default_data_collator
from zoo import zoo_dataset, zoo_model

from hf_distill import DistillationTrainer

TASK = "text-classification"
ROWS = 24


class Bag(nn.Module):
    """The mean of embeddings, and a linear layer."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.classifier = nn.Linear(8, classes)

    def logits(self, ids: Tensor) -> Tensor:
        return self.classifier(self.embedding(ids).mean(1))

    def loss(self, ids: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        logits = self.logits(ids)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class PlainForSequenceClassification(Bag):
    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        return self.loss(input_ids, labels)


class OtherLabelForSequenceClassification(Bag):
    def forward(self, input_ids: Tensor, target: Tensor | None = None) -> Any:
        return self.loss(input_ids, target)


class OtherInputForSequenceClassification(Bag):
    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Any:
        return self.loss(tokens, labels)


class OtherInputForQuestionAnswering(Bag):
    def forward(self, tokens: Tensor, start_positions: Tensor, end_positions: Tensor) -> Any:
        start, end = (self.loss(tokens, p % 3) for p in (start_positions, end_positions))
        return (start["loss"] + end["loss"]), start["logits"], end["logits"]


class TakesAllForSequenceClassification(Bag):
    """Takes Trainer's number of items, so that Trainer does not average over micro-batches."""

    def forward(self, input_ids: Tensor, target: Tensor | None = None, **kwargs: Any) -> Any:
        found = self.loss(input_ids, target)
        return (found["loss"], found["logits"]) if target is not None else (found["logits"],)


class NumbersForSequenceClassification(Bag):
    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.logits(input_ids)
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}


class OwnLossForMaskedLM(Bag):
    """Needs no labels: it hides tokens from itself."""

    def forward(self, input_ids: Tensor, return_loss: bool = True) -> Any:
        return self.loss(input_ids, input_ids[:, 0] % 3)


def data(**renamed: str) -> Dataset:
    return dataset_for(TASK, ROWS).rename_columns(renamed).remove_columns("token_type_ids")


def with_column(dataset: Dataset, name: str, values: list[Any]) -> Dataset:
    return dataset.add_column(name, values)


def unlabelled() -> Dataset:
    return data().remove_columns(["labels", "attention_mask"])


ODD: dict[str, tuple[Callable[[], nn.Module], Callable[[], Dataset], dict[str, Any]]] = {
    "no configuration": (PlainForSequenceClassification, data, {}),
    "another label": (
        OtherLabelForSequenceClassification,
        lambda: data(labels="target"),
        {"label_names": ["target"]},
    ),
    "another label and keywords": (
        TakesAllForSequenceClassification,
        lambda: data(labels="target"),
        {"label_names": ["target"]},
    ),
    "another input": (OtherInputForSequenceClassification, lambda: data(input_ids="tokens"), {}),
    "another input of questions": (
        OtherInputForQuestionAnswering,
        lambda: dataset_for("question-answering", ROWS).rename_column("input_ids", "tokens"),
        {"label_names": ["start_positions", "end_positions"]},
    ),
    "several numbers": (
        NumbersForSequenceClassification,
        lambda: with_column(unlabelled(), "labels", torch.rand(ROWS, 3).tolist()),
        {},
    ),
    "no labels": (OwnLossForMaskedLM, unlabelled, {}),
    "a stale column": (
        lambda: model_for(TASK, seed=0, layers=1),
        lambda: with_column(data(), "label", [7] * ROWS),
        {},
    ),
    "no label names": (lambda: model_for(TASK, seed=0, layers=1), data, {"label_names": []}),
    "one more label name": (
        lambda: model_for(TASK, seed=0, layers=1),
        lambda: with_column(data(), "labels_2", [0] * ROWS),
        {"label_names": ["labels", "labels_2"]},
    ),
}
"""Models by the names of transformers, with what transformers' own do not have."""


def plain_and_ours(
    path: Path, model: Callable[[], nn.Module], dataset: Any, **options: Any
) -> list[Trainer]:
    trainers = []
    for trainer_class in (Trainer, DistillationTrainer):
        trainer = trainer_class(
            model(),
            arguments(path / "run", distillation_loss_weight=0.0, **options),
            train_dataset=dataset,
            eval_dataset=dataset,
        )
        trainer.train()
        trainer.evaluate()
        trainers.append(trainer)
    return trainers


def assert_same_run(plain: Trainer, ours: Trainer) -> None:
    """Every number that Trainer has is the same, bit for bit, but for the times."""
    assert len(plain.state.log_history) == len(ours.state.log_history)
    for theirs, own in zip(plain.state.log_history, ours.state.log_history, strict=True):
        for name, value in theirs.items():
            if not name.endswith(("_runtime", "_per_second")):
                assert own[name] == value, name
    weights = ours.model.state_dict()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(weights[name], value), name


# Trainer's error with accumulation is corrected for models of transformers.
@pytest.mark.parametrize(
    ("name", "accumulation"),
    [(n, a) for n, (m, *_) in ODD.items() for a in (1, 3) if a == 1 or isinstance(m, type)],
)
def test_odd_models_and_data(name: str, accumulation: int, tmp_path: Path) -> None:
    model, dataset, options = ODD[name]
    options = {**options, "gradient_accumulation_steps": accumulation}
    assert_same_run(*plain_and_ours(tmp_path, model, dataset(), max_steps=2, **options))


ABOVE_0 = {
    "another label": r"label_names=\['target'\].*mean over labels, and the batches have no labels",
    "another label and keywords": r"batches have no labels. Name the column and the argument",
    "another input": r"no input of the teacher \(input_ids, inputs_embeds\), only:.*tokens.*Name",
    "another input of questions": r"no input of the teacher \(input_ids, inputs_embeds\)",
}


@pytest.mark.parametrize("name", ABOVE_0)
def test_above_0_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    make, dataset, options = ODD[name]
    model: Any = make()
    task = "question-answering" if "questions" in name else TASK
    teacher = model_for(task, seed=1)
    model.config = teacher.config
    trainer = DistillationTrainer(
        model, arguments(tmp_path, **options), teacher_model=teacher, train_dataset=dataset()
    )
    with pytest.raises(ValueError, match=f"(?s){ABOVE_0[name]}"):
        trainer.train()
    assert trainer.state.global_step == 0


def too_many(rows: Dataset) -> float:
    """What Trainer makes of the mean where it counts the first token, which nothing predicts."""
    labels = torch.tensor(rows["labels"][:])
    return float((labels[:, 1:] != -100).sum() / (labels != -100).sum())


CORRECTED: dict[tuple[str, str, int], Callable[[Dataset], float]] = {
    (TASK, "bert", 4): lambda rows: 4.0,
    ("multiple-choice", "bert", 4): lambda rows: 4.0,
    ("text-generation", "gpt2", 1): too_many,
    ("text-generation", "gpt2", 4): too_many,
    ("text-generation", "llama", 1): lambda rows: 1.0,
    ("text-generation", "llama", 4): lambda rows: 1.0,
    ("question-answering", "bert", 4): lambda rows: 1.0,
    ("token-classification", "bert", 1): lambda rows: 1.0,
    ("summarization", "t5", 1): lambda rows: 1.0,
}
"""How many times the mean over the step is Trainer's loss, as the README says."""


@pytest.mark.parametrize("case", CORRECTED)
def test_what_is_corrected_and_what_is_trainers(case: Any, tmp_path: Path) -> None:
    task, architecture, accumulation = case
    rows, losses = zoo_dataset(task, 8), {}
    for trainer_class in (Trainer, DistillationTrainer):
        for size, steps in {(8, 1), (8 // accumulation, accumulation)}:
            trainer = trainer_class(
                zoo_model(task, architecture, seed=0),
                arguments(
                    tmp_path,
                    distillation_loss_weight=0.0,
                    max_steps=1,
                    per_device_train_batch_size=size,
                    gradient_accumulation_steps=steps,
                ),
                train_dataset=rows,
                data_collator=default_data_collator,
            )
            trainer.train()
            losses[trainer_class, steps] = logged(trainer, "loss")[0]
    ours = losses[DistillationTrainer, accumulation]
    assert ours == pytest.approx(losses[DistillationTrainer, 1], rel=1e-6)
    factor = CORRECTED[case](rows)
    assert losses[Trainer, accumulation] == pytest.approx(factor * ours, rel=1e-6)
    if factor == accumulation == 1:
        assert losses[Trainer, 1] == ours


@pytest.mark.parametrize("sets", [lambda empty: empty, lambda empty: {"a": data(), "b": empty}])
def test_an_empty_evaluation_set(sets: Callable[..., Any], tmp_path: Path) -> None:
    found = []
    for trainer_class in (Trainer, DistillationTrainer):
        trainer = trainer_class(
            model_for(TASK, seed=0, layers=1),
            arguments(tmp_path, distillation_loss_weight=0.0),
            eval_dataset=sets(data().select([])),
        )
        metrics = trainer.evaluate()
        found.append({k for k in metrics if not k.endswith("loss_task")})
    assert found[0] == found[1]


class NoDataset:
    """Several loaders as one, which have no ``dataset``."""

    def __init__(self, loaders: list[DataLoader]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Any:
        for loader in self.loaders:
            yield from loader


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_loaders_without_a_data_set(weight: float, tmp_path: Path) -> None:
    found = {}
    for base in (Trainer, DistillationTrainer):

        class Several(base):  # type: ignore[misc,valid-type]
            def get_train_dataloader(self) -> Any:
                return NoDataset([super().get_train_dataloader()] * 2)

            def get_eval_dataloader(self, *args: Any) -> Any:
                return NoDataset([super().get_eval_dataloader(*args)] * 2)

        extra = {"teacher_model": model_for(TASK, seed=1)} if base is not Trainer and weight else {}
        trainer = Several(
            model_for(TASK, seed=0, layers=1),
            arguments(tmp_path, distillation_loss_weight=weight, max_steps=-1, num_train_epochs=1),
            train_dataset=dataset_for(TASK, 8),
            eval_dataset=dataset_for(TASK, 8),
            **extra,
        )
        before = trainer.evaluate()
        trainer.train()
        assert trainer.state.global_step == 4
        found[base] = before["eval_loss"], trainer.evaluate()["eval_loss"]
    assert found[DistillationTrainer][0] == found[Trainer][0]
    assert (found[DistillationTrainer][1] == found[Trainer][1]) == (weight == 0)


def test_a_loader_of_ones_own(tmp_path: Path) -> None:
    weights = []
    for base in (Trainer, DistillationTrainer):

        class Own(base):  # type: ignore[misc,valid-type]
            def get_train_dataloader(self) -> DataLoader:
                rows = list(dataset_for(TASK, 8))
                return DataLoader(rows, batch_size=4, collate_fn=self.data_collator)

        options = {} if base is Trainer else {"distillation_loss_weight": 0.0}
        settings = arguments(tmp_path, max_steps=2, **options)
        trainer = Own(model_for(TASK, seed=0, layers=1), settings, train_dataset=dataset_for(TASK))
        trainer.train()
        weights.append([*trainer.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
