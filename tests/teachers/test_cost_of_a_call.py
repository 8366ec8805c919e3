"""What a teacher that runs beside the student adds to each step."""

from __future__ import annotations

from accelerate import Accelerator
from pytest import MonkeyPatch
from tiny import dataset_for, model_for

from hf_distill.heads import find_head
from hf_distill.teachers.live import LiveTeacher


def test_a_call_does_not_walk_through_the_modules(monkeypatch: MonkeyPatch) -> None:
    model = model_for("text-classification", seed=0, hidden_dropout_prob=0.5)
    head = find_head(model)
    assert head is not None
    teacher = LiveTeacher(model, head)
    batch = dataset_for("text-classification", 2).with_format("torch")[:]
    accelerator = Accelerator(cpu=True)
    first = teacher(batch, accelerator)["logits"]
    monkeypatch.setattr(model, "modules", None)  # a walk would raise
    teacher(batch, accelerator)
    model.bert.encoder.layer[1].train()  # one part is enough to make its answers random
    assert teacher(batch, accelerator)["logits"].equal(first)
