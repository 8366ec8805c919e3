"""Recorded samples."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_distill.layers.attention_calls import AttentionCall
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.recording import Recording
from hf_distill.layers.samples import RecordedLayers, RecordedSample, SampleFolder, read_sample
from hf_distill.losses import AttentionInputs

PAIRS = [LayerPair(0, 0), LayerPair(1, 2)]
LARGE = 10**9


def layers(*numbers: int, length: int = 5, heads: int = 4, key_heads: int = 4) -> RecordedLayers:
    return RecordedLayers(
        hidden_states={layer: torch.randn(length, 8) for layer in (0, *numbers)},
        query={layer: torch.randn(heads, length, 6) for layer in numbers},
        key={layer: torch.randn(key_heads, length, 6) for layer in numbers},
        scaling=dict.fromkeys(numbers, 0.25),
        causal=dict.fromkeys(numbers, False),
    )


def sample(step: int = 500, **changes: object) -> RecordedSample:
    torch.manual_seed(step)
    values: dict = {"tokens": list("abcde"), "teacher": layers(2), "student": layers(1, heads=2,
                    key_heads=1), **changes}  # fmt: skip
    return RecordedSample(step, PAIRS, torch.arange(5), **values)


def tensors_of(one: RecordedLayers) -> dict[str, dict[int, Tensor]]:
    return {kind: getattr(one, kind) for kind in ("hidden_states", "query", "key", "attention",
                                                  "pair_mask")}  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    maps = RecordedLayers(attention={1: torch.rand(2, 5, 5)}, hidden_states={0: torch.ones(5, 3)})
    local = layers(2, 3)
    local.pair_mask = {3: torch.eye(5, dtype=torch.bool)[None]}
    local.causal = {2: True, 3: False}
    written = sample(teacher=local, student=maps)
    folder = SampleFolder(tmp_path / "new", LARGE)
    path = folder.write(written)
    assert path == tmp_path / "new" / "step-00000500.safetensors"
    assert os.listdir(path.parent) == [path.name]
    (read,) = folder
    assert (read.step, read.layer_pairs, read.tokens) == (500, PAIRS, list("abcde"))
    assert all(isinstance(pair, LayerPair) for pair in read.layer_pairs)
    assert torch.equal(read.input_ids, torch.arange(5))
    for mine, other in ((local, read.teacher), (maps, read.student)):
        assert (other.scaling, other.causal) == (mine.scaling, mine.causal)
        for kind, by_layer in tensors_of(other).items():
            assert by_layer.keys() == tensors_of(mine)[kind].keys()
            for layer, tensor in by_layer.items():
                expected = tensors_of(mine)[kind][layer]
                if kind == "pair_mask":
                    assert torch.equal(tensor, expected)
                else:
                    assert tensor.dtype == torch.float16
                    torch.testing.assert_close(tensor.float(), expected, rtol=1e-3, atol=1e-4)


def test_views_shared_memory_and_gradients_are_no_obstacle(tmp_path: Path) -> None:
    shared = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    odd = layers(2)
    odd.hidden_states = {0: shared, 1: shared, 2: shared.t().t()[:, ::2]}
    odd.pair_mask = dict.fromkeys((1, 2), torch.ones(1, 5, 5, dtype=torch.bool))
    read = read_sample(SampleFolder(tmp_path, LARGE).write(sample(teacher=odd)))
    assert torch.equal(read.teacher.hidden_states[2], shared.detach().half()[:, ::2])


def test_values_beyond_float16_stay_finite(tmp_path: Path) -> None:
    huge = layers(2)
    huge.hidden_states[2][0] = 1e9
    huge.hidden_states[2][1] = -1e9
    read = read_sample(SampleFolder(tmp_path, LARGE).write(sample(teacher=huge)))
    assert read.teacher.hidden_states[2][:2, 0].tolist() == [65504.0, -65504.0]


def test_unknown_tokens_stay_unknown(tmp_path: Path) -> None:
    path = SampleFolder(tmp_path, LARGE).write(sample(tokens=None))
    assert read_sample(path).tokens is None


def test_read_in_step_order_and_rewritten_in_place(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path, LARGE)
    for step in (900, 0, 123_456_789, 99_999_999, 20):
        folder.write(sample(step))
    folder.write(sample(20, tokens=list("again")))
    read = list(folder)
    assert [one.step for one in read] == [0, 20, 900, 99_999_999, 123_456_789]
    assert read[1].tokens == list("again")


@pytest.mark.parametrize("again", [False, True], ids=["one run", "resumed"])
def test_stops_at_the_bound_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, again: bool
) -> None:
    size = SampleFolder(tmp_path / "one", LARGE).write(sample(0)).stat().st_size
    bound = 3 * size - 1
    folder = SampleFolder(tmp_path / "many", bound)
    written = []
    with caplog.at_level(logging.WARNING):
        for step in range(6):
            if again and step == 1:
                folder = SampleFolder(tmp_path / "many", bound)
            written.append(folder.write(sample(step)) is not None)
        # One that would fit is not written either: the record ends, it has no holes.
        assert folder.write(sample(7, student=RecordedLayers())) is None
    assert written == [True, True, False, False, False, False]
    assert folder.full
    assert [one.step for one in folder] == [0, 1]
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{bound:,} bytes" in message and "step 2" in message and "max_bytes" in message


def test_a_rewritten_step_is_not_counted_twice(tmp_path: Path) -> None:
    size = SampleFolder(tmp_path / "one", LARGE).write(sample(1)).stat().st_size
    folder = SampleFolder(tmp_path / "two", size)
    assert folder.write(sample(1)) is not None
    assert folder.write(sample(1)) is not None
    assert not folder.full


def test_a_bound_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_bytes .* is 0"):
        SampleFolder(tmp_path, 0)


def test_a_killed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SampleFolder(tmp_path, LARGE)
    folder.write(sample(3))
    before = (tmp_path / "step-00000003.safetensors").read_bytes()

    def half(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="no space"):
            folder.write(sample(3, tokens=None))
    assert (tmp_path / "step-00000003.safetensors").read_bytes() == before
    # Even if nothing could be cleaned up, the leftover counts as no sample.
    (tmp_path / ".step-00000004.0123456789ab.tmp.safetensors").write_bytes(before[:100])
    assert [one.step for one in folder] == [3]


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    folder = SampleFolder(tmp_path, LARGE)
    path = folder.write(sample(3))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="step-00000003.safetensors .*cut short"):
        list(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "step-00000001.safetensors"])
def test_foreign_file_is_named(tmp_path: Path, name: str) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / name, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} is no recorded sample"):
        list(SampleFolder(tmp_path, LARGE))


@pytest.mark.parametrize(
    "broken",
    [
        {"step": "many"},
        {"layer_pairs": 3},
        {"layer_pairs": [[0, 1, 2]]},
        {"scaling": []},
        {"scaling": {"teacher": {}, "student": {}}},
        {"causal": {"teacher": 3, "student": {}}},
    ],
)
def test_broken_metadata_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = tmp_path / "step-00000500.safetensors"
    good = {
        "step": 500, "layer_pairs": [[1, 2]], "scaling": {"teacher": {"2": 1.0}, "student": {}},
        "causal": {"teacher": {"2": False}, "student": {}}, "tokens": None,
    }  # fmt: skip
    kind = "hf_distill recorded sample 2"
    tensors = {name: torch.ones(1, 2, 3) for name in ("input_ids", "teacher.query.2",
                                                      "teacher.key.2")}  # fmt: skip
    save_file(tensors, path, {kind: json.dumps(good)})
    assert read_sample(path).teacher.scaling == {2: 1.0}
    for entry in (
        {kind: json.dumps({**good, **broken})}, {kind: json.dumps(good)[:-3]},
        {kind.replace("2", "3"): json.dumps(good)},
    ):  # fmt: skip
        save_file(tensors, path, entry)
        with pytest.raises(ValueError, match="step-00000500.safetensors is no recorded sample"):
            read_sample(path)
    save_file({**tensors, "teacher.logits.2": torch.ones(1)}, path, {kind: json.dumps(good)})
    with pytest.raises(ValueError, match="teacher.logits.2"):
        read_sample(path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(SampleFolder(tmp_path / "nowhere", LARGE))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_attention_by_hand(causal: bool, local: bool) -> None:
    mine = layers(2, heads=6, key_heads=2)
    mine.causal = {2: causal}
    near = torch.ones(5, 5, dtype=torch.bool).tril(1).triu(-1)
    if local:
        mine.pair_mask = {2: near[None]}
    probabilities = sample(teacher=mine).attention("teacher", 2)
    assert probabilities.shape == (6, 5, 5) and probabilities.dtype == torch.float32
    for head in range(6):
        for i in range(5):
            seen = [
                j for j in range(5) if (not causal or j <= i) and (not local or abs(i - j) <= 1)
            ]
            query, keys = mine.query[2][head, i], mine.key[2][head // 3]
            weights = torch.stack([(0.25 * query @ keys[j]).exp() for j in seen])
            expected = torch.zeros(5)
            expected[seen] = weights / weights.sum()
            torch.testing.assert_close(probabilities[head, i], expected)


def test_recorded_maps_are_attention() -> None:
    maps = torch.rand(2, 5, 5).half()
    one = sample(student=RecordedLayers(attention={3: maps}))
    assert torch.equal(one.attention("student", 3), maps.float())


@pytest.mark.parametrize(
    ("who", "layer", "message"),
    [
        ("teacher", 1, r"layer=1.*step 500.*teacher.*\[2\]"),
        ("student", 0, r"layer=0.*student.*\[1\]"),
        ("pupil", 1, "who .*'pupil'"),
    ],
)
def test_attention_that_is_not_there(who: str, layer: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample().attention(who, layer)


def test_one_sentence_of_a_recorded_batch() -> None:
    recording = Recording(frozenset({0, 3}), frozenset({2, 3, 4}))
    recording.hidden_states = {0: torch.randn(2, 6, 4), 3: torch.randn(2, 6, 4)}
    for layer, mask_batch in ((2, None), (3, 2), (4, 1)):
        inputs = AttentionInputs(
            torch.randn(2, 4, 6, 3), torch.randn(2, 2, 6, 3), torch.randn(2, 2, 6, 3), 0.5
        )
        mask = None
        if mask_batch is not None:
            mask = torch.rand(mask_batch, 1, 6, 6) > 0.5
            mask = mask.tril() if layer == 3 else mask
        recording.attentions[layer] = AttentionCall(inputs, layer == 3, mask)
    recording.attention_maps = {1: torch.rand(2, 4, 6, 6)}
    valid = torch.tensor([False, True, True, True, True, False])

    one = RecordedLayers.from_recording(recording, 1, valid)
    inner = slice(1, 5)
    assert torch.equal(one.hidden_states[3], recording.hidden_states[3][1, inner])
    call = recording.attentions[3]
    assert torch.equal(one.query[3], call.inputs.query[1, :, inner])
    assert torch.equal(one.key[3], call.inputs.key[1, :, inner])
    assert one.scaling == {2: 0.5, 3: 0.5, 4: 0.5}
    assert one.causal == {2: False, 3: True, 4: False}
    assert one.pair_mask.keys() == {3, 4}
    assert torch.equal(one.pair_mask[3], call.mask[1, :, inner, inner])
    whole = recording.attentions[4].mask
    assert torch.equal(one.pair_mask[4], whole[0, :, inner, inner])
    assert torch.equal(one.attention[1], recording.attention_maps[1][1, :, inner, inner])
