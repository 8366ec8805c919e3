"""Each family of encoders of the zoo is exported once, and each kind of head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import zoo_dataset, zoo_model

from hf_distill.exporting.onnx import export_onnx

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "family"),
    [
        ("multiple-choice", "bert"),
        ("token-classification", "roberta"),
        ("question-answering", "xlm-roberta"),
        ("fill-mask", "electra"),
        ("text-classification", "mpnet"),
        ("text-classification", "deberta-v2"),
        ("token-classification", "albert"),
        ("question-answering", "distilbert"),
        ("fill-mask", "modernbert"),
        ("image-classification", "vit"),
        ("image-classification", "convnext"),
        ("audio-classification", "wav2vec2"),
        ("text-classification", "gpt2"),
    ],
)
def test_logits_are_those_of_pytorch(task: str, family: str, tmp_path: Path) -> None:
    layers = 2 if family == "modernbert" else 1
    model = zoo_model(task, family, seed=0, layers=layers).eval()
    exported, largest = export_onnx(model, None, tmp_path / "model.onnx")
    assert largest <= 1e-4
    columns: dict[str, Any] = zoo_dataset(task, 4, labels=False).with_format("torch")[:]
    columns.pop("token_type_ids", None)
    with torch.no_grad():
        expected = model(**columns)
    found = exported(**columns)
    assert list(found) == [name for name in expected if name.endswith("logits")]
    mask = columns.get("attention_mask")
    for name, ours in found.items():
        theirs = expected[name]
        if mask is not None and mask.shape == theirs.shape[:2]:
            # ModernBERT's padding sees nothing, and what it computes depends on the kernel.
            ours, theirs = ours[mask.bool()], theirs[mask.bool()]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    labelled: dict[str, Any] = zoo_dataset(task, 4, labels=True).with_format("torch")[:]
    labelled.pop("token_type_ids", None)
    with torch.no_grad():
        expected_loss = model(**labelled).loss
    torch.testing.assert_close(exported(**labelled).loss, expected_loss, rtol=1e-3, atol=1e-4)
