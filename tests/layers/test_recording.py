"""What the taps record is what transformers computes, and the models notice nothing."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from zoo import PAIRS, zoo_dataset, zoo_model

from hf_distill.heads.base import as_visible
from hf_distill.layers.attention_calls import AttentionCall
from hf_distill.layers.recording import (
    Recording,
    has_attention_taps,
    recorded,
    tapped,
)
from hf_distill.layers.stacks import layer_stacks

LAYERS = 2
_WITHOUT_TAPS = ("mpnet", "deberta-v2", "convnext", "t5")
_ENCODER_DECODERS = ("t5", "bart", "whisper")
ONE_TASK = {name: task for task, name in reversed(PAIRS) if name not in _ENCODER_DECODERS}
TAPPED = sorted(set(ONE_TASK) - set(_WITHOUT_TAPS))


def batch_for(architecture: str) -> dict[str, Tensor]:
    rows = zoo_dataset(ONE_TASK[architecture], 4, labels=False).with_format("torch")[:]
    return dict(rows)


def probabilities(call: AttentionCall, valid: Tensor) -> Tensor:
    """Attention probabilities, from the recorded queries and keys."""
    query, key = call.inputs.query.double(), call.inputs.key.double()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = call.inputs.scaling * query @ key.mT
    visible = valid[:, None, None, :].expand(scores.shape)
    if call.causal:
        visible = visible & torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if call.mask is not None:
        visible = visible & as_visible(call.mask)
    return scores.masked_fill(~visible, -torch.inf).softmax(-1)


def record(model: Any, batch: dict[str, Tensor], layers: set[int]) -> tuple[Recording, Any]:
    followed = len(layer_stacks(model)[""])
    recording = Recording(attention_layers=frozenset(layers), followed=followed)
    with tapped(model), torch.no_grad(), recorded({"": recording}):
        outputs = model(**batch)
    return recording, outputs


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", TAPPED)
def test_recorded_attention_is_that_of_transformers(architecture: str, implementation: str) -> None:
    model = zoo_model(ONE_TASK[architecture], architecture, seed=0, layers=LAYERS).eval()
    batch = batch_for(architecture)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**batch, output_attentions=True).attentions
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        untouched = model(**batch)
    recording, outputs = record(model, batch, {1, 2})

    assert recording.calls == len(expected) == LAYERS
    for layer, maps in enumerate(expected, start=1):
        valid = batch.get("attention_mask", torch.ones(len(maps), maps.shape[-1])).bool()
        valid = valid.flatten(0, -2)
        found = probabilities(recording.attentions[layer], valid)
        difference = (found - maps).abs()[valid[:, None, :].expand(maps.shape[:3])]
        assert difference.max() < 1e-5
    tensors = {k: v for k, v in outputs.items() if isinstance(v, Tensor)}
    assert tensors and all(torch.equal(value, untouched[k]) for k, value in tensors.items())


def test_only_the_chosen_layers_are_kept() -> None:
    model = zoo_model("question-answering", "bert", seed=0, layers=3)
    recording, _ = record(model, batch_for("bert"), {2})
    assert set(recording.attentions) == {2}
    assert recording.calls == 3


def test_nothing_is_left_of_the_taps_and_nothing_recorded_without_them() -> None:
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping), ALL_ATTENTION_FUNCTIONS["sdpa"]
    model = zoo_model("question-answering", "bert", seed=0)
    recording, _ = record(model, batch_for("bert"), {1})
    assert (dict(ALL_ATTENTION_FUNCTIONS._local_mapping), ALL_ATTENTION_FUNCTIONS["sdpa"]) == before
    recording.clear()
    with recorded({"": recording}):
        model(**batch_for("bert"))
    assert recording.calls == 0


def test_an_attention_function_of_the_users_own_is_put_back() -> None:
    def own(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = own
    try:
        recording, _ = record(
            zoo_model("question-answering", "bert", seed=0), batch_for("bert"), {1}
        )
        assert recording.calls == 1
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


@pytest.mark.parametrize("architecture", sorted(ONE_TASK))
def test_who_has_taps(architecture: str) -> None:
    model = zoo_model(ONE_TASK[architecture], architecture, seed=0)
    assert has_attention_taps(model) == (architecture in TAPPED)


def test_two_users_of_one_table() -> None:
    """One training inside another, or two in threads."""
    models = [zoo_model("question-answering", "bert", seed=seed) for seed in (0, 1)]
    first, second = ExitStack(), ExitStack()
    first.enter_context(tapped(models[0]))
    second.enter_context(tapped(models[1]))
    first.close()
    recording = Recording(attention_layers=frozenset({1}))
    with recorded({"": recording}):
        models[1](**batch_for("bert"))
    assert recording.calls == 1
    second.close()
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping
