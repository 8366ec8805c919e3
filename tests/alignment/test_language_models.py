"""Language models with different tokenizers, against float64 sums over the text's own tokens."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from other_ids import losses, run
from tokenizers import Tokenizer, processors
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from vocabularies import KINDS, wrapped

from hf_distill import cache_teacher_outputs, check_pair
from hf_distill.alignment import BothEncodings, TeacherReader, encode_texts_for_teacher
from hf_distill.alignment.blocks import encode_block_for_teacher, spans_of_texts
from hf_distill.alignment.language_models import CHUNKS, STUDENT_CHUNKS, ChunkAlignment
from hf_distill.heads import CausalLMHead
from hf_distill.tasks.language_modeling import BlockCollator

TEXTS = [
    "Paris lies on the river, and hello to the people.",
    "hello shell helpful hell",
    "unhelpful people live on the river",
    "The price was 12.50 and the 😀 Łódź helpful",
]


def model(tokenizer: PreTrainedTokenizerFast, seed: int, layers: int = 1) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        initializer_range=0.4,
        **{f"{kind}_pdrop": 0.0 for kind in ("attn", "embd", "resid")},
        **{f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")},
    )
    return GPT2LMHeadModel(config).eval()


def rows(tokenizer: PreTrainedTokenizerFast) -> Dataset:
    encoded = Dataset.from_dict({"text": TEXTS}).map(lambda row: tokenizer(row["text"]))
    return encoded.add_column("labels", encoded["input_ids"])


def log_probs(lm: nn.Module, ids: list[int]) -> np.ndarray:
    """Of each token but the first, given those before it."""
    with torch.no_grad():
        logits = lm(torch.tensor([ids])).logits[0].double()
    return logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def chunk_sums(lm: nn.Module, ids: list[int], chunks: list[int]) -> list[float]:
    values = log_probs(lm, ids)
    count = max(chunks) + 1
    return [sum(values[i - 1] for i, c in enumerate(chunks) if c == n) for n in range(count)]


def expected(student: nn.Module, teacher: nn.Module, data: Dataset, temperature: float) -> float:
    """Mean over chunks of T times the divergence of two coins."""
    found = []
    for row in data:
        ours = chunk_sums(student, row["input_ids"], row[STUDENT_CHUNKS])
        theirs = chunk_sums(teacher, row["teacher_input_ids"], row[CHUNKS])
        for a, b in zip(ours, theirs, strict=True):
            q, p = math.exp(a / temperature), math.exp(b / temperature)
            one = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            found.append(temperature * one)
    return float(np.mean(found))


PAIRS = [("byte_level", "unigram"), ("word_piece", "byte_level"), ("byte_fallback", "characters")]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_loss_is_that_of_the_chunks_probabilities(ours: str, theirs: str, tmp_path: Path) -> None:
    words, others = KINDS[ours](), KINDS[theirs]()
    data = encode_texts_for_teacher(rows(words), words, others)
    student, teacher = model(words, 1), model(others, 2)
    trainer = run(
        tmp_path,
        student,
        teacher_model=teacher,
        train_dataset=data,
        processing_class=words,
        data_collator=BlockCollator(words),
        teacher_processing_class=others,
        teacher_check_samples=0,
        temperature=3.0,
        per_device_train_batch_size=len(TEXTS),
        evaluate=False,
    )
    found = trainer.state.log_history[0]["loss_prediction"]
    assert found == pytest.approx(expected(student, teacher, data, 3.0), rel=1e-4)


def test_the_same_model_and_tokenizer_have_no_loss(tmp_path: Path) -> None:
    """And every token but the first, which nothing predicts, is a chunk."""
    words = KINDS["byte_level"]()
    content = json.loads(words.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    a, b = vocabulary["he"], vocabulary["hel"]
    vocabulary["he"], vocabulary["hel"] = b, a
    others = wrapped(Tokenizer.from_str(json.dumps(content)))
    data = encode_texts_for_teacher(rows(words), words, others)
    for row in data:
        text = len(row["input_ids"]) - 2
        assert row[STUDENT_CHUNKS] == [-1, *range(text), -1]
        assert row[CHUNKS] == [-1, *range(text)]
        assert {a, b} & {*row["input_ids"]} or row["input_ids"][:-1] == row["teacher_input_ids"]
    student = model(words, 1)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher.transformer.wte.weight[[a, b]] = student.transformer.wte.weight[[b, a]]
    trainer = run(
        tmp_path,
        student,
        teacher_model=teacher,
        train_dataset=data,
        processing_class=words,
        data_collator=BlockCollator(words),
        teacher_processing_class=others,
        teacher_check_samples=0,
        distillation_loss_weight=1.0,
        optim="sgd",
        evaluate=False,
    )
    assert trainer.state.log_history[0]["loss_prediction"] == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(trainer.model.lm_head.weight, student.lm_head.weight, atol=1e-6)


@pytest.mark.parametrize("top_k", [None, 8, 1])
def test_cached_outputs_are_those_of_a_live_teacher(top_k: int | None, tmp_path: Path) -> None:
    words, others = KINDS["word_piece"](), KINDS["byte_level"]()
    data = encode_texts_for_teacher(rows(words), words, others)
    student, teacher = model(words, 1), model(others, 2)
    common: dict[str, Any] = {
        "processing_class": words,
        "data_collator": BlockCollator(words),
        "teacher_processing_class": others,
        "teacher_check_samples": 0,
        "evaluate": False,
    }
    live = run(tmp_path, student, teacher_model=teacher, train_dataset=data, **common)
    stored = cache_teacher_outputs(
        teacher,
        data,
        processing_class=words,
        data_collator=BlockCollator(words),
        teacher_processing_class=others,
        output_dir=tmp_path / "stored",
        dtype="float32",
        top_k=top_k,
        use_cpu=True,
    )
    cached = run(tmp_path, student, teacher_model=None, train_dataset=stored, **common)
    for one, other in zip(losses(live), losses(cached), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_micro_batches_have_the_gradient_of_the_whole_step(tmp_path: Path) -> None:
    """Texts have different numbers of chunks, and some have tokens without label."""
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    data = encode_texts_for_teacher(rows(words), words, others)
    prompts = [[-100] * (3 * i) + row["labels"][3 * i :] for i, row in enumerate(data)]
    data = data.remove_columns("labels").add_column("labels", prompts)
    student, teacher = model(words, 1), model(others, 2)
    weights = []
    for size in (4, 2, 1):
        trainer = run(
            tmp_path,
            student,
            teacher_model=teacher,
            train_dataset=data,
            processing_class=words,
            data_collator=BlockCollator(words),
            teacher_processing_class=others,
            teacher_check_samples=0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_steps=2,
            optim="sgd",
            learning_rate=0.1,
            evaluate=False,
        )
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    for other in weights[1:]:
        assert torch.allclose(weights[0], other, atol=2e-6)
    assert not torch.allclose(
        weights[0], torch.cat([p.flatten() for p in student.parameters()]), atol=1e-4
    )


def test_chunks_with_a_token_without_label_do_not_count() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5]]),
        "labels": torch.tensor([[-100, -100, 3, 4, 5]]),
        "attention_mask": torch.ones(1, 5, dtype=torch.long),
        "teacher_input_ids": torch.tensor([[7, 8, 9]]),
        STUDENT_CHUNKS: torch.tensor([[-1, 0, 0, 1, 2]]),
        CHUNKS: torch.tensor([[0, 1, 2]]),
    }
    alignment = ChunkAlignment(CausalLMHead())
    assert int(alignment.count_rows(batch)) == 2
    unlabelled = {k: v for k, v in batch.items() if k != "labels"}
    assert int(alignment.count_rows(unlabelled)) == 3
    assert alignment.teacher_labels(batch)["labels"].tolist() == [[7, 8, 9]]


def test_mse_between_chunks_is_refused(tmp_path: Path) -> None:
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    data = encode_texts_for_teacher(rows(words), words, others)
    with pytest.raises(ValueError, match="distillation_loss='mse'"):
        run(
            tmp_path,
            model(words, 1),
            teacher_model=model(others, 2),
            train_dataset=data,
            processing_class=words,
            data_collator=BlockCollator(words),
            teacher_processing_class=others,
            distillation_loss="mse",
        )


def test_data_that_is_not_the_texts_is_refused() -> None:
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    data = rows(words)
    with pytest.raises(ValueError, match=r"column='document'.*'document'"):
        encode_texts_for_teacher(data, words, others, column="document")
    with pytest.raises(ValueError, match=r"no column 'input_ids'.*keep them"):
        encode_texts_for_teacher(data.remove_columns("input_ids"), words, others)
    with pytest.raises(ValueError, match=r"column='attention_mask'.*List.*the texts"):
        encode_texts_for_teacher(data, words, others, column="attention_mask")
    last = len(data) - 1
    gap = data.remove_columns("text").add_column("text", [*["a"] * last, None])
    with pytest.raises(ValueError, match=rf"Row {last} has nothing in the column 'text'"):
        encode_texts_for_teacher(gap, words, others)
    stream: Any = data.to_iterable_dataset()
    with pytest.raises(ValueError, match=r"IterableDataset.*from_generator"):
        encode_texts_for_teacher(stream, words, others)
    moved = data.map(lambda row: {"input_ids": row["input_ids"][:3] + row["input_ids"][4:]})
    with pytest.raises(ValueError, match=r"input_ids of row 0.*token 3"):
        encode_texts_for_teacher(moved, words, others)
    strange = Dataset.from_dict({"text": ["ЖЖ", "ЩЩ"]}).map(lambda row: words(row["text"]))
    with pytest.raises(ValueError, match="teacher_processing_class"):
        encode_texts_for_teacher(strange, words, KINDS["characters"]())


def test_a_text_that_was_cut_keeps_its_chunks() -> None:
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    whole = encode_texts_for_teacher(rows(words), words, others)
    cut = Dataset.from_dict({"text": TEXTS}).map(
        lambda row: words(row["text"], truncation=True, max_length=12)
    )
    cut = encode_texts_for_teacher(cut, words, others)
    assert cut[0]["input_ids"][-1] == words.eos_token_id
    assert cut[0][STUDENT_CHUNKS][:11] == whole[0][STUDENT_CHUNKS][:11]
    short = encode_texts_for_teacher(rows(words), words, others, max_length=6)
    assert all(len(ids) <= 6 for ids in short["teacher_input_ids"])
    assert max(short[1][STUDENT_CHUNKS]) >= 0


def test_between_two_texts_the_teacher_has_its_own_end_of_a_text() -> None:
    words, others = KINDS["word_piece"](), KINDS["byte_level"]()
    texts = ["hello shell", "hell helpful"]
    encoding = words(texts, add_special_tokens=False)
    lengths = [len(ids) + 1 for ids in encoding["input_ids"]]
    (spans,) = spans_of_texts(texts, encoding, words, lengths, join=True)
    row = encode_block_for_teacher("".join(texts), spans, TeacherReader(others), masked=False)
    first, second = (others(text, add_special_tokens=False)["input_ids"] for text in texts)
    between = [others.bos_token_id, *first, others.eos_token_id, *second]
    assert row["teacher_input_ids"] == between
    begin = 2 + len(first)
    assert row[CHUNKS][begin - 1] == -1 and min(row[CHUNKS][begin:]) >= 0
    assert max(row[CHUNKS]) == max(row[STUDENT_CHUNKS])


def test_student_and_teacher_stay_as_they_are() -> None:
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    before = copy.deepcopy(rows(words).to_dict())
    after = encode_texts_for_teacher(rows(words), words, others).to_dict()
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_the_chunk_of_a_token_that_nothing_predicts_is_left_out(side: str) -> None:
    """Of a tokenizer without a token in front of the text."""
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    bare = words if side == "student" else others
    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    framed = encode_texts_for_teacher(
        rows(KINDS["byte_level"]()), KINDS["byte_level"](), KINDS["unigram"]()
    )
    data = encode_texts_for_teacher(rows(words), words, others)
    for row, other in zip(data, framed, strict=True):
        assert row[STUDENT_CHUNKS][0] == row[CHUNKS][0] == -1
        ours, theirs = (
            (one[STUDENT_CHUNKS], one[CHUNKS])[side == "teacher"] for one in (row, other)
        )
        assert {*ours} == {*theirs} - {0}
        first = [i for i, chunk in enumerate(other[STUDENT_CHUNKS]) if chunk == 0]
        moved = [i - (side == "student") for i in first]
        assert all(row[STUDENT_CHUNKS][i] == -1 for i in moved)


def test_check_pair_tells_by_what_they_are_aligned() -> None:
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    report = check_pair(
        model(others, 2),
        model(words, 1),
        processing_class=words,
        teacher_processing_class=others,
    )
    found = {finding.about: finding.message for finding in report.findings}
    assert report.ok
    assert "chunks of text" in found["tokenizer"]
    assert "vocabulary" not in found  # no entry is compared with another


def test_nothing_is_said_of_entries_that_are_not_compared(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    data = encode_texts_for_teacher(rows(words), words, others)
    given: dict[str, Any] = {
        "processing_class": words,
        "teacher_processing_class": others,
        "data_collator": BlockCollator(words),
    }
    teacher = model(others, 2)
    stored = cache_teacher_outputs(teacher, data, output_dir=tmp_path / "a", use_cpu=True, **given)
    caplog.set_level("INFO")
    for one, taught in ((teacher, data), (None, stored)):
        options: dict[str, Any] = {"teacher_model": one, "train_dataset": taught, **given}
        run(tmp_path, model(words, 1), evaluate=False, teacher_check_samples=0, **options)
    assert "tokenizer" in caplog.text and "are compared" not in caplog.text


def test_padding_on_the_left_moves_the_chunks_along() -> None:
    words, others = KINDS["byte_level"](), KINDS["unigram"]()
    data = encode_texts_for_teacher(rows(words), words, others)
    alignment, student = ChunkAlignment(CausalLMHead()), model(words, 1)
    teacher = model(others, 2)
    found = []
    for side in ("right", "left"):
        others.padding_side = side
        words.padding_side = side

        def collate(given: list[Any]) -> Any:
            padded: Any = words.pad([{"input_ids": row["input_ids"]} for row in given])
            return {name: torch.tensor(value) for name, value in padded.items()}

        batch = BothEncodings(collate, others, alignment)(list(data))
        outputs = []
        for lm, own in ((student, batch), (teacher, alignment.teacher_batch(batch))):
            mask = own["attention_mask"]
            places = (mask.cumsum(-1) - 1).clamp(min=0)
            with torch.no_grad():
                outputs.append(lm(own["input_ids"], attention_mask=mask, position_ids=places))
        aligned = alignment.logits(batch, *outputs, temperature=2.0)
        assert aligned.row_mask is not None
        found.append([one[aligned.row_mask] for one in (aligned.student, aligned.teacher)])
    for right, left in zip(*found, strict=True):
        assert torch.allclose(right, left, atol=1e-4)
