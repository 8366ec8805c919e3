"""LayerDrop: a layer that a step skips is left out of its losses, and shifts no other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distil, logged
from torch import Tensor, nn
from transformers import TrainerCallback, default_data_collator
from zoo import zoo_dataset, zoo_model

from hf_distill import TeacherRecorderCallback
from hf_distill.layers.samples import SampleFolder

LAYERS = 3
TASKS = {
    "wav2vec2": "audio-classification", "hubert": "audio-classification",
    "wavlm": "audio-classification", "opt": "text-generation",
}  # fmt: skip


def stack(model: Any) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS]
    return found[0]


class RanLayers(TrainerCallback):
    """Which of the student's layers, from 1, ran in each step."""

    def __init__(self, student: Any) -> None:
        self.steps: list[list[int]] = [[]]
        for number, layer in enumerate(stack(student), start=1):
            layer.register_forward_hook(lambda *_, number=number: self.steps[-1].append(number))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append([])


def outputs(model: Any, batch: dict[str, Tensor], ran: list[int]) -> tuple[Any, Any]:
    """Hidden states and attention probabilities by layer, of a model of these layers alone."""
    model = copy.deepcopy(model).double().eval()
    model.set_attn_implementation("eager")
    layers, states = stack(model), {}
    for number in ran:
        layers[number - 1].register_forward_hook(
            lambda m, i, o, number=number: states.update(
                {number: o[0] if isinstance(o, tuple) else o}
            )
        )
    for number in range(LAYERS, 0, -1):
        if number not in ran:
            del layers[number - 1]
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True, output_attentions=True)
    if ran:
        states[0] = found.hidden_states[0]
        if ran[-1] == LAYERS:
            states[LAYERS] = found.hidden_states[-1]
    return states, dict(zip(ran, found.attentions, strict=True))


def expected(student: Any, teacher: Any, batch: dict[str, Tensor], ran: list[int]) -> Any:
    ours, our_maps = outputs(student, batch, ran)
    theirs, their_maps = outputs(teacher, batch, [1, 2, 3])
    hidden = sum((float((state - theirs[i]).square().mean()) for i, state in ours.items()), 0.0)
    attention = 0.0
    for layer, q in our_maps.items():
        p = their_maps[layer]
        terms = torch.where(p > 0, p * (p.log() - q.log()), 0.0)
        attention += float(terms.sum(-1).mean())
    return hidden, attention


@pytest.mark.parametrize("architecture", TASKS)
def test_dropped_layers_are_left_out(architecture: str, tmp_path: Path) -> None:
    task = TASKS[architecture]
    student, teacher = (
        zoo_model(task, architecture, seed=seed, layers=LAYERS, layerdrop=0.5) for seed in (0, 1)
    )
    data = zoo_dataset(task, 2, labels=False)
    if "attention_mask" in data.column_names:  # without padding, and another text
        data = data.map(lambda row: {"attention_mask": [1] * len(row["attention_mask"])})
    batch = dict(data.with_format("torch")[:])
    ran = RanLayers(student)
    recorder = TeacherRecorderCallback(tmp_path / "samples", every_steps=1)
    trained, _ = distil(
        task, tmp_path, student=student, teacher=teacher, train_dataset=data, stage="intermediate",
        attention_loss="probabilities", max_steps=12, learning_rate=0.0, max_grad_norm=0.0,
        per_device_train_batch_size=2, train_sampling_strategy="sequential",
        trainer_options={
            "data_collator": default_data_collator, "callbacks": [ran, recorder],
        },
        record_gradients=False,
    )  # fmt: skip
    hidden, attention = logged(trained, "loss_hidden_states"), logged(trained, "loss_attention")
    seen = {tuple(layers) for layers in ran.steps[:-1]}
    assert any(3 not in layers for layers in seen) and {(1, 3), (2, 3)} & seen
    for step, layers in enumerate(ran.steps[:-1]):
        wanted = expected(student, teacher, batch, layers)
        assert (hidden[step], attention[step]) == pytest.approx(wanted, rel=1e-4, abs=1e-6), layers
    for sample in SampleFolder(tmp_path / "samples", max_bytes=2**30):
        layers = ran.steps[sample.step]
        assert [pair.student for pair in sample.layer_pairs] == [0, *layers]
        for layer in layers:
            assert sample.attention("student", layer).shape[-1] == sample.input_ids.shape[0]


def test_a_step_without_any_layer(tmp_path: Path) -> None:
    """Its loss is 0, and the run lives on."""
    task = "audio-classification"
    student = zoo_model(task, "wav2vec2", seed=0, layers=2, layerdrop=1.0)
    trained, _ = distil(
        task, tmp_path, student=student, teacher=zoo_model(task, "wav2vec2", seed=1, layers=2),
        train_dataset=zoo_dataset(task), stage="intermediate", attention_loss="scores",
        trainer_options={"data_collator": default_data_collator,
                         "callbacks": [TeacherRecorderCallback(tmp_path / "samples")]},
    )  # fmt: skip
    assert logged(trained, "loss") == [0.0] * 3


def test_layers_that_do_not_run_for_another_reason(tmp_path: Path) -> None:
    """Never a silent zero."""
    task = "text-classification"
    student = zoo_model(task, "bert", seed=0, layers=2)
    encoder = student.bert.encoder
    bound = encoder.forward

    def only_the_first(*args: Any, **kwargs: Any) -> Any:
        kept, encoder.layer = encoder.layer, encoder.layer[:1]
        try:
            return bound(*args, **kwargs)
        finally:
            encoder.layer = kept

    encoder.forward = only_the_first
    with pytest.raises(ValueError, match="Layer 2 of the student did not run"):
        distil(task, tmp_path, student=student, teacher=zoo_model(task, "bert", seed=1, layers=2),
               train_dataset=zoo_dataset(task), stage="intermediate",
               trainer_options={"data_collator": default_data_collator})  # fmt: skip
