"""OpenVINO's form of a model, where its packages are installed, and what is said where not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny import bert_config, tokenizer
from transformers import BertForQuestionAnswering

from hf_distill import QuestionAnswerer
from hf_distill.exporting import export
from hf_distill.exporting.onnx import probe
from hf_distill.extras import MissingExtraError
from hf_distill.onnx_model import load_exported, weights_of
from hf_distill.reports.measurements import stored_as, weight_files

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")


def reader() -> BertForQuestionAnswering:
    torch.manual_seed(0)
    config = bert_config(width=32, max_position_embeddings=512, initializer_range=0.5)
    return BertForQuestionAnswering(config).eval()


@pytest.mark.slow
def test_its_folder_is_used_like_that_of_the_original(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    model, served = reader(), tmp_path / "served"
    report = export(model, served, processing_class=tokenizer(), format="openvino")
    assert report.file == "openvino/openvino_model.xml"
    assert not (served / "onnx").exists()
    assert report.sizes["exported"] == weights_of(served / report.file).stat().st_size
    assert report.sizes["exported"] == pytest.approx(report.sizes["original"], rel=0.05)
    assert report.largest_difference <= 1e-4
    assert stored_as(weight_files(served)) == "float32"
    exported = load_exported(served)
    assert exported is not None
    for rows, length in ((1, 3), (5, 40)):
        inputs = probe(model, tokenizer(), rows, length)
        with torch.no_grad():
            expected = model(**inputs)
        kept = exported(**inputs).end_logits
        exported(**probe(model, tokenizer(), rows, 2))  # into its own memory
        torch.testing.assert_close(kept, expected.end_logits, rtol=1e-4, atol=1e-4)
    asked = [{"question": "who?", "context": "ann wrote it."}]
    [[answer]] = QuestionAnswerer.from_pretrained(str(served))(asked)
    [[right]] = QuestionAnswerer(model, tokenizer())(asked)
    assert (answer.text, answer.start) == (right.text, right.start)
    (served / report.file).write_text("no XML")
    with pytest.raises(ValueError, match=r"served/openvino/openvino_model\.xml"):
        load_exported(served)


def test_a_missing_package_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"hf-distill\[openvino\]"):
        export(tmp_path / "no model", tmp_path / "served", format="openvino")


def test_what_it_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8=True.*openvino"):
        export(reader(), tmp_path / "served", format="openvino", int8=True, data="dev.json")
    with pytest.raises(ValueError, match="format='tflite'.*onnx, openvino"):
        export(reader(), tmp_path / "served", format="tflite")
