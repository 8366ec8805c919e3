"""What is fitted after the last layer, by what least squares leave on the calibration data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification
from zoo import zoo_dataset, zoo_inputs, zoo_model

from hf_distill import create_student
from hf_distill.students import depth

MASKED = "fill-mask"
TRANSFORMS = {
    "bert": "cls.predictions.transform.dense",
    "roberta": "lm_head.dense",
    "modernbert": "head.dense",  # without a bias
}
SHIFT = 12.0
"""Where the activation of a transform is the identity."""


def data(task: str) -> Any:
    return zoo_dataset(task, rows=24, seed=5, labels=False)


def run(model: Any, task: str, module: str | None = None) -> Tensor:
    """The logits, or the outputs of a module, at the tokens of the calibration data."""
    inputs, outputs = zoo_inputs(model, data(task)), []
    if module is not None:
        model.get_submodule(module).register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    values = outputs[0] if outputs else logits
    return values[inputs["attention_mask"].bool()] if values.dim() == 3 else values


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_moved_to_where_its_activation_is_the_identity(name: str) -> None:
    """By twelve standard deviations from zero."""
    teacher = zoo_model(MASKED, name, seed=0, layers=2).eval()
    student = create_student(teacher, hidden_size=8, calibration_data=data(MASKED))
    values = run(student, MASKED, TRANSFORMS[name]) - SHIFT
    if student.get_submodule(TRANSFORMS[name]).bias is None:
        # A constant is what least squares find of one.
        assert values.mean().abs() < 3
    else:
        torch.testing.assert_close(
            values.square().mean().sqrt(), torch.tensor(1.0), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_tokens_are_as_likely_in_the_mean_as_for_the_teacher(name: str) -> None:
    """The bias of a decoder takes up what its weights miss in the mean."""
    teacher = zoo_model(MASKED, name, seed=0, layers=2).eval()
    student = create_student(teacher, hidden_size=8, calibration_data=data(MASKED))
    wanted = run(teacher, MASKED).mean(0)
    torch.testing.assert_close(run(student, MASKED).mean(0), wanted, rtol=1e-3, atol=1e-3)


def test_the_bias_next_to_a_decoder_is_fitted() -> None:
    """BART adds ``final_logits_bias``, which is far larger here than what is left."""
    task = "summarization"
    teacher = zoo_model(task, "bart", seed=0, layers=2).eval()
    torch.nn.init.normal_(teacher.final_logits_bias, std=5)
    rows = zoo_dataset(task, rows=24, seed=5)
    student = create_student(teacher, hidden_size=8, calibration_data=rows)
    inputs = zoo_inputs(teacher, rows)
    with torch.no_grad():
        ours, theirs = (
            model.eval()(**inputs).logits[inputs["labels"] != -100].mean(0)
            for model in (student, teacher)
        )
    assert theirs.abs().max() > 5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.2)


def test_the_order_of_the_units_of_a_head_does_not_matter() -> None:
    """The norm in ModernBERT's head is fitted for the units that were kept."""
    task = "text-classification"
    teacher = zoo_model(task, "modernbert", seed=0, layers=2).eval()
    student = create_student(teacher, hidden_size=8, calibration_data=data(task))
    before = run(teacher, task)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for module in (teacher.head.dense, teacher.head.norm):
            for weight in module.parameters():
                weight.copy_(weight[order])
        teacher.classifier.weight.copy_(teacher.classifier.weight[:, order])
    torch.testing.assert_close(run(teacher, task), before)
    other = create_student(teacher, hidden_size=8, calibration_data=data(task))
    torch.testing.assert_close(run(other, task), run(student, task), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["roberta", "electra"])
def test_units_of_a_head_that_do_nothing_are_left_out(name: str) -> None:
    """However large the weights that read them are."""
    task = "text-classification"
    teacher = zoo_model(task, name, seed=0, layers=2).eval()
    dead = torch.arange(0, 16, 2)
    with torch.no_grad():
        teacher.classifier.dense.weight[dead] = teacher.classifier.dense.bias[dead] = 0
        teacher.classifier.out_proj.weight[:, dead] = 100
    student = create_student(teacher, hidden_size=8, calibration_data=data(task))
    assert student.classifier.out_proj.weight.abs().max() < 10


def test_what_a_layer_changes() -> None:
    """KL(whole || without) of distributions; squared error over squares of numbers; added up."""
    whole, other = torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    kl = float((whole * (whole / other).log()).sum())
    numbers, changed = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]])
    one = [(other.log(), True), (changed, False)]
    found = depth._change(one, [(whole.log(), True), (numbers, False)])
    assert found == pytest.approx(kl + (1 + 4) / (1 + 4))


@pytest.mark.parametrize(("labels", "is_distribution"), [(3, True), (1, False)])
def test_numbers_are_compared_as_they_are(
    labels: int, is_distribution: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And logits of several labels as the distribution that they are."""
    seen: list[tuple[Tensor, bool]] = []
    change = depth._change

    def watched(outputs: Any, whole: Any) -> float:
        seen.extend([*outputs, *whole])
        return change(outputs, whole)

    monkeypatch.setattr(depth, "_change", watched)
    config = zoo_model("text-classification", "bert", seed=0, layers=2).config
    config.num_labels = labels
    teacher = BertForSequenceClassification(config).eval()
    create_student(
        teacher,
        num_hidden_layers=1,
        layers="auto",
        calibration_data=data("text-classification"),
    )
    assert seen and all(flag == is_distribution for _, flag in seen)
    sums = torch.cat([value.exp().sum(-1) for value, _ in seen])
    assert torch.allclose(sums, torch.ones_like(sums)) == is_distribution


def test_the_last_hidden_states_are_compared_where_there_is_no_head() -> None:
    teacher: Any = zoo_model("text-classification", "bert", seed=0, layers=3).bert.eval()
    with torch.no_grad():  # the first layer hands on what it gets
        layer = teacher.encoder.layer[0]
        for writer in (layer.attention.output, layer.output):
            writer.dense.weight.mul_(1e-3)
            writer.dense.bias.zero_()
    student = create_student(
        teacher, num_hidden_layers=2, layers="auto", calibration_data=data("text-classification")
    )
    for copied, kept in zip(student.encoder.layer, teacher.encoder.layer[1:], strict=True):
        assert torch.equal(copied.output.dense.weight, kept.output.dense.weight)
