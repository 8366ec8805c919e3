"""Calibration and divergence against other implementations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import bert_config, model_for
from torch import nn
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_distill.heads import find_head
from hf_distill.tasks.calibration import BINS, Calibration
from hf_distill.tasks.fidelity import OutputRecorder

SURE = st.floats(0, 1)


def expected_error(pairs: Iterable[tuple[float, bool]]) -> float:
    """ECE as it is defined, bin by bin."""
    pairs = list(pairs)
    total = 0.0
    for i in range(BINS):
        inside = [(c, r) for c, r in pairs if max(0, math.ceil(c * BINS) - 1) == i]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(accuracy - confidence)
    return total


@given(st.lists(st.tuples(SURE, st.booleans()), min_size=1, max_size=60))
def test_error_is_the_definition(pairs: list[tuple[float, bool]]) -> None:
    calibration = Calibration.of(*zip(*pairs, strict=True))
    assert calibration.total == len(pairs)
    assert calibration.error() == pytest.approx(expected_error(pairs), abs=1e-9)
    for sure, right, count in calibration.points():
        assert 0 <= sure <= 1 and 0 <= right <= 1 and count > 0


def test_error_in_closed_form() -> None:
    assert Calibration.of([0.75] * 4, [1, 1, 1, 0]).error() == pytest.approx(0)
    assert Calibration.of([1.0] * 4, [0] * 4).error() == pytest.approx(1)
    assert Calibration.of([0.9] * 2 + [0.3] * 2, [1, 1, 0, 0]).error() == pytest.approx(0.2)
    assert Calibration.of([1 / BINS], [0]).counts[0] == 1  # bins are closed above
    assert Calibration.of([0.0, 1.0], [0, 1]).counts[-1] == 1


@given(
    st.lists(st.tuples(SURE, st.booleans()), min_size=1, max_size=20),
    st.lists(st.tuples(SURE, st.booleans()), min_size=1, max_size=20),
)
def test_seeds_are_pooled(one: list[tuple[float, bool]], two: list[tuple[float, bool]]) -> None:
    pooled = Calibration.of(*zip(*one, strict=True)) + Calibration.of(*zip(*two, strict=True))
    whole = Calibration.of(*zip(*(one + two), strict=True))
    assert (pooled.counts, pooled.correct) == (whole.counts, whole.correct)
    assert pooled.confidence == pytest.approx(whole.confidence)


def batch(lengths: list[int], **labels: Any) -> dict[str, Any]:
    mask = torch.tensor([[int(i < n) for i in range(max(lengths))] for n in lengths])
    ids = torch.arange(5, 5 + mask.numel()).view_as(mask) % 20
    return {"input_ids": ids * mask, "attention_mask": mask, **labels}


def record(model: nn.Module, batches: list[Any], teacher: Any = None, **options: Any) -> Any:
    head = find_head(model)
    assert head is not None
    recorder = OutputRecorder(head, teacher, **options)
    with recorder.recording(model), torch.no_grad():
        for one in batches:
            model.eval()(**one)
    return recorder


def log_softmax(logits: Any) -> np.ndarray:
    numbers = np.asarray(logits.detach(), dtype=np.float64)
    shifted = numbers - numbers.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    return (np.exp(teacher) * (teacher - student)).sum(-1)


def named(*labels: str, seed: int) -> Any:
    return model_for(
        "text-classification", seed=seed, id2label=dict(enumerate(labels)),
        label2id={name: n for n, name in enumerate(labels)},
    )  # fmt: skip


def test_divergence_of_texts() -> None:
    teacher, student = (named("a", "b", "c", seed=seed) for seed in (0, 1))
    batches = [batch([4, 7], labels=torch.tensor([0, 2])), batch([3], labels=torch.tensor([1]))]
    recorded = record(teacher, batches, keeps_logits=True)
    found = record(student, batches, recorded)
    values, sure, right = [], [], []
    for one in batches:
        logs = [log_softmax(model(**one).logits) for model in (teacher, student)]
        values += divergence(*logs).tolist()
        sure += np.exp(logs[1]).max(-1).tolist()
        right += (logs[1].argmax(-1) == one["labels"].numpy()).tolist()
    assert found.divergence == pytest.approx(np.mean(values), rel=1e-5)
    assert found.calibration.counts == Calibration.of(sure, right).counts
    assert found.calibration.error() == pytest.approx(Calibration.of(sure, right).error(), rel=1e-5)
    assert recorded.divergence is None and recorded.calibration.total == 3
    assert record(teacher, batches, recorded).divergence == pytest.approx(0, abs=1e-7)


def test_labels_are_matched_by_name() -> None:
    class Fixed(nn.Module):
        def __init__(self, names: tuple[str, ...], logits: list[float]) -> None:
            super().__init__()
            self.config, self.values = named(*names, seed=0).config, torch.tensor([logits])

        def forward(self, input_ids: Any, **_: Any) -> SequenceClassifierOutput:
            return SequenceClassifierOutput(logits=self.values.expand(len(input_ids), -1))

    head = type(find_head(named("a", "b", seed=0)))
    one = Fixed(("a", "b", "c"), [0.0, 1.0, 2.0])
    other = Fixed(("c", "a", "b"), [2.0, 0.0, 1.0])
    recorders = [OutputRecorder(head(one.config), keeps_logits=True)]
    recorders.append(OutputRecorder(head(other.config), recorders[0]))
    strange = OutputRecorder(head(Fixed(("a", "b", "d"), [0.0] * 3).config), recorders[0])
    for recorder, model in zip([*recorders, strange], [one, other, other], strict=True):
        with recorder.recording(model):
            model(input_ids=torch.ones(2, 3, dtype=torch.long))
    assert recorders[1].divergence == pytest.approx(0, abs=1e-7)
    assert strange.divergence is None


def test_padding_is_not_a_place_for_an_answer() -> None:
    teacher, student = (model_for("question-answering", seed=seed) for seed in (0, 1))
    one = batch([4, 7])
    recorded = record(teacher, [one], keeps_logits=True)
    values = []
    outputs = [model.eval()(**one) for model in (teacher, student)]
    for row, length in enumerate([4, 7]):
        for name in ("start_logits", "end_logits"):
            logs = [log_softmax(output[name][row, :length]) for output in outputs]
            values.append(float(divergence(*logs)))
    found = record(student, [one], recorded)
    assert found.divergence == pytest.approx(np.mean(values), rel=1e-5)
    assert found.calibration is None  # the batch has no places of answers


def test_other_inputs_are_not_compared() -> None:
    teacher, student = (model_for("question-answering", seed=seed) for seed in (0, 1))
    recorded = record(teacher, [batch([4, 7])], keeps_logits=True)
    other = batch([4, 7])
    other["input_ids"] = other["input_ids"] + other["attention_mask"]
    assert record(student, [other], recorded).divergence is None
    assert record(student, [batch([4, 7]), batch([4])], recorded).divergence is None
    assert record(student, [batch([4, 6])], recorded).divergence is None


def test_numbers_are_not_probabilities() -> None:
    models = [BertForSequenceClassification(bert_config(1, num_labels=1)) for _ in range(2)]
    one = batch([4, 7], labels=torch.tensor([0.5, 1.5]))
    recorded = record(models[0], [one], keeps_logits=True)
    found = record(models[1], [one], recorded)
    assert found.divergence is None and found.calibration is None
