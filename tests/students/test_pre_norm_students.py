"""Streams that were planted come back; traps of families whose norms come first, and others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import GROUPED, embed, model_of, rotation, stacks_of
from torch import Tensor
from transformers import AutoConfig
from zoo import zoo_dataset, zoo_model

from hf_distill import create_student
from hf_distill.compatibility import input_names
from hf_distill.students.weights import Map, find

CASES = [
    ("text-classification", "modernbert", {}),
    ("token-classification", "modernbert", {}),
    ("text-classification", "gpt2", {}),
    ("text-generation", "gpt2", {}),
    ("text-generation", "llama", {"tie_word_embeddings": False}),
    ("text-generation", "llama", {"tie_word_embeddings": True}),
    ("text-generation", "mistral", {"tie_word_embeddings": True}),
    ("text-generation", "qwen2", {"tie_word_embeddings": True}),
    ("text-generation", "qwen3", {"tie_word_embeddings": True}),
    ("text-classification", "llama", {}),
    ("image-classification", "vit", {}),
    ("summarization", "t5", {}),
    ("summarization", "t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("summarization", "bart", {}),
    ("summarization", "mbart", {"scale_embedding": True}),
    ("text-classification", "t5", {}),
    ("text-classification", "bart", {}),
    ("question-answering", "bart", {"scale_embedding": True}),
]


def logits(model: Any, task: str, seed: int = 0) -> Tensor:
    rows = zoo_dataset(task, labels=False, rows=32, seed=seed, target=True)
    rows.set_format("torch")
    batch = dict(rows[:].items())
    with torch.no_grad():
        outputs = model.eval()(**{n: v for n, v in batch.items() if n in input_names(model)})
    values = outputs.get("logits", outputs.get("start_logits"))
    tokens = task != "image-classification" and values.shape[:2] == batch["attention_mask"].shape
    return values[batch["attention_mask"].bool()] if tokens else values


def last_states(model: Any, task: str) -> Tensor:
    rows = zoo_dataset(task, labels=False, rows=32)
    rows.set_format("torch")
    batch = dict(rows[:].items())
    with torch.no_grad():
        states: Tensor = model.eval()(**batch).last_hidden_state
    mask = batch.get("attention_mask")
    return states.flatten(0, 1) if mask is None else states[mask.bool()]


def data(task: str) -> Any:
    return zoo_dataset(task, rows=48, seed=5, labels=False, target=True)


@pytest.mark.parametrize(("task", "name", "options"), CASES[2:])
def test_a_planted_stream_comes_back(task: str, name: str, options: dict[str, Any]) -> None:
    core = model_of(task, name, 1, 8, **options)
    teacher = embed(core, model_of(task, name, 2, 16, **options), rotation(16, 8))
    wanted = logits(teacher, task)
    torch.testing.assert_close(wanted, logits(core, task), atol=1e-3, rtol=1e-3)
    student = create_student(teacher, hidden_size=8, calibration_data=data(task))
    assert student.config.num_attention_heads == 2
    if name in GROUPED:
        assert student.config.num_key_value_heads == 1
    torch.testing.assert_close(logits(student, task), wanted, atol=5e-3, rtol=5e-3)
    smaller = create_student(
        teacher, hidden_size=4 if name not in GROUPED else 6, calibration_data=data(task)
    )
    assert (logits(smaller, task) - wanted).abs().max() > 0.05


@pytest.mark.parametrize("name", ["modernbert", "gpt2", "llama", "vit"])
def test_a_planted_stream_comes_back_without_a_head(name: str) -> None:
    """The last hidden states, after the final norm, are the teacher's in other axes."""
    task = "image-classification" if name == "vit" else "text-classification"
    core = model_of(task, name, 1, 8).base_model
    teacher = embed(core, model_of(task, name, 2, 16).base_model, rotation(16, 8))
    student = create_student(teacher, hidden_size=8, calibration_data=data(task))
    states, wanted = (last_states(model, task) for model in (student, teacher))
    torch.testing.assert_close(states @ states.T, wanted @ wanted.T, atol=2e-2, rtol=5e-3)
    same = [last_states(model, task) @ turn.T for model, turn in (
        (core, rotation(16, 8)), (teacher, torch.eye(16)))]  # fmt: skip
    torch.testing.assert_close(*same, atol=1e-3, rtol=1e-3)


def test_a_tied_decoder_has_the_scales_of_the_final_norm() -> None:
    """Its table is not the place for them, so the axes of the stream must fit them."""
    task, name = "text-generation", "llama"
    core = model_of(task, name, 1, 8, tie_word_embeddings=True)
    with torch.no_grad():
        core.model.norm.weight.copy_(torch.tensor([0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0]))
    axes = torch.eye(16)[:, [3, 0, 7, 15, 9, 2, 12, 5]]
    teacher = embed(core, model_of(task, name, 2, 16, tie_word_embeddings=True), axes)
    wanted = logits(teacher, task)
    torch.testing.assert_close(wanted, logits(core, task), atol=1e-3, rtol=1e-3)
    student = create_student(teacher, hidden_size=8, calibration_data=data(task))
    torch.testing.assert_close(logits(student, task), wanted, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("task", "name", "options"), CASES)
def test_neurons_that_do_nothing_can_go(task: str, name: str, options: dict[str, Any]) -> None:
    """At full width everything else is fitted, and must come back as it was."""
    teacher = model_of(task, name, 0, 16, **options)
    with torch.no_grad():
        for stack in stacks_of(teacher):
            for layer in find(teacher.base_model, stack.layers):
                Map(find(layer, stack.blocks[-1].writer)).weight[:, ::2] = 0.0
    student = create_student(teacher, intermediate_size=16, calibration_data=data(task))
    torch.testing.assert_close(logits(student, task), logits(teacher, task), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", GROUPED)
def test_the_group_of_heads_that_does_something_stays(name: str) -> None:
    task = "text-generation"
    teacher = model_of(task, name, 0, 16)
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.v_proj.weight[:4] = 0.0  # read by the first two of four heads
            if layer.self_attn.v_proj.bias is not None:
                layer.self_attn.v_proj.bias[:4] = 0.0
    student = create_student(teacher, num_attention_heads=2, calibration_data=data(task))
    assert student.config.num_key_value_heads == 1
    torch.testing.assert_close(logits(student, task), logits(teacher, task), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        *(("text-generation", name) for name in ("gpt2", "llama", "qwen3")),
        *(("summarization", name) for name in ("t5", "bart")),
    ],
)
def test_a_narrow_student_is_nearer_than_a_cut_or_a_random_one(task: str, name: str) -> None:
    """With a teacher whose stream is nearly planted: most of it, and some noise everywhere."""
    core = model_of(task, name, 1, 8)
    teacher = model_of(task, name, 2, 16)
    embed(core, teacher, rotation(16, 8))
    with torch.no_grad():
        torch.manual_seed(3)
        for weight in teacher.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    student = create_student(teacher, hidden_size=8, calibration_data=data(task))
    random, cut = (type(teacher)(student.config) for _ in range(2))
    with torch.no_grad():
        for key, weight in cut.named_parameters():
            weight.copy_(teacher.get_parameter(key)[tuple(map(slice, weight.shape))])
    wanted = logits(teacher, task).log_softmax(-1)
    made, *others = (
        float((wanted.exp() * (wanted - logits(model, task).log_softmax(-1))).sum(-1).mean())
        for model in (student, random, cut)
    )
    assert made < 0.25 * min(others)


@pytest.mark.parametrize("tied", [True, False])
def test_decoders_stay_tied_or_not_and_generate(tied: bool) -> None:
    task = "text-generation"
    teacher = model_of(task, "llama", 0, 16, tie_word_embeddings=tied)
    student: Any = create_student(teacher, hidden_size=8, num_hidden_layers=1,
                                  calibration_data=data(task))  # fmt: skip
    assert (student.lm_head.weight is student.model.embed_tokens.weight) is tied
    assert student.config.tie_word_embeddings is tied
    prompt = torch.tensor([[5, 6, 7]])
    made = student.generate(prompt, max_new_tokens=4, do_sample=False)
    by_hand = prompt
    for _ in range(made.shape[1] - 3):
        with torch.no_grad():
            best = student(by_hand).logits[:, -1].argmax(-1, keepdim=True)
        by_hand = torch.cat([by_hand, best], dim=1)
    assert torch.equal(made, by_hand)


def test_modernbert_keeps_its_first_layer_and_its_rhythm() -> None:
    task = "text-classification"
    teacher = zoo_model(task, "modernbert", seed=0, layers=4)
    student: Any = create_student(teacher, layers=[0, 1, 3])
    types = teacher.config.layer_types
    assert student.config.layer_types == [types[0], types[1], types[3]] == [
        "full_attention", "sliding_attention", "sliding_attention"]  # fmt: skip
    assert AutoConfig.for_model(**student.config.to_dict()).layer_types == types[:2] + types[3:]
    for layers in ("last", [1, 2]):
        with pytest.raises(ValueError, match=r"layers=.*layer 0.*norm"):
            create_student(teacher, layers=layers, num_hidden_layers=2)
    with torch.no_grad():  # layer 0 is missed least, but it stays
        teacher.model.layers[0].attn.Wo.weight.zero_()
        teacher.model.layers[0].mlp.Wo.weight.zero_()
    auto: Any = create_student(teacher, num_hidden_layers=1, layers="auto",
                               calibration_data=data(task))  # fmt: skip
    assert torch.equal(auto.model.layers[0].mlp.Wo.weight, teacher.model.layers[0].mlp.Wo.weight)
    assert not auto.model.layers[0].mlp.Wo.weight.any()


def test_layers_and_sizes_that_a_family_does_not_have_are_named() -> None:
    task = "text-generation"
    teacher = zoo_model(task, "gpt2", seed=0, layers=3, scale_attn_by_inverse_layer_idx=True)
    create_student(teacher, layers=[0, 1])
    with pytest.raises(ValueError, match=r"layers=\[0, 2\].*scale_attn_by_inverse_layer_idx"):
        create_student(teacher, layers=[0, 2])
    llama = model_of(task, "llama", 0, 16)
    for heads, message in (
        (3, "num_attention_heads=3.* 2"),
        (4, "hidden_size=6.*attention_heads=4"),
    ):
        with pytest.raises(ValueError, match=message):
            create_student(llama, hidden_size=6, num_attention_heads=heads,
                           calibration_data=data(task))  # fmt: skip
