"""Masked language models: pieces that both sides have, over the entries that both have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from other_ids import run
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast
from vocabularies import KINDS, SENTENCES

from hf_distill.alignment import encode_texts_for_teacher
from hf_distill.alignment.language_models import CHUNKS, STUDENT_CHUNKS, PieceAlignment
from hf_distill.alignment.shared_entries import entries, shared_entries
from hf_distill.heads import MaskedLMHead
from hf_distill.tasks.language_modeling import BlockCollator

TEXTS = ["hello helpful people lie on the river", "hell shell unhelpful the capital 987"]
OURS, THEIRS = "word_piece", "continued"


def model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(tokenizer),
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    return BertForMaskedLM(config).eval()


def rows(words: PreTrainedTokenizerFast, others: PreTrainedTokenizerFast) -> Dataset:
    """Every third token is hidden."""
    data = Dataset.from_dict({"text": TEXTS}).map(lambda row: words(row["text"]))
    data = encode_texts_for_teacher(data, words, others, masked=True)
    masked = []
    for row in data:
        ids, labels = [*row["input_ids"]], [-100] * len(row["input_ids"])
        for place in range(1, len(ids) - 1, 3):
            ids[place], labels[place] = words.mask_token_id, ids[place]
        masked.append({**row, "input_ids": ids, "labels": labels})
    return Dataset.from_list(masked)


def expected(student: Any, teacher: Any, data: Dataset, temperature: float, ids: Any) -> float:
    words, others = ids
    shared = entries(words).keys() & entries(others).keys()
    ours = [entries(words)[key] for key in sorted(shared)]
    theirs = [entries(others)[key] for key in sorted(shared)]
    found = []
    for row in data:
        hidden = {c for c, y in zip(row[STUDENT_CHUNKS], row["labels"], strict=True) if y != -100}
        hidden -= {-1}
        read = [
            others.mask_token_id if chunk in hidden else one
            for chunk, one in zip(row[CHUNKS], row["teacher_input_ids"], strict=True)
        ]
        with torch.no_grad():
            z_s = student(torch.tensor([row["input_ids"]])).logits[0].double().numpy()
            z_t = teacher(torch.tensor([read])).logits[0].double().numpy()
        for place, chunk in enumerate(row[STUDENT_CHUNKS]):
            alone = row[CHUNKS].count(chunk) == row[STUDENT_CHUNKS].count(chunk) == 1
            if chunk not in hidden or not alone or row["labels"][place] == -100:
                continue
            q = np.exp(z_s[place][ours] / temperature)
            p = np.exp(z_t[row[CHUNKS].index(chunk)][theirs] / temperature)
            p, q = p / p.sum(), q / q.sum()
            found.append(temperature**2 * float((p * np.log(p / q)).sum()))
    assert found
    return float(np.mean(found))


def test_loss_is_that_of_the_shared_entries_where_a_word_is_one_piece(tmp_path: Path) -> None:
    words, others = KINDS[OURS](), KINDS[THEIRS]()
    data = rows(words, others)
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
        per_device_train_batch_size=len(TEXTS),
        temperature=2.0,
        evaluate=False,
    )
    found = trainer.state.log_history[0]["loss_prediction"]
    wanted = expected(student, teacher, data, 2.0, (words, others))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_teacher_does_not_see_what_is_hidden() -> None:
    words, others = KINDS[OURS](), KINDS[THEIRS]()
    alignment = PieceAlignment(MaskedLMHead(), words, others)
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8]]),
        "labels": torch.tensor([[-100, 9, -100, 10]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
        "teacher_input_ids": torch.tensor([[11, 12, 13, 14, 15]]),
        STUDENT_CHUNKS: torch.tensor([[0, 1, 2, -1]]),
        CHUNKS: torch.tensor([[0, 1, 1, 2, -1]]),
    }
    read, mask = alignment.teacher_batch(batch), others.mask_token_id
    assert read["input_ids"].tolist() == [[11, mask, mask, 14, 15]]
    assert read["labels"].tolist() == [[-100, 12, 13, -100, -100]]
    assert int(alignment.count_rows(batch)) == 0  # the hidden word is two pieces of the teacher's
    other = batch | {"labels": torch.tensor([[9, -100, 10, -100]])}
    assert int(alignment.count_rows(other)) == 2


def test_entries_are_known_by_text_however_a_tokenizer_writes_it() -> None:
    for kind in KINDS:
        found = entries(KINDS[kind]())
        assert not {text for _, text in found} & {"<s>", "<pad>", "<mask>"}
    assert (True, "hello") in entries(KINDS["word_piece"]())
    assert (False, "s") in entries(KINDS["word_piece"]())
    assert (False, ".") in entries(KINDS["word_piece"]())
    assert (True, ".") not in entries(KINDS["word_piece"]())
    bytes_ = KINDS["byte_level"]()
    assert entries(bytes_)[(True, "the")] == bytes_.get_vocab()["Ġthe"]
    assert (False, "�") not in entries(bytes_)
    pieces = KINDS["byte_fallback"]()
    assert entries(pieces)[(True, "hell")] == pieces.get_vocab()["▁hell"]


def test_a_tokenizer_shares_all_its_entries_with_itself() -> None:
    for kind in KINDS:
        words = KINDS[kind]()
        ours, theirs = shared_entries(words, words)
        assert ours.tolist() == theirs.tolist() == sorted(entries(words).values())
        assert len(ours) > len(SENTENCES)


def test_too_few_shared_entries_are_refused_with_the_number() -> None:
    words, others = KINDS["word_piece"](), KINDS["byte_fallback"]()
    foreign = {f"ж{i}": i for i in range(4000)}
    vocabulary = {**foreign, "hello": 4000, "##s": 4001}
    strange = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="ж0")), unk_token="ж0"
    )
    with pytest.raises(ValueError, match="teacher_model") as error:
        shared_entries(strange, words)
    assert "share 2 entries" in str(error.value)
    assert f"{2 / len(entries(words)):.1%}" in str(error.value)
    assert len(shared_entries(words, others)[0]) > 10
