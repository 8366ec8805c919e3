"""Students of sentence-transformers models: pooling, width, and a folder that the package reads."""

from __future__ import annotations

import json
import math
import sys
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bert_config, tokenizer
from torch import nn
from transformers import BertModel, default_data_collator

from hf_distill import create_student
from hf_distill.cli.main import main
from hf_distill.least_squares import LeastSquares
from hf_distill.students import save_student

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed"
)

TEXTS = [f"{a} {b} {c}" for a in "abcdefgh" for b in "ijklmn" for c in ("word1", "word2", "?")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(bert_config(4, 32, num_attention_heads=4, initializer_range=0.2)).save_pretrained(
        made
    )
    words = tokenizer()
    words.model_max_length = 64
    words.save_pretrained(made)
    return made


def teacher(folder: Path, pooling: Any = "mean") -> Any:
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    modules = [Transformer(str(folder)), Pooling(32, pooling), Normalize()]
    return sentence_transformers.SentenceTransformer(
        modules=modules, device="cpu", prompts={"query": "a "}, similarity_fn_name="dot"
    )


def embeddings(model: Any, texts: list[str]) -> torch.Tensor:
    return torch.tensor(model.encode(texts))


def kinds(model: Any) -> list[str]:
    return [type(module).__name__ for module in model]


@pytest.mark.parametrize("pooling", ["mean", ("cls", "mean")])
def test_a_narrow_student_gives_embeddings_of_the_teachers_width(
    folder: Path, pooling: Any, tmp_path: Path
) -> None:
    wide = teacher(folder, pooling)
    before = embeddings(wide, TEXTS)
    student = create_student(wide, hidden_size=16, calibration_data=TEXTS)
    assert torch.equal(embeddings(wide, TEXTS), before)
    assert kinds(student) == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert student[0].model.config.hidden_size == 16
    assert (student.prompts["query"], student.similarity_fn_name) == ("a ", "dot")
    found = embeddings(student, TEXTS)
    assert found.shape == before.shape
    fitted = (found * before).sum(-1).mean()
    with torch.no_grad():
        nn.init.normal_(student[2].linear.weight)
    drawn = (embeddings(student, TEXTS) * before).sum(-1).mean()
    assert fitted > 0.9 > 0.5 > drawn
    student.save(str(tmp_path))
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    torch.testing.assert_close(embeddings(again, TEXTS), embeddings(student, TEXTS))


def test_fewer_layers_need_no_texts_and_no_map(folder: Path) -> None:
    wide = teacher(folder)
    student = create_student(wide, num_hidden_layers=2)
    assert kinds(student) == ["Transformer", "Pooling", "Normalize"]
    assert len(student[0].model.encoder.layer) == 2
    assert len(wide[0].model.encoder.layer) == 4
    whole = create_student(wide, num_hidden_layers=4)
    assert torch.equal(embeddings(whole, TEXTS), embeddings(wide, TEXTS))


def test_what_cannot_be_made_smaller_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="calibration_data"):
        create_student(teacher(folder), hidden_size=16)
    without = sentence_transformers.SentenceTransformer(modules=[teacher(folder)[0]], device="cpu")
    with pytest.raises(ValueError, match="Pooling"):
        create_student(without, num_hidden_layers=2)


def test_a_folder_keeps_its_pooling(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher(folder, "cls").save(str(tmp_path / "teacher"))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    main([
        "create-student", str(tmp_path / "teacher"), "--hidden_size", "16", "--calibration_file",
        str(tmp_path / "texts.txt"), "--output_dir", str(tmp_path / "student"),
    ])  # fmt: skip
    assert "4 layers of 16" in capsys.readouterr().out
    made = sentence_transformers.SentenceTransformer(str(tmp_path / "student"), device="cpu")
    assert kinds(made) == ["Transformer", "Pooling", "Dense", "Normalize"]
    here = create_student(tmp_path / "teacher", hidden_size=16, calibration_data=TEXTS)
    torch.testing.assert_close(embeddings(made, TEXTS), embeddings(here, TEXTS))
    record = json.loads((tmp_path / "student" / "student.json").read_text())
    assert record["sizes"]["hidden_size"] == 16
    for file in filter(Path.is_file, (tmp_path / "student").rglob("*")):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    encoder = BertModel.from_pretrained(tmp_path / "student")
    assert encoder.config.hidden_size == 16


@pytest.mark.parametrize(
    ("modules", "named"),
    [({1: {"type": "custom.Pooling"}}, "custom.Pooling"), ({}, "2_Dense/pytorch_model.bin")],
)
def test_a_folder_with_code_or_pickles_is_refused(
    modules: Any, named: str, folder: Path, tmp_path: Path
) -> None:
    create_student(teacher(folder), hidden_size=16, calibration_data=TEXTS).save(str(tmp_path))
    (tmp_path / "2_Dense" / "model.safetensors").rename(tmp_path / "2_Dense" / "pytorch_model.bin")
    content = json.loads((tmp_path / "modules.json").read_text())
    for index, change in modules.items():
        content[index] |= change
    (tmp_path / "modules.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"teacher=.*{named}"):
        create_student(tmp_path, num_hidden_layers=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocabulary_from", TEXTS),
        ("data_collator", default_data_collator),
        ("processing_class", tokenizer()),
        ("calibration_data", [{"input_ids": [5, 6]}] * 99),
    ],
)
def test_what_is_not_used_is_refused(name: str, value: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match=name):
        create_student(teacher(folder), num_hidden_layers=1, **{name: value})


def test_an_encoder_is_not_saved_among_other_modules(folder: Path, tmp_path: Path) -> None:
    save_student(create_student(teacher(folder), num_hidden_layers=2), tmp_path)
    student = create_student(BertModel.from_pretrained(folder), num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"folder=.*modules\.json"):
        save_student(student, tmp_path)


def test_the_teacher_stays_in_its_mode(folder: Path) -> None:
    wide = teacher(folder).train()
    modes = [module.training for module in wide.modules()]
    student = create_student(wide, hidden_size=16, calibration_data=np.array(TEXTS[:40]))
    assert [module.training for module in wide.modules()] == modes
    assert not student.training


def test_the_map_is_fitted_on_texts_of_the_whole_corpus(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus is often sorted, so its first texts say little about the others."""
    module = sys.modules["hf_distill.students.sentence_embeddings"]
    seen: list[list[str]] = []
    fitted = module._fitted
    monkeypatch.setattr(module, "_MOST_TEXTS", 20)
    monkeypatch.setattr(module, "_fitted", lambda *a: seen.append(a[-1]) or fitted(*a))
    for seed in (0, 0, 1):
        create_student(teacher(folder), hidden_size=16, calibration_data=TEXTS, seed=seed)
    assert seen[0] == seen[1] != seen[2]
    assert len({*seen[0]}) == 20
    assert max(map(TEXTS.index, seen[0])) > len(TEXTS) // 2


def test_texts_of_about_one_length_are_embedded_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a short text costs as much as the longest of its batch."""
    module = sys.modules["hf_distill.students.sentence_embeddings"]
    lengths: list[list[int]] = []
    run = module._run

    def watched(model: Any, modules: Any, texts: list[str]) -> Any:
        lengths.append([len(text) for text in texts])
        return run(model, modules, texts)

    monkeypatch.setattr(module, "_run", watched)
    texts = [" ".join("abcde"[: 1 + number * 7 % 5]) for number in range(80)]
    create_student(teacher(folder), hidden_size=16, calibration_data=texts)
    assert len(lengths) == 2 * math.ceil(80 / 32)
    assert all(max(later) <= min(earlier) for earlier, later in pairwise(lengths[::2]))


def test_a_truncated_teacher_has_a_truncated_student(folder: Path) -> None:
    whole: Any = teacher(folder)
    whole.truncate_dim = 5
    student: Any = create_student(whole, num_hidden_layers=1)
    assert student.encode(["a b c"]).shape == whole.encode(["a b c"]).shape == (1, 5)


def test_the_states_of_a_batch_are_forgotten_before_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a thousand long texts would take gigabytes."""
    module = sys.modules["hf_distill.students.sentence_embeddings"]
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class Watched(LeastSquares):
        def add(self, x: torch.Tensor, y: torch.Tensor, weight: Any = 1.0) -> None:
            seen.append(weakref.ref(x))
            alive.append(sum(one() is not None for one in seen))
            super().add(x, y, weight)

    monkeypatch.setattr(module, "LeastSquares", Watched)
    create_student(teacher(folder), hidden_size=16, calibration_data=TEXTS)
    assert len(alive) == math.ceil(len(TEXTS) / 32) > 2
    assert alive == [1] * len(alive)
