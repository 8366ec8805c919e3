"""Exported models: the original's logits and scores, int8 within the tolerance or refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import bert_config, tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
)
from zoo import zoo_model

from hf_distill import QuestionAnswerer, create_student
from hf_distill.exporting import export
from hf_distill.exporting.int8 import BLOCKS, DYNAMIC, STATIC, Quantization, quantize
from hf_distill.exporting.onnx import export_onnx, largest_difference, probe
from hf_distill.loading import load_fine_tuned, load_model, load_teacher
from hf_distill.onnx_model import ExportedModel, exported_file, load_exported
from hf_distill.reports.comparison import Latency

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

CONTEXT = "the seine runs through paris. berlin lies on the spree, and rome on the tiber."
QUESTIONS = {
    "what runs through paris?": "the seine",
    "what lies on the spree?": "berlin",
    "where does rome lie?": "on the tiber",
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a question-answering model that knows its data by heart."""
    folder = tmp_path_factory.mktemp("reader")
    words = tokenizer()
    torch.manual_seed(0)
    model = BertForQuestionAnswering(bert_config(width=32, max_position_embeddings=512))
    batch = words(list(QUESTIONS), [CONTEXT] * len(QUESTIONS), padding=True, return_tensors="pt")
    starts = [CONTEXT.index(answer) for answer in QUESTIONS.values()]
    ends = [s + len(a) - 1 for s, a in zip(starts, QUESTIONS.values(), strict=True)]
    labels = {
        name: torch.tensor([batch.char_to_token(i, c, 1) for i, c in enumerate(characters)])
        for name, characters in (("start_positions", starts), ("end_positions", ends))
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, **labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its questions, in the layout of SQuAD."""
    questions = [
        {
            "id": str(i),
            "question": question,
            "answers": [{"text": answer, "answer_start": CONTEXT.index(answer)}],
        }
        for i, (question, answer) in enumerate(QUESTIONS.items())
    ]
    path = tmp_path_factory.mktemp("data") / "dev.json"
    content = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": questions}]}]}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Names of the files that ONNX Runtime opened for ``served``."""
    return []


@pytest.fixture(scope="module")
def served(
    reader: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, opened: list[str]
) -> Path:
    original = onnxruntime.InferenceSession

    def session(path: str, *args: Any, **options: Any) -> Any:
        opened.append(Path(path).name)
        return original(path, *args, **options)

    folder = tmp_path_factory.mktemp("served") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", session)
        export(reader, folder, data=data)
    return folder


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        outputs = model(**inputs)
    return np.concatenate([outputs.start_logits.numpy(), outputs.end_logits.numpy()])


@pytest.mark.parametrize(("rows", "length"), [(1, 3), (2, 40), (5, 200)])
def test_any_batch_and_length_gives_the_logits_of_the_original(
    reader: Path, served: Path, rows: int, length: int
) -> None:
    original = BertForQuestionAnswering.from_pretrained(reader).eval()
    inputs = probe(original, tokenizer(), rows, length)
    assert inputs["input_ids"].shape == (rows, length)
    exported = load_exported(served)
    np.testing.assert_allclose(
        logits(exported, inputs), logits(original, inputs), rtol=1e-4, atol=1e-4
    )


def test_its_threads_do_not_wait_actively_after_a_call(reader: Path, served: Path) -> None:
    """Else what is timed by turns with it shares its cores with them."""
    torch.set_num_threads(2)
    exported = load_exported(served)
    inputs = probe(BertForQuestionAnswering.from_pretrained(reader), tokenizer(), 5, 200)
    waiting = []
    for _ in range(5):
        exported(**inputs)
        began = time.process_time()
        time.sleep(0.05)
        waiting.append(time.process_time() - began)
    assert min(waiting) < 0.002


def test_a_user_needs_nothing_but_onnx_runtime_and_the_tokenizer(
    reader: Path, served: Path
) -> None:
    words = AutoTokenizer.from_pretrained(served)
    batch = words(list(QUESTIONS), [CONTEXT] * len(QUESTIONS), padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(served / "onnx" / "model.onnx")
    names = [one.name for one in session.get_inputs()]
    starts, ends = session.run(None, {name: batch[name] for name in names})
    for i, answer in enumerate(QUESTIONS.values()):
        first = batch.token_to_chars(i, int(starts[i].argmax())).start
        last = batch.token_to_chars(i, int(ends[i].argmax())).end
        assert CONTEXT[first:last] == answer


def test_the_folder_is_used_like_that_of_the_original(reader: Path, served: Path) -> None:
    asked = [{"question": question, "context": CONTEXT} for question in QUESTIONS]
    before = [one for [one] in QuestionAnswerer.from_pretrained(str(reader))(asked)]
    after = [one for [one] in QuestionAnswerer.from_pretrained(str(served))(asked)]
    assert [one.text for one in after] == list(QUESTIONS.values())
    for one, other in zip(before, after, strict=True):
        assert (one.text, one.start, one.end) == (other.text, other.start, other.end)
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_the_report_scores_both_and_the_loss_is_that_of_the_original(served: Path) -> None:
    report = json.loads((served / "export.json").read_text())
    before, after = report["quality"]["original"], report["quality"]["exported"]
    assert before["f1"] == after["f1"] == 100
    assert before["loss"] == pytest.approx(after["loss"], rel=1e-3)
    assert 0 < before["loss"] < 0.5
    assert report["metric"] == "f1"
    assert report["largest_difference"] <= 1e-4
    assert set(report["latencies"]) == {
        f"batch {batch} x {length} tokens" for batch in (1, 8) for length in (128, 384)
    }
    assert str(served) not in (served / "export.json").read_text()


def test_int8_is_smaller_and_scored(
    reader: Path, served: Path, data: Path, tmp_path: Path, quick: None
) -> None:
    report = export(reader, tmp_path / "int8", int8=True, data=data, tolerance=5)
    assert report.file == "onnx/model_int8.onnx"
    assert report.settings == DYNAMIC[0].name
    assert [path.name for path in (tmp_path / "int8" / "onnx").iterdir()] == ["model_int8.onnx"]
    assert report.quality["exported"]["f1"] >= 95
    assert report.sizes["exported"] < (served / "onnx" / "model.onnx").stat().st_size


@pytest.mark.parametrize("way", [*DYNAMIC, *STATIC, BLOCKS], ids=lambda way: way.name)
def test_every_way_rounds_and_stays_close(
    reader: Path, served: Path, tmp_path: Path, way: Quantization
) -> None:
    original = BertForQuestionAnswering.from_pretrained(reader).eval()
    words = tokenizer()
    batches = [dict(words(question, CONTEXT, return_tensors="pt")) for question in QUESTIONS]
    quantize(served / "onnx" / "model.onnx", tmp_path / "q.onnx", way, batches)
    quantized = ExportedModel.load(tmp_path / "q.onnx", load_exported(served).config)
    for batch in batches:
        right = logits(original, batch)
        difference = np.abs(logits(quantized, batch) - right).mean()
        share = difference / np.abs(right - right.mean()).mean()
        assert 1e-4 < share < (0.4 if way.static else 0.2)


def test_embeddings_have_a_scale_per_token(served: Path, reader: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    quantize(served / "onnx" / "model.onnx", tmp_path / "q.onnx", DYNAMIC[0])
    tensors = {
        one.name: onnx.numpy_helper.to_array(one)
        for one in onnx.load(tmp_path / "q.onnx").graph.initializer
    }
    table = next(name for name in tensors if name.endswith("word_embeddings.weight_quantized"))
    assert table.removesuffix("_quantized") not in tensors  # it is stored once
    assert tensors[table].dtype == np.int8
    scales = tensors[table.replace("_quantized", "_scale")]
    original = BertForQuestionAnswering.from_pretrained(reader).bert.embeddings.word_embeddings
    right = original.weight.detach().numpy()
    largest = np.abs(right).max(axis=1, keepdims=True)
    np.testing.assert_allclose(scales, np.where(largest == 0, 1, largest / 127), rtol=1e-6)
    assert (np.abs(tensors[table] * scales - right) <= 0.501 * scales).all()


def test_one_scale_per_output_keeps_rows_of_different_sizes(tmp_path: Path, reader: Path) -> None:
    """With one scale per matrix a row of small weights would be rounded away."""
    onnx = pytest.importorskip("onnx")
    model = BertForQuestionAnswering.from_pretrained(reader).eval()
    dense = model.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        dense.weight[::2] *= 1000
    export_onnx(model, tokenizer(), tmp_path / "full.onnx")

    def error(per_channel: bool) -> float:
        way = DYNAMIC[0]._replace(per_channel=per_channel)
        quantize(tmp_path / "full.onnx", tmp_path / "q.onnx", way)
        tensors = {t.name: t for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
        for name, tensor in tensors.items():
            values = onnx.numpy_helper.to_array(tensor)
            if name.endswith("_quantized") and values.shape == tuple(dense.weight.shape[::-1]):
                scale, zero = (
                    onnx.numpy_helper.to_array(tensors[name.replace("_quantized", part)])
                    for part in ("_scale", "_zero_point")
                )
                found = (values.astype(np.float32) - zero.astype(np.float32)) * scale
                small = dense.weight.detach().numpy().T[:, 1::2]
                if np.abs(found[:, ::2]).max() > 10:
                    return float(np.abs(found[:, 1::2] - small).max() / np.abs(small).max())
        raise AssertionError("no quantized matrix was found")

    assert error(per_channel=True) < 0.01
    assert error(per_channel=False) > 0.5


@pytest.fixture
def quick(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the export of ``reader`` that is there, and measure no speed."""
    module = sys.modules["hf_distill.exporting.export"]

    def copied(model: Any, tokenizer: Any, file: Path) -> tuple[ExportedModel, float]:
        file.write_bytes((served / "onnx" / "model.onnx").read_bytes())
        return ExportedModel.load(file, load_exported(served).config), 0.0

    monkeypatch.setattr(module, "export_onnx", copied)
    times = {"original": Latency(2, (2, 2), 9), "exported": Latency(1, (1, 1), 9)}
    monkeypatch.setattr(module, "latencies_by_shape", lambda *models: {"batch 1": times})


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """F1 to give out, one after the other, instead of those of the models."""
    given: list[float] = []
    module = sys.modules["hf_distill.exporting.export"]
    original = module.score_model

    def score(*args: Any, **options: Any) -> Any:
        scored = original(*args, **options)
        return replace(scored, metrics={**scored.metrics, "f1": given.pop(0)})

    monkeypatch.setattr(module, "score_model", score)
    return given


def test_the_int8_model_that_loses_least_is_written(
    reader: Path, served: Path, data: Path, tmp_path: Path, scores: list[float], quick: None
) -> None:
    scores += [90, 88, 89.5, 89.5, 89, 85, 80]  # of the original first
    report = export(
        reader, tmp_path / "int8", int8=True, data=data, calibration_data=data, tolerance=1
    )
    assert [one.settings for one in report.attempts] == [way.name for way in DYNAMIC + STATIC]
    assert [one.loss for one in report.attempts] == [2, 0.5, 0.5, 1, 5, 10]
    assert report.settings == DYNAMIC[1].name  # the first of two that are as good
    assert report.quality["exported"] == report.attempts[1].quality
    assert report.quality["exported"]["f1"] == 89.5
    assert [path.name for path in (tmp_path / "int8" / "onnx").iterdir()] == ["model_int8.onnx"]
    onnx = pytest.importorskip("onnx")
    quantize(served / "onnx" / "model.onnx", tmp_path / "right.onnx", DYNAMIC[1])
    written, right = (
        sorted((one.name, one.raw_data) for one in onnx.load(path).graph.initializer)
        for path in (tmp_path / "int8" / "onnx" / "model_int8.onnx", tmp_path / "right.onnx")
    )
    assert written == right


def test_blocks_are_tried_if_all_else_loses_too_much(
    reader: Path, data: Path, tmp_path: Path, scores: list[float], quick: None
) -> None:
    scores += [90, 88, 89, 87, 89.9]
    report = export(reader, tmp_path / "int8", int8=True, data=data, tolerance=0.5)
    assert [one.settings for one in report.attempts] == [way.name for way in (*DYNAMIC, BLOCKS)]
    assert report.settings == BLOCKS.name


def test_nothing_more_is_tried_after_settings_that_lose_nothing(
    reader: Path, data: Path, tmp_path: Path, scores: list[float], quick: None
) -> None:
    scores += [90, 89.5, 90.5]
    report = export(reader, tmp_path / "int8", int8=True, data=data)
    assert [one.loss for one in report.attempts] == [0.5, -0.5]
    assert report.settings == DYNAMIC[1].name


def test_the_file_is_opened_once(served: Path, opened: list[str]) -> None:
    assert opened == ["model.onnx"]


def test_an_int8_model_that_loses_too_much_is_refused_with_what_was_tried(
    reader: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    def broken(source: Path, target: Path, how: Any, calibration: Any = ()) -> None:
        import onnx

        model = onnx.load(source)
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim == 2:
                noise = np.random.default_rng(0).normal(size=values.shape).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(noise, tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(sys.modules["hf_distill.exporting.export"], "quantize", broken)
    with pytest.raises(ValueError, match=r"tolerance=0\.5") as caught:
        export(reader, tmp_path / "int8", int8=True, data=data, tolerance=0.5)
    assert all(re.search(rf"{way.name}: \d+\.\d\d", str(caught.value)) for way in DYNAMIC)
    assert list(tmp_path.iterdir()) == []


def test_logits_that_differ_are_found(
    reader: Path, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, inputs: Any) -> Any:
        return pytest.importorskip("onnx_ir").load(served / "onnx" / "model.onnx")

    for exporter in ("_with_torch", "_with_transformers"):
        monkeypatch.setattr(f"hf_distill.exporting.onnx.{exporter}", wrong)
    model = BertForQuestionAnswering.from_pretrained(reader)
    largest = float(max(abs(logits(model.eval(), probe(model, None, 3, 33)).max()), 1))
    with torch.no_grad():
        model.qa_outputs.bias[0] += 0.01 * largest
    with pytest.raises(RuntimeError, match=r"differ by 0\.0\d+, more than 0\.0001"):
        export(model, tmp_path / "served", processing_class=tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_nan_is_no_small_difference(reader: Path, served: Path) -> None:
    model = BertForQuestionAnswering.from_pretrained(reader).eval()
    with torch.no_grad():
        model.qa_outputs.bias[0] = torch.nan
    with pytest.raises(RuntimeError, match="or those of the original, are NaN"):
        largest_difference(model, tokenizer(), load_exported(served))


def test_labels_of_texts_and_their_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=97, dim=16, n_heads=2, hidden_dim=32, n_layers=1, num_labels=3,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    model = DistilBertForSequenceClassification(config)
    training, device = model.training, model.device
    rows = Dataset.from_dict({"text": ["a b c", "dogs and cats", "?"], "label": [0, 1, 2]})
    export(model, tmp_path / "served", processing_class=tokenizer(), data=rows)
    assert (model.training, model.device) == (training, device)
    exported = load_exported(tmp_path / "served")
    inputs = dict(tokenizer()(rows["text"][:], padding=True, return_tensors="pt"))
    labels = torch.tensor(rows["label"][:])
    with torch.no_grad():
        expected = model.eval()(inputs["input_ids"], inputs["attention_mask"], labels=labels)
    found = exported(**inputs, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-4)
    assert exported.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("place", ["the working directory", "a link", "a new folder of a new one"])
def test_wherever_there_is_nothing_yet(
    place: str, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is there already stays that folder: it may be the root of a volume."""
    folder, given = tmp_path / "there", "a/b"
    if place != "a new folder of a new one":
        folder.mkdir()
        (folder / ".export.0123456789ab.tmp").mkdir()  # of a run that was killed
        given = "." if place == "the working directory" else str(tmp_path / "link")
        (tmp_path / "link").symlink_to(folder)
        monkeypatch.chdir(folder)
    else:
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / given
    before = folder.stat().st_ino if folder.exists() else None
    export(reader, given)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert {"config.json", "tokenizer.json", "onnx", "export.json"} <= names
    assert (folder / "onnx" / "model.onnx").is_file()
    assert before in (None, folder.stat().st_ino)


def test_images_keep_the_settings_of_their_pixels(tmp_path: Path) -> None:
    model = zoo_model("image-classification", "vit", seed=0, layers=1)
    model.save_pretrained(tmp_path / "model")
    settings = '{"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3]}'
    (tmp_path / "model" / "preprocessor_config.json").write_text(settings)
    export(tmp_path / "model", tmp_path / "served")
    assert (tmp_path / "served" / "preprocessor_config.json").read_text() == settings


class TestRefusals:
    def test_int8_needs_data(self, reader: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="data"):
            export(reader, tmp_path / "served", int8=True)

    def test_a_folder_that_holds_something_is_left_alone(
        self, reader: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="output_dir"):
            export(reader, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_a_decoder(self, tmp_path: Path) -> None:
        config = GPT2Config(vocab_size=97, n_embd=16, n_head=2, n_layer=1, n_positions=64)
        model = AutoModelForCausalLM.from_config(config)
        with pytest.raises(ValueError, match="GPT2LMHeadModel"):
            export(model, tmp_path / "served", processing_class=tokenizer())

    def test_a_model_that_writes_is_not_asked_for_its_task(self, tmp_path: Path) -> None:
        model = zoo_model("summarization", "t5", seed=0)
        with pytest.raises(ValueError, match="T5ForConditionalGeneration cannot be exported"):
            export(model, tmp_path / "served", processing_class=tokenizer(), task="translation")

    def test_calibration_and_tolerance(self, reader: Path, data: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="calibration_data.*int8"):
            export(reader, tmp_path / "a", data=data, calibration_data=data)
        with pytest.raises(ValueError, match="tolerance=-1"):
            export(reader, tmp_path / "a", data=data, tolerance=-1)

    def test_an_exported_model_again(self, served: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="model=.* is an exported model"):
            export(served, tmp_path / "again")

    def test_an_exported_model_neither_teaches_nor_learns(
        self, served: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=f"{served} is an exported model"):
            create_student(served, num_hidden_layers=1)
        with pytest.raises(ValueError, match=f"{served} is an exported model"):
            load_teacher(served, "AutoModelForQuestionAnswering", "question-answering")
        with pytest.raises(ValueError, match=f"{served} is an exported model"):
            load_model("AutoModelForQuestionAnswering", str(served))

    @pytest.mark.parametrize("content", [b"", b"no ONNX"])
    def test_a_damaged_file_is_named(self, content: bytes, served: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(served, tmp_path / "copied")
        (copied / "onnx" / "model.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=r"copied/onnx/model\.onnx"):
            QuestionAnswerer.from_pretrained(str(copied))

    def test_another_task_than_the_model_s(self, reader: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="task='fill-mask'.*question-answering"):
            export(reader, tmp_path / "served", task="fill-mask")

    def test_no_inputs_at_a_time(self, reader: Path, data: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="batch_size=0"):
            export(reader, tmp_path / "served", data=data, batch_size=0)

    def test_several_exported_models_in_one_folder(self, served: Path, tmp_path: Path) -> None:
        for name in ("model.onnx", "other.onnx"):
            (tmp_path / name).write_bytes((served / "onnx" / "model.onnx").read_bytes())
        with pytest.raises(ValueError, match=r"model\.onnx, other\.onnx"):
            exported_file(tmp_path)

    def test_another_task_or_number_format(self, served: Path) -> None:
        with pytest.raises(ValueError, match="token-classification"):
            load_fine_tuned(
                "AutoModelForTokenClassification", str(served), task="token-classification"
            )
        with pytest.raises(ValueError, match="bfloat16"):
            QuestionAnswerer.from_pretrained(str(served), dtype="bfloat16")

    def test_a_batch_without_an_input(self, served: Path) -> None:
        exported = load_exported(served)
        assert exported is not None
        with pytest.raises(ValueError, match="attention_mask"):
            exported(input_ids=torch.ones(1, 4, dtype=torch.long))
