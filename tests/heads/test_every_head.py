"""Every task with every architecture: the right loss on the right positions, however split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from references import expected_losses, log_softmax, logits_of, rows_that_count
from runs import distil, logged
from transformers import default_data_collator
from zoo import AUTO_MODELS, PAIRS, zoo_dataset, zoo_model

ONE_OF_EACH = list(dict(PAIRS).items())
"""Every task with one architecture."""


def run(task: str, architecture: str, path: Path, **options: Any) -> tuple[Any, Any]:
    """One step of a student with one layer, whose teacher has two."""
    return distil(
        task,
        path,
        student=options.pop("student", None) or zoo_model(task, architecture, seed=0),
        teacher=options.pop("teacher", None) or zoo_model(task, architecture, seed=1, layers=2),
        trainer_options={"data_collator": default_data_collator},
        **{
            "max_steps": 1,
            "max_grad_norm": 0.0,
            "distillation_loss_weight": 0.3,
            "temperature": 2.0,
            "train_sampling_strategy": "sequential",
            "per_device_train_batch_size": 16,
            "learning_rate": 0.0,
            **options,
        },
    )


@pytest.mark.parametrize(("task", "architecture"), PAIRS)
def test_the_loss_is_that_of_the_rows_that_count(
    task: str, architecture: str, tmp_path: Path
) -> None:
    if task == "question-answering":
        pytest.skip("its rows are positions; tests/heads/test_find_head.py has them")
    student = zoo_model(task, architecture, seed=0)
    teacher = zoo_model(task, architecture, seed=1, layers=2)
    data = zoo_dataset(task)
    batch = default_data_collator(list(data))
    label_loss, divergence = expected_losses(task, student, teacher, batch, 2.0)
    trained, _ = run(
        task, architecture, tmp_path, student=student, teacher=teacher, train_dataset=data
    )
    assert logged(trained, "loss_task") == [pytest.approx(label_loss, rel=1e-5)]
    assert logged(trained, "loss_prediction") == [pytest.approx(divergence, rel=1e-5)]
    assert logged(trained, "loss") == [pytest.approx(0.7 * label_loss + 0.3 * divergence, rel=1e-5)]


@pytest.mark.parametrize(("task", "architecture"), PAIRS)
def test_accumulation_changes_neither_loss_nor_gradient(
    task: str, architecture: str, tmp_path: Path
) -> None:
    """Micro-batches have very different numbers of labels, and one has none at all."""
    data = zoo_dataset(task)
    whole, norms_whole = run(task, architecture, tmp_path, train_dataset=data)
    for size in (4, 1):
        split, norms_split = run(
            task,
            architecture,
            tmp_path,
            train_dataset=data,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
        )
        for part in ("loss", "loss_task", "loss_prediction"):
            assert logged(split, part) == pytest.approx(logged(whole, part), rel=1e-5), part
        assert norms_split.norms == pytest.approx(norms_whole.norms, rel=1e-5)


@pytest.mark.parametrize(("task", "architecture"), ONE_OF_EACH)
def test_without_labels_all_but_padding_counts(
    task: str, architecture: str, tmp_path: Path
) -> None:
    student = zoo_model(task, architecture, seed=0)
    teacher = zoo_model(task, architecture, seed=1, layers=2)
    data = zoo_dataset(task, labels=False, target=True)
    if task != "question-answering":
        batch = default_data_collator(list(data))
        _, divergence = expected_losses(task, student, teacher, batch, 2.0)
    trained, _ = run(
        task,
        architecture,
        tmp_path,
        student=student,
        teacher=teacher,
        train_dataset=data,
        distillation_loss_weight=1.0,
    )
    assert logged(trained, "loss_task") == []
    if task != "question-answering":
        assert logged(trained, "loss_prediction") == [pytest.approx(divergence, rel=1e-5)]


@pytest.mark.parametrize(("task", "architecture"), ONE_OF_EACH)
def test_an_evaluation_has_the_losses_and_a_plain_student_is_saved(
    task: str, architecture: str, tmp_path: Path
) -> None:
    data = zoo_dataset(task)
    trained, _ = run(
        task, architecture, tmp_path, train_dataset=data, per_device_eval_batch_size=16
    )
    metrics = trained.evaluate(data)
    assert metrics["eval_loss"] == pytest.approx(logged(trained, "loss_task")[0], rel=1e-5)
    assert metrics["eval_loss_task"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    assert metrics["eval_loss_prediction"] == pytest.approx(
        logged(trained, "loss_prediction")[0], rel=1e-5
    )
    trained.save_model(str(tmp_path / "student"))
    auto_model = getattr(transformers, AUTO_MODELS[task])
    loaded, info = auto_model.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    weights = trained.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(("task", "architecture"), ONE_OF_EACH)
def test_weight_0_is_a_plain_trainer_run_bit_for_bit(
    task: str, architecture: str, tmp_path: Path
) -> None:
    losses = []
    for trainer_class in (transformers.Trainer, None):
        options: dict[str, Any] = {"trainer_class": trainer_class} if trainer_class else {}
        trained, norms = run(
            task,
            architecture,
            tmp_path,
            train_dataset=zoo_dataset(task),
            distillation_loss_weight=0.0,
            learning_rate=0.1,
            max_steps=3,
            per_device_train_batch_size=4,
            **options,
        )
        losses.append((logged(trained, "loss"), norms.norms))
    assert losses[0] == losses[1]


def test_a_step_without_any_label_does_nothing(tmp_path: Path) -> None:
    """NaN, were the mean over no tokens taken literally."""
    data = zoo_dataset("token-classification", 4)
    data = Dataset.from_dict({**data.to_dict(), "labels": [[-100] * 12] * 4})
    trained, norms = run(
        "token-classification", "bert", tmp_path, train_dataset=data, per_device_train_batch_size=4
    )
    assert logged(trained, "loss") == [0.0]
    assert norms.norms == [0.0]


@pytest.mark.parametrize("smaller", ["student", "teacher"])
@pytest.mark.parametrize(
    ("task", "architecture"), [("fill-mask", "bert"), ("text-generation", "gpt2")]
)
def test_of_vocabularies_of_two_sizes_the_shared_range_is_compared(
    task: str, architecture: str, smaller: str, tmp_path: Path
) -> None:
    sizes = {"student": 128, "teacher": 128, smaller: 97}
    student = zoo_model(task, architecture, seed=0, vocab_size=sizes["student"])
    teacher = zoo_model(task, architecture, seed=1, vocab_size=sizes["teacher"])
    data = zoo_dataset(task)
    batch = default_data_collator(list(data))
    places = [place for place, _ in rows_that_count(task, batch)]
    divergences = []
    z_s, z_t = (logits_of(model, batch)[..., :97] for model in (student, teacher))
    for place in places:
        p, q = log_softmax(z_t[place] / 2.0), log_softmax(z_s[place] / 2.0)
        divergences.append(4.0 * float((np.exp(p) * (p - q)).sum()))
    trained, _ = run(
        task, architecture, tmp_path, student=student, teacher=teacher, train_dataset=data
    )
    assert logged(trained, "loss_prediction") == [
        pytest.approx(float(np.mean(divergences)), rel=1e-5)
    ]


def test_a_collator_may_make_the_labels(tmp_path: Path) -> None:
    """Masks are drawn batch by batch; the data has no labels."""
    data = zoo_dataset("fill-mask", labels=False)

    def collator(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = default_data_collator(rows)
        return {**batch, "labels": batch["input_ids"].clone()}

    trained, _ = distil(
        "fill-mask",
        tmp_path,
        student=zoo_model("fill-mask", "bert", seed=0),
        teacher=zoo_model("fill-mask", "bert", seed=1),
        train_dataset=data,
        trainer_options={"data_collator": collator},
    )
    assert len(logged(trained, "loss_task")) == 3
