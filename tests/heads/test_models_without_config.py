"""Models of one's own, without a configuration, teach and learn by the name of their class."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from references import expected_losses
from runs import distil, logged
from torch import Tensor, nn
from transformers import Trainer, default_data_collator
from transformers.modeling_outputs import SequenceClassifierOutput
from zoo import VOCABULARY, zoo_dataset, zoo_model

from hf_distill import cache_teacher_outputs, check_pair

NAMES = {
    "text-classification": ("ForSequenceClassification", "bert", 3),
    "token-classification": ("ForTokenClassification", "bert", 3),
    "image-classification": ("ForImageClassification", "vit", 3),
    "fill-mask": ("ForMaskedLM", "bert", VOCABULARY),
    "text-generation": ("ForCausalLM", "gpt2", VOCABULARY),
}


class Bag(nn.Module):
    """Embeddings and a linear layer; or a linear layer on pixels."""

    def __init__(self, task: str, classes: int) -> None:
        super().__init__()
        self.whole, self.next = "-classification" in task and "token" not in task, "gen" in task
        self.embeddings = nn.Embedding(VOCABULARY, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, classes)

    def answer(self, states: Tensor, labels: Tensor | None) -> SequenceClassifierOutput:
        states = self.body(states)
        logits = self.head(states.mean(1) if self.whole else states)
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        told = (logits[:, :-1], labels[:, 1:]) if self.next else (logits, labels)
        loss = nn.functional.cross_entropy(told[0].flatten(0, -2), told[1].flatten())
        return SequenceClassifierOutput(loss=loss, logits=logits)


class BagOfTokens(Bag):
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        return self.answer(self.embeddings(input_ids) * attention_mask[..., None], labels)


class BagOfPixels(Bag):
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        return self.answer(pixel_values.flatten(1, 2), labels)


def bag(task: str, seed: int) -> Any:
    ending, _, classes = NAMES[task]
    torch.manual_seed(seed)
    base = BagOfPixels if task == "image-classification" else BagOfTokens
    return type(f"Bag{ending}", (base,), {})(task, classes)


def models(task: str, who: str) -> tuple[Any, Any]:
    _, architecture, _ = NAMES[task]
    student = bag(task, 0) if who != "teacher" else zoo_model(task, architecture, seed=0)
    teacher = bag(task, 1) if who != "student" else zoo_model(task, architecture, seed=1)
    return student, teacher


def train(task: str, path: Path, student: Any, teacher: Any, data: Any, **options: Any) -> Any:
    trainer, _ = distil(
        task,
        path,
        student=copy.deepcopy(student),
        teacher=teacher,
        train_dataset=data,
        trainer_options={"data_collator": default_data_collator},
        **{"per_device_train_batch_size": 16, "max_steps": 2, "temperature": 2.0, **options},
    )
    return trainer


@pytest.mark.parametrize("who", ["student", "teacher", "both"])
@pytest.mark.parametrize("task", NAMES)
def test_they_are_distilled_like_others(task: str, who: str, tmp_path: Path) -> None:
    student, teacher = models(task, who)
    data = zoo_dataset(task)
    batch = default_data_collator(list(data))
    task_loss, divergence = expected_losses(task, student, teacher, batch, 2.0)
    live = train(task, tmp_path, student, teacher, data, save_strategy="steps", save_steps=2)
    assert logged(live, "loss_prediction")[0] == pytest.approx(divergence, rel=1e-4)
    assert logged(live, "loss_task")[0] == pytest.approx(task_loss, rel=1e-4)
    stored = cache_teacher_outputs(
        teacher,
        data,
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        dtype="float32",
        use_cpu=True,
    )
    from_cache = train(task, tmp_path, student, None, stored)
    assert logged(from_cache, "loss") == pytest.approx(logged(live, "loss"), rel=1e-4)
    assert from_cache.evaluate(stored)["eval_loss_prediction"] == pytest.approx(
        live.evaluate(data)["eval_loss_prediction"], rel=1e-4
    )
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    report = check_pair(teacher, student)
    assert report.ok
    assert ("configuration that names its labels" in str(report)) == ("class" in task)


@pytest.mark.parametrize("task", NAMES)
def test_with_weight_0_they_are_trained_as_by_trainer(task: str, tmp_path: Path) -> None:
    data = zoo_dataset(task)
    plain = train(task, tmp_path, bag(task, 0), None, data, trainer_class=Trainer)
    ours = train(task, tmp_path, bag(task, 0), None, data, distillation_loss_weight=0.0)
    assert logged(ours, "loss") == logged(plain, "loss")
    weights = plain.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in ours.model.state_dict().items())


def test_the_teachers_configuration_says_what_a_class_is(tmp_path: Path) -> None:
    """Several labels an input: one yes/no distribution each, summed up as the teacher has them."""
    task = "text-classification"
    student = bag(task, 0)
    teacher = zoo_model(task, "bert", seed=1, problem_type="multi_label_classification")
    data = zoo_dataset(task, labels=False)
    batch = default_data_collator(list(data))
    trainer = train(task, tmp_path, student, teacher, data, distillation_loss_weight=1.0)
    with torch.no_grad():
        ours, theirs = (m.eval()(**batch).logits.double() / 2 for m in (student, teacher))
    p, q = theirs.sigmoid(), ours.sigmoid()
    both = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert logged(trainer, "loss")[0] == pytest.approx(4 * float(both.mean()), rel=1e-4)
