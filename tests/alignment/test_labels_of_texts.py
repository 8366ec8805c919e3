"""Labels of texts: the teacher reads its own encoding, and nothing has to be aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from other_ids import TEXTS, losses, run, shuffled, tokenizer, trained, with_other_ids
from transformers import BertForSequenceClassification, DataCollatorForMultipleChoice

from hf_distill import cache_teacher_outputs
from hf_distill.alignment import Alignment, BothEncodings, encode_for_teacher
from hf_distill.heads import MultipleChoiceHead, SequenceClassificationHead

KINDS = {
    "one label": ({"num_labels": 3}, [0, 1, 2, 0, 2, 1, 0, 1], {}),
    "several labels": (
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]] * 4,
        {},
    ),
    "numbers": (
        {"num_labels": 1, "problem_type": "regression"},
        [0.5, -1.0, 2.0, 0.0] * 2,
        {"distillation_loss": "mse"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_other_ids_change_nothing(kind: str, cached: bool, tmp_path: Path) -> None:
    """Bit for bit, for the teacher computes the same."""
    config, labels, options = KINDS[kind]
    words = tokenizer()
    others, new_ids = shuffled(words)
    teacher = trained(BertForSequenceClassification, 1, **config)
    student = trained(BertForSequenceClassification, 2, layers=1, **config)
    rows = Dataset.from_dict({"text": TEXTS, "labels": labels})
    rows = rows.map(lambda row: words(row["text"]))
    both = encode_for_teacher(rows, others)
    theirs = with_other_ids(teacher, new_ids)
    if cached:
        stored: dict[str, Any] = {"dtype": "float32", "use_cpu": True, "processing_class": words}
        rows = cache_teacher_outputs(teacher, rows, output_dir=tmp_path / "one", **stored)
        both = cache_teacher_outputs(
            theirs,
            both,
            output_dir=tmp_path / "other",
            teacher_processing_class=others,
            **stored,
        )
        teacher = theirs = None
    common = {"processing_class": words, "teacher_check_samples": 0, **options}
    expected = run(tmp_path, student, teacher_model=teacher, train_dataset=rows, **common)
    found = run(
        tmp_path,
        student,
        teacher_model=theirs,
        train_dataset=both,
        teacher_processing_class=others,
        **common,
    )
    assert losses(found) == losses(expected)
    assert any("loss_prediction" in entry for entry in losses(found))
    assert any("eval_loss_prediction" in entry for entry in losses(found))
    pairs = zip(found.model.parameters(), expected.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_teachers_side_of_a_batch() -> None:
    """Its own inputs under the names that it knows, and labels if there are any."""
    alignment = Alignment(SequenceClassificationHead())
    theirs = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3)}
    batch = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2)}
    batch |= {f"teacher_{name}": value for name, value in theirs.items()}
    assert alignment.teacher_batch(batch) == theirs
    assert alignment.teacher_batch({**batch, "labels": None}) == theirs
    labels = torch.tensor([3])
    assert alignment.teacher_batch({**batch, "labels": labels}) == {**theirs, "labels": labels}


def test_choices_are_padded_to_the_longest_of_a_batch() -> None:
    words = tokenizer()
    others, _ = shuffled(words)
    pad = others.pad_token_id
    choices = [[[5, 6], [7]], [[8], [9, 10, 11]]]
    rows = [
        {
            "input_ids": [[1], [2, 3]],
            "attention_mask": [[1], [1, 1]],
            "teacher_input_ids": ids,
            "teacher_attention_mask": [[1] * len(one) for one in ids],
            "labels": 1,
        }
        for ids in choices
    ]
    inner = DataCollatorForMultipleChoice(words)
    batch = BothEncodings(inner, others, Alignment(MultipleChoiceHead()))(rows)
    assert batch["input_ids"].shape == (2, 2, 2) and batch["labels"].tolist() == [1, 1]
    assert batch["teacher_input_ids"].tolist() == [
        [[5, 6, pad], [7, pad, pad]],
        [[8, pad, pad], [9, 10, 11]],
    ]
    assert batch["teacher_attention_mask"].tolist() == [
        [[1, 1, 0], [1, 0, 0]],
        [[1, 0, 0], [1, 1, 1]],
    ]


def test_columns_are_asked_for_where_they_are_known() -> None:
    alignment = Alignment(SequenceClassificationHead())
    alignment.check_columns(None)
    alignment.check_columns(["input_ids", "teacher_input_ids"])
    with pytest.raises(ValueError, match="train_dataset has no teacher_input_ids"):
        alignment.check_columns(["input_ids"])
    alignment.check_data(object())  # a stream may not know its columns
    with pytest.raises(ValueError, match="train_dataset has no teacher_input_ids"):
        alignment.check_data(Dataset.from_dict({"input_ids": [[1]]}))


def test_data_without_the_teachers_encoding_is_refused_and_evaluated(tmp_path: Path) -> None:
    words = tokenizer()
    others, new_ids = shuffled(words)
    teacher = with_other_ids(trained(BertForSequenceClassification, 1, num_labels=3), new_ids)
    student = trained(BertForSequenceClassification, 2, layers=1, num_labels=3)
    rows = Dataset.from_dict({"text": TEXTS, "labels": [0, 1, 2, 0, 2, 1, 0, 1]})
    rows = rows.map(lambda row: words(row["text"]))
    given: dict[str, Any] = {
        "teacher_model": teacher,
        "processing_class": words,
        "teacher_processing_class": others,
        "teacher_check_samples": 0,
    }
    with pytest.raises(ValueError, match=r"train_dataset has no teacher_input_ids"):
        run(tmp_path, student, train_dataset=rows, **given)
    trainer = run(
        tmp_path, student, train_dataset=encode_for_teacher(rows, others), evaluate=False, **given
    )
    metrics = trainer.evaluate(rows)
    assert "eval_loss" in metrics and "eval_loss_prediction" not in metrics


def test_the_students_tokenizer_as_the_teachers_changes_nothing(tmp_path: Path) -> None:
    words = tokenizer()
    teacher = trained(BertForSequenceClassification, 1, num_labels=3)
    student = trained(BertForSequenceClassification, 2, layers=1, num_labels=3)
    rows = Dataset.from_dict({"text": TEXTS, "labels": [0, 1, 2, 0, 2, 1, 0, 1]})
    rows = rows.map(lambda row: words(row["text"]))
    given: dict[str, Any] = {
        "teacher_model": teacher,
        "processing_class": words,
        "teacher_check_samples": 0,
    }
    expected = run(tmp_path, student, train_dataset=rows, **given)
    both = encode_for_teacher(rows, words)
    found = run(tmp_path, student, train_dataset=both, teacher_processing_class=words, **given)
    assert not found.distiller.alignment.two_encodings
    assert losses(found) == losses(expected)


def test_layers_of_different_tokens_are_refused(tmp_path: Path) -> None:
    words = tokenizer()
    others, new_ids = shuffled(words)
    teacher = with_other_ids(trained(BertForSequenceClassification, 1, num_labels=3), new_ids)
    rows = Dataset.from_dict({"text": TEXTS, "labels": [0, 1, 2, 0, 2, 1, 0, 1]})
    rows = encode_for_teacher(rows.map(lambda row: words(row["text"])), others)
    with pytest.raises(ValueError, match="hidden_states_loss_weight=0"):
        run(
            tmp_path,
            trained(BertForSequenceClassification, 2, layers=1, num_labels=3),
            teacher_model=teacher,
            train_dataset=rows,
            processing_class=words,
            teacher_processing_class=others,
            hidden_states_loss_weight=1.0,
        )


def test_logits_of_another_shape_are_refused() -> None:
    batch = {
        "input_ids": torch.ones(2, 3, 4, dtype=torch.long),
        "teacher_input_ids": torch.ones(2, 3, 5, dtype=torch.long),
        "labels": torch.tensor([0, 1]),
    }
    student, teacher = {"logits": torch.zeros(2, 3)}, {"logits": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match=r"\(2, 3\) and the teacher's \(2, 4\)"):
        Alignment(MultipleChoiceHead()).logits(batch, student, teacher, 1.0)


@pytest.mark.parametrize(
    ("columns", "needs"),
    [
        ("text", "columns='text' must be a list"),
        ([], r"columns=\[\] must be a list"),
        (["text"] * 3, "must be a list"),
        (["text", "document"], r"columns=\['text', 'document'\].*'document', only text, pair, n"),
        (["n"], r"columns=\['n'\].*'n' holds int64 values"),
        (["text", "pair"], "Row 1 has nothing in the column 'pair'"),
    ],
)
def test_what_is_not_texts_is_refused(columns: Any, needs: str) -> None:
    data = Dataset.from_dict({"text": ["a", "b"], "pair": ["c", None], "n": [1, 2]})
    with pytest.raises(ValueError, match=needs):
        encode_for_teacher(data, tokenizer(), columns=columns)
    splits: Any = DatasetDict(train=data)
    with pytest.raises(ValueError, match="DatasetDict.*choose a split"):
        encode_for_teacher(splits, tokenizer())
