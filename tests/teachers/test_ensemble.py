"""Several teachers: their average by its definition, in every place where a teacher may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from references import log_softmax, logits_of, rows_that_count
from runs import distil, logged
from transformers import default_data_collator
from zoo import PAIRS, zoo_dataset, zoo_model

from hf_distill import cache_teacher_outputs
from hf_distill.heads import find_head
from hf_distill.teachers import EnsembleTeacher, LiveTeacher

ONE_OF_EACH = list(dict(PAIRS).items())
WEIGHTS = [3.0, 1.0]


def train(
    task: str, architecture: str, path: Path, teacher: Any, data: Any = None, **o: Any
) -> Any:
    trainer, _ = distil(
        task,
        path,
        student=o.pop("student", None) or zoo_model(task, architecture, seed=0),
        teacher=teacher,
        train_dataset=zoo_dataset(task) if data is None else data,
        trainer_options={"data_collator": default_data_collator},
        **{
            "max_steps": 1,
            "per_device_train_batch_size": 16,
            "train_sampling_strategy": "sequential",
            "learning_rate": 0.0,
            "temperature": 2.0,
            **o,
        },
    )
    return trainer


def teachers(task: str, architecture: str) -> list[Any]:
    return [zoo_model(task, architecture, seed=seed, layers=2) for seed in (1, 2)]


def rows_of(task: str, model: Any, batch: dict[str, Any]) -> list[np.ndarray]:
    """The logits of every compared row."""
    if task != "question-answering":
        logits = logits_of(model, batch)
        return [logits[place] for place, _ in rows_that_count(task, batch)]
    with torch.no_grad():
        outputs = model.eval()(**{k: v for k, v in batch.items() if "positions" not in k})
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        logits[i, : lengths[i]].double().numpy()
        for i in range(len(lengths))
        for logits in (outputs.start_logits, outputs.end_logits)
    ]


def expected_loss(
    task: str, student: Any, found: list[Any], batch: dict[str, Any], combination: str
) -> float:
    """T^2 KL(mean of the teachers || student) at T = 2, row by row in float64."""
    shares = np.array(WEIGHTS) / sum(WEIGHTS)
    losses = []
    for ours, *theirs in zip(*(rows_of(task, m, batch) for m in (student, *found)), strict=True):
        if combination == "logits":
            mean = sum(share * z for share, z in zip(shares, theirs, strict=True))
        else:
            mean = np.log(
                sum(share * np.exp(log_softmax(z)) for share, z in zip(shares, theirs, strict=True))
            )
        p, q = (log_softmax(z / 2.0) for z in (mean, ours))
        losses.append(4.0 * float((np.exp(p) * (p - q)).sum()))
    return float(np.mean(losses))


@pytest.mark.parametrize("combination", ["probabilities", "logits"])
@pytest.mark.parametrize(("task", "architecture"), ONE_OF_EACH)
def test_the_student_learns_from_their_average(
    task: str, architecture: str, combination: str, tmp_path: Path
) -> None:
    student, found = zoo_model(task, architecture, seed=0), teachers(task, architecture)
    batch = default_data_collator(list(zoo_dataset(task)))
    expected = expected_loss(task, student, found, batch, combination)
    options: Any = {"teacher_weights": WEIGHTS, "teacher_combination": combination}
    live = train(task, architecture, tmp_path, found, student=student, **options)
    assert logged(live, "loss_prediction") == [pytest.approx(expected, rel=1e-4)]
    stored = cache_teacher_outputs(
        found,
        zoo_dataset(task),
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        dtype="float32",
        use_cpu=True,
        **options,
    )
    cached = train(task, architecture, tmp_path, None, stored, student=student)
    assert logged(cached, "loss_prediction") == [pytest.approx(expected, rel=1e-4)]


def test_each_teacher_has_an_order_of_labels_of_its_own(tmp_path: Path) -> None:
    task, architecture = "text-classification", "bert"
    found = teachers(task, architecture)
    expected = train(task, architecture, tmp_path, found)
    for teacher, order in zip(found, ([2, 0, 1], [1, 2, 0]), strict=True):
        names = [teacher.config.id2label[i] for i in order]
        teacher.config.id2label = dict(enumerate(names))
        teacher.config.label2id = {name: i for i, name in enumerate(names)}
        with torch.no_grad():
            teacher.classifier.weight.copy_(teacher.classifier.weight[order])
            teacher.classifier.bias.copy_(teacher.classifier.bias[order])
    live = train(task, architecture, tmp_path, found)
    data = zoo_dataset(task)
    stored = cache_teacher_outputs(found, data, output_dir=tmp_path / "c", dtype="float32")
    cached = train(task, architecture, tmp_path, None, stored)
    for trainer in (live, cached):
        assert logged(trainer, "loss") == pytest.approx(logged(expected, "loss"), rel=1e-5)


def test_several_labels_average_the_odds_of_each(tmp_path: Path) -> None:
    found = [
        zoo_model(
            "text-classification", "bert", seed=seed, problem_type="multi_label_classification"
        )
        for seed in (1, 2)
    ]
    heads = [find_head(model) for model in found]
    batch = default_data_collator(list(zoo_dataset("text-classification")))
    del batch["labels"]
    live = [LiveTeacher(model, head) for model, head in zip(found, heads, strict=True)]
    ensemble = EnsembleTeacher(live, heads, WEIGHTS, "probabilities")
    with torch.no_grad():
        chances = [model.eval()(**batch).logits.double().sigmoid() for model in found]
    mean = 0.75 * chances[0] + 0.25 * chances[1]
    logits = ensemble(batch, Accelerator(cpu=True))["logits"]
    assert torch.allclose(logits.double().sigmoid(), mean, atol=1e-6)


def test_one_teacher_alone_is_itself_and_one_without_weight_does_not_count(tmp_path: Path) -> None:
    task, architecture = "question-answering", "bert"
    first, second = teachers(task, architecture)
    with torch.no_grad():
        second.qa_outputs.bias.fill_(-torch.inf)  # 0 * -inf is NaN
    alone = logged(train(task, architecture, tmp_path, first), "loss")
    assert logged(train(task, architecture, tmp_path, [first]), "loss") == alone
    for combination in ("probabilities", "logits"):
        both = train(
            task,
            architecture,
            tmp_path,
            [first, second],
            teacher_weights=[2.0, 0.0],
            teacher_combination=combination,
        )
        assert logged(both, "loss") == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weights": [1.0]}, r"teacher_weights=\[1.0\] has 1 weights for 2 teachers"),
        ({"teacher_weights": [1.0, -1.0]}, "must be 0 or more each"),
        ({"teacher_weights": [0.0, 0.0]}, "not all 0"),
        ({"teacher_weights": [float("nan"), 1.0]}, "must be 0 or more each"),
        ({"stage": "intermediate"}, "2 teachers, and the intermediate layers"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    task, architecture = "text-classification", "bert"
    with pytest.raises(ValueError, match=message):
        train(task, architecture, tmp_path, teachers(task, architecture), **options)


def test_weights_without_several_teachers_are_refused(tmp_path: Path) -> None:
    task, architecture = "text-classification", "bert"
    teacher = zoo_model(task, architecture, seed=1)
    with pytest.raises(ValueError, match="teacher_weights=.* for 1 teacher"):
        train(task, architecture, tmp_path, teacher, teacher_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="empty list"):
        train(task, architecture, tmp_path, [])
    with pytest.raises(ValueError, match="teacher_combination must be one of .*'median'"):
        train(task, architecture, tmp_path, teacher, teacher_combination="median")
    numbers = [zoo_model(task, architecture, seed=s, problem_type="regression") for s in range(3)]
    data = Dataset.from_dict(
        {**zoo_dataset(task).remove_columns("labels")[:], "labels": [[0.5, 0.1, 2.0]] * 16}
    )
    options: Any = {"student": numbers[0], "distillation_loss": "mse"}
    with pytest.raises(ValueError, match="regression model has none"):
        train(task, architecture, tmp_path, numbers[1:], data, **options)
    live = train(
        task, architecture, tmp_path, numbers[1:], data, **options, teacher_combination="logits"
    )
    batch = default_data_collator(list(data))
    ours, *theirs = (torch.from_numpy(logits_of(model, batch)) for model in numbers)
    expected = (ours - (theirs[0] + theirs[1]) / 2).square().mean()
    assert logged(live, "loss_prediction") == [pytest.approx(float(expected), rel=1e-5)]
