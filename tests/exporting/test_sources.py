"""What is exported: adapters merged, sentence encoders with their pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bert_config, tokenizer
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    ByT5Tokenizer,
)

from hf_distill.augmentation.masked_lm import MaskedLanguageModel
from hf_distill.exporting import export
from hf_distill.exporting.sources import SentenceEncoder, load_source
from hf_distill.loading import load_tokenizer
from hf_distill.tasks.question_answering import QuestionAnswerer

TEXTS = ["a b c", "dogs and cats run through paris ?", "?"]


class TestAdapters:
    @pytest.fixture
    def adapted(self, tmp_path: Path) -> Any:
        peft = pytest.importorskip("peft", reason="PEFT is not installed")
        torch.manual_seed(0)
        BertForSequenceClassification(bert_config(num_labels=2)).save_pretrained(tmp_path / "base")
        tokenizer().save_pretrained(tmp_path / "base")
        base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
        config = peft.LoraConfig(
            task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False
        )
        return peft.get_peft_model(base, config).eval()

    def logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(**tokenizer()(TEXTS, padding=True, return_tensors="pt"))[0]
        return found

    def test_of_a_model_and_of_a_folder_are_merged(self, adapted: Any, tmp_path: Path) -> None:
        expected = self.logits(adapted)
        with adapted.disable_adapter():
            assert not torch.allclose(expected, self.logits(adapted), 1e-3)
        adapted.save_pretrained(tmp_path / "adapter")
        tokenizer().save_pretrained(tmp_path / "adapter")
        for source in (adapted, tmp_path / "adapter"):
            model, _ = load_source(source, None)
            assert type(model) is BertForSequenceClassification
            assert not any("lora" in name for name, _ in model.named_parameters())
            torch.testing.assert_close(self.logits(model), expected)
        assert any("lora" in name for name, _ in adapted.named_parameters())

    def test_that_transformers_added_are_merged(self, adapted: Any) -> None:
        import peft

        model = BertForSequenceClassification(bert_config(num_labels=2)).eval()
        model.add_adapter(
            peft.LoraConfig(target_modules=["query"], init_lora_weights=False, lora_alpha=64)
        )
        loaded, _ = load_source(model, None)
        torch.testing.assert_close(self.logits(loaded), self.logits(model))
        merged = [one.merged for one in loaded.modules() if hasattr(one, "base_layer")]
        assert merged and all(merged)
        model.disable_adapters()
        assert not torch.allclose(self.logits(model), self.logits(loaded), 1e-3)

    def test_a_trained_prompt_is_refused(self, adapted: Any) -> None:
        import peft

        base = BertForSequenceClassification(bert_config(num_labels=2))
        config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
        with pytest.raises(ValueError, match="model is a PeftModel.*LoRA"):
            load_source(peft.get_peft_model(base, config), None)


class TestTokenizers:
    @pytest.mark.parametrize("settings", [False, True])
    @pytest.mark.parametrize(
        ("kind", "load"),
        [
            (BertForSequenceClassification, lambda folder: load_source(folder, None)),
            (BertForQuestionAnswering, QuestionAnswerer.from_pretrained),
            (BertForMaskedLM, MaskedLanguageModel.from_pretrained),
        ],
        ids=["export", "answer", "augment"],
    )
    def test_none_is_made_up(self, kind: Any, load: Any, settings: bool, tmp_path: Path) -> None:
        kind(bert_config()).save_pretrained(tmp_path)
        if settings:
            tokenizer().save_pretrained(tmp_path)
            (tmp_path / "tokenizer.json").unlink()
        with pytest.raises(ValueError, match=f"'{tmp_path}' has no tokenizer .*save_pretrained"):
            load(str(tmp_path))

    def test_of_bytes_need_no_vocabulary(self, tmp_path: Path) -> None:
        ByT5Tokenizer().save_pretrained(tmp_path)
        assert isinstance(load_tokenizer(str(tmp_path)), ByT5Tokenizer)


class TestSentenceEncoders:
    @pytest.fixture(scope="class")
    def encoder(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        package = pytest.importorskip("sentence_transformers", reason="it is not installed")
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

        folder = tmp_path_factory.mktemp("encoder")
        torch.manual_seed(0)
        BertModel(bert_config(initializer_range=0.5)).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        body = Transformer(str(folder), max_seq_length=6)
        width = body.model.config.hidden_size
        modules = [body, Pooling(width, "mean"), Dense(width, 5), Normalize()]
        return package.SentenceTransformer(modules=modules, device="cpu")

    def test_tokens_give_the_embedding(self, encoder: Any) -> None:
        model, words = load_source(encoder, None)
        assert words is not None
        batch = words(TEXTS, padding=True, truncation=True, return_tensors="pt")
        assert batch["input_ids"].shape == (3, 6)  # as many as the encoder takes
        found = model(**batch)["sentence_embedding"].detach().numpy()
        np.testing.assert_allclose(found, encoder.encode(TEXTS), atol=1e-5)
        encoder.truncate_dim = 3
        model, _ = load_source(encoder, None)
        found = model(**batch)["sentence_embedding"].detach().numpy()
        np.testing.assert_allclose(found, encoder.encode(TEXTS), atol=1e-5)
        encoder.truncate_dim = None

    @pytest.mark.slow
    def test_onnx_runtime_alone_gives_the_embedding(self, encoder: Any, tmp_path: Path) -> None:
        pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
        runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
        encoder.save_pretrained(str(tmp_path / "encoder"))
        report = export(tmp_path / "encoder", tmp_path / "served")
        assert report.largest_difference <= 1e-4
        words = AutoTokenizer.from_pretrained(tmp_path / "served")
        session = runtime.InferenceSession(tmp_path / "served" / report.file)
        batch = words(TEXTS, padding=True, truncation=True, return_tensors="np")
        names = [one.name for one in session.get_inputs()]
        [found] = session.run(None, {name: batch[name] for name in names})
        np.testing.assert_allclose(found, encoder.encode(TEXTS), atol=1e-5)

    def test_what_cannot_be_exported_is_named(self, encoder: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="data.*SentenceEncoder.*int8"):
            export(encoder, tmp_path / "served", data="texts.csv", int8=True)
        with pytest.raises(ValueError, match="Transformer, Dense"):
            SentenceEncoder([encoder[0], encoder[2]])
        encoder[1].include_prompt = False
        with pytest.raises(ValueError, match="include_prompt=False"):
            SentenceEncoder(encoder)
        encoder[1].include_prompt = True
