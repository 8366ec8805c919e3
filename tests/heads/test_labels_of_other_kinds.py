"""Several labels of texts, images and sounds; labels that are not used are not looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import distil, logged
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    Trainer,
    TrainerCallback,
    default_data_collator,
)
from zoo import zoo_dataset, zoo_model

from hf_distill import cache_teacher_outputs

SEVERAL = "multi_label_classification"
KINDS = ("text-classification", "image-classification", "audio-classification")
ROWS = 8


def model_for(task: str, seed: int, **options: Any) -> Any:
    if task != "audio-classification":
        architecture = "bert" if task == "text-classification" else "vit"
        return zoo_model(task, architecture, seed=seed, **options)
    torch.manual_seed(seed)
    return ASTForAudioClassification(
        ASTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            num_mel_bins=8, max_length=12, patch_size=4, frequency_stride=4, time_stride=4,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.5,
            num_labels=3, **options,
        )
    )  # fmt: skip


def several(task: str) -> Dataset:
    """Rows with 0/1 vectors as floating-point numbers, as BCE wants them."""
    random = torch.Generator().manual_seed(0)
    columns = zoo_dataset(task, ROWS).to_dict()
    if task == "audio-classification":
        columns = {"input_values": torch.randn(ROWS, 12, 8, generator=random).tolist()}
    labels = torch.randint(0, 2, (ROWS, 3), generator=random).float().tolist()
    return Dataset.from_dict({**columns, "labels": labels})


def run(task: str, path: Path, data: Any, **options: Any) -> Any:
    callbacks = options.pop("callbacks", [])
    trainer, _ = distil(
        task,
        path,
        train_dataset=data,
        trainer_options={"data_collator": default_data_collator, "callbacks": callbacks},
        teacher_check_samples=0,
        **options,
    )
    return trainer


def plain(task: str, path: Path, data: Any, **options: Any) -> Any:
    return distil(
        task,
        path,
        train_dataset=data,
        trainer_class=Trainer,
        trainer_options={"data_collator": default_data_collator},
        **options,
    )[0]


def weights(trainer: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("problem_type", [SEVERAL, None])
@pytest.mark.parametrize("task", KINDS)
def test_without_distillation_several_labels_are_what_they_are_for_trainer(
    task: str, problem_type: str | None, tmp_path: Path
) -> None:
    """transformers knows them by their type where the configuration does not say it."""
    data = several(task)
    trainers = [
        train(task, tmp_path, data, student=model_for(task, 0, problem_type=problem_type), **more)
        for train, more in (
            (plain, {}),
            (run, {"distillation_loss_weight": 0.0}),
        )
    ]
    assert logged(trainers[0], "loss") == logged(trainers[1], "loss")
    assert torch.equal(*map(weights, trainers))
    evaluations = [trainer.evaluate(data)["eval_loss"] for trainer in trainers]
    assert evaluations[0] == evaluations[1]
    steps = [
        run(task, tmp_path, data, student=model_for(task, 0, problem_type=problem_type),
            distillation_loss_weight=0.0, train_sampling_strategy="sequential", max_steps=1,
            max_grad_norm=0.0, per_device_train_batch_size=size,
            gradient_accumulation_steps=ROWS // size)
        for size in (ROWS, 2)
    ]  # fmt: skip
    assert logged(steps[1], "loss") == pytest.approx(logged(steps[0], "loss"), rel=1e-5)


@pytest.mark.parametrize("task", KINDS)
def test_several_labels_are_compared_as_yes_or_no(task: str, tmp_path: Path) -> None:
    data, t = several(task), 3.0
    student, teacher = (model_for(task, seed, problem_type=SEVERAL) for seed in (0, 1))
    batch = default_data_collator(list(data))
    gold = batch.pop("labels").double()
    with torch.no_grad():
        z_s, z_t = (model.eval()(**batch).logits.double() for model in (student, teacher))
    p, q = torch.sigmoid(z_t / t), torch.sigmoid(z_s / t)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    trainer = run(
        task, tmp_path, data, student=student, teacher=teacher, temperature=t, max_steps=1,
        per_device_train_batch_size=ROWS,
    )  # fmt: skip
    assert logged(trainer, "loss_prediction") == [pytest.approx(float(t**2 * kl.mean()), rel=1e-5)]
    bce = F.binary_cross_entropy_with_logits(z_s, gold)
    assert logged(trainer, "loss_task") == [pytest.approx(float(bce), rel=1e-5)]


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_with_distillation_the_problem_type_is_not_left_to_the_labels(
    weight: float, tmp_path: Path
) -> None:
    """The model would change it in its first forward pass, between the losses of two steps."""
    task = "text-classification"
    with pytest.raises(ValueError, match="labels are floating-point.*'multi_label_classification'"):
        run(
            task, tmp_path, several(task), student=model_for(task, 0), teacher=model_for(task, 1),
            distillation_loss_weight=weight,
        )  # fmt: skip


# ---- labels that are not used ------------------------------------------------------------------

UNUSED = ("text-classification", "token-classification")


def wrong(data: Dataset, label: int = -1) -> Dataset:
    labels = torch.tensor(data["labels"])
    labels = torch.full_like(labels, label) if labels.dim() == 1 else labels.masked_fill(
        labels != -100, label
    )  # fmt: skip
    return Dataset.from_dict({**data.to_dict(), "labels": labels.tolist()})


@pytest.mark.parametrize("label", [-1, 7])
@pytest.mark.parametrize("task", UNUSED)
def test_at_weight_1_labels_that_are_no_classes_change_nothing(
    task: str, label: int, tmp_path: Path
) -> None:
    """GLUE's test sets have -1 for every row."""
    models = [[zoo_model(task, "bert", seed=seed) for seed in (0, 1)] for _ in range(2)]
    good = zoo_dataset(task)
    trainers = [
        run(task, tmp_path, data, student=student, teacher=teacher, distillation_loss_weight=1.0)
        for data, (student, teacher) in zip((good, wrong(good, label)), models, strict=True)
    ]
    assert torch.equal(*map(weights, trainers))
    losses = [logged(trainer, "loss_prediction") for trainer in trainers]
    assert losses[0] == losses[1]
    assert [len(logged(trainer, "loss_task")) for trainer in trainers] == [3, 0]


@pytest.mark.parametrize("task", UNUSED)
def test_in_the_intermediate_stage_labels_are_not_looked_at(task: str, tmp_path: Path) -> None:
    good = zoo_dataset(task)
    losses = []
    for data in (good, wrong(good, 7)):
        models = {"student": zoo_model(task, "bert", seed=0)}
        models["teacher"] = zoo_model(task, "bert", seed=1, layers=2)
        trainer = run(task, tmp_path, data, stage="intermediate", **models)
        losses.append(logged(trainer, "loss_hidden_states"))
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_in_the_intermediate_stage_their_kind_is_not_either(tmp_path: Path) -> None:
    task = "text-classification"
    trainer = run(
        task, tmp_path, several(task), stage="intermediate", student=model_for(task, 0),
        teacher=model_for(task, 1, problem_type=SEVERAL),
    )  # fmt: skip
    assert len(logged(trainer, "loss_hidden_states")) == 3


def test_labels_that_a_callback_makes_use_of_are_looked_at_then(tmp_path: Path) -> None:
    class Lower(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.distillation_loss_weight = 0.5

    task = "text-classification"
    with pytest.raises(ValueError, match="has the label -1, but the student has 3 labels"):
        run(
            task, tmp_path, wrong(zoo_dataset(task)), student=zoo_model(task, "bert", seed=0),
            teacher=zoo_model(task, "bert", seed=1), distillation_loss_weight=1.0,
            callbacks=[Lower()],
        )  # fmt: skip


def test_a_teacher_is_not_judged_by_labels_that_are_none(tmp_path: Path) -> None:
    """Cached outputs are tried on the training data: all of its rows would count as mistakes."""
    task = "text-classification"
    data = cache_teacher_outputs(
        zoo_model(task, "bert", seed=1),
        wrong(zoo_dataset(task, 64)),
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        use_cpu=True,
    )
    trainer, _ = distil(
        task,
        tmp_path,
        student=zoo_model(task, "bert", seed=0),
        teacher=None,
        train_dataset=data,
        trainer_options={"data_collator": default_data_collator},
        distillation_loss_weight=1.0,
    )
    assert len(logged(trainer, "loss_prediction")) == 3


def test_at_weight_0_labels_are_the_affair_of_the_label_loss(tmp_path: Path) -> None:
    """One that leaves out -1 works with Trainer, too."""
    task = "text-classification"
    data = zoo_dataset(task)
    data = Dataset.from_dict({**data.to_dict(), "labels": [-1, *data["labels"][1:]]})

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs.logits, labels, ignore_index=-1)

    trainer, _ = distil(
        task,
        tmp_path,
        student=zoo_model(task, "bert", seed=0),
        train_dataset=data,
        trainer_options={"data_collator": default_data_collator, "compute_loss_func": loss},
        distillation_loss_weight=0.0,
    )
    assert len(logged(trainer, "loss")) == 3


@pytest.mark.parametrize(
    ("problem_type", "labels", "told"),
    [
        (None, [1, 0, 1], r"vectors of whole numbers \(the first is \[1, 0, 1\]\), but the student "
         r"classifies into one of 3 classes.*multi_label.*cast_column"),
        (SEVERAL, [1, 0, 1], r"needs labels that are vectors of 3 .*are torch.int64 of the shape "
         r"\(4, 3\)"),
        (SEVERAL, 2, r"vectors of 3 floating-point.*are torch.int64 of the shape \(4,\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", KINDS)
def test_whole_numbers_as_several_labels_are_named_before_training(
    task: str, problem_type: str | None, labels: Any, told: str, tmp_path: Path
) -> None:
    data = several(task).remove_columns("labels").add_column("labels", [labels] * ROWS)
    teacher = model_for(task, 1, problem_type=problem_type)
    with pytest.raises(ValueError, match=f"(?s){told}"):
        run(task, tmp_path, data, student=model_for(task, 0, problem_type=problem_type),
            teacher=teacher)  # fmt: skip


@pytest.mark.parametrize("targets", ["soft", "whole numbers"])
def test_a_loss_function_takes_what_targets_it_likes(targets: str, tmp_path: Path) -> None:
    """Soft labels, or 0/1 vectors that it converts: they never reach the model's own loss."""
    task, data = "text-classification", several("text-classification")
    gold = torch.tensor(data["labels"][:])
    soft = (gold + 1) / (gold + 1).sum(1, keepdim=True)
    gold = soft if targets == "soft" else gold.long()
    data = data.remove_columns("labels").add_column("labels", gold.tolist())

    def function(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs.logits, labels.float(), reduction="sum") / len(labels)

    trainer, _ = distil(
        task,
        tmp_path,
        student=model_for(task, 0),
        teacher=model_for(task, 1),
        train_dataset=data,
        trainer_options={"compute_loss_func": function, "eval_dataset": data},
        max_steps=1,
        per_device_train_batch_size=ROWS,
    )
    batch = default_data_collator(list(data))
    batch.pop("labels")
    with torch.no_grad():
        logits = model_for(task, 0).eval()(**batch).logits.double()
    expected = -(gold.double() * logits.log_softmax(-1)).sum(1).mean()
    assert logged(trainer, "loss_task") == [pytest.approx(float(expected), rel=1e-5)]
