"""Sequence-to-sequence: teacher and student are given the same target, however a batch has it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from references import expected_losses
from runs import arguments, distil, logged
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    default_data_collator,
)
from zoo import PAD, START, VOCABULARY, zoo_config, zoo_dataset, zoo_model

from hf_distill import DistillationTrainer, cache_teacher_outputs
from hf_distill.heads import find_head
from hf_distill.teachers.columns import identities

PROMPT = 3
ARCHITECTURES = ("t5", "bart", "whisper", "marian", "led", "fsmt", "encoder-decoder")
LAYOUTS = ("labels", "labels after a prompt", "both", "both after a prompt", "ids")


def model(architecture: str, seed: int = 1) -> Any:
    if architecture in ("t5", "bart"):
        return zoo_model("summarization", architecture, seed=seed)
    if architecture == "whisper":
        return zoo_model("automatic-speech-recognition", architecture, seed=seed)
    torch.manual_seed(seed)
    if architecture == "encoder-decoder":
        bert = zoo_config("bert", 1)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
        config.pad_token_id, config.decoder_start_token_id = PAD, START
        return EncoderDecoderModel(config=config)
    sizes = zoo_config("bart", 1).to_dict()
    del sizes["model_type"]
    further: dict[str, Any] = {}
    if architecture == "led":
        further = {
            "attention_window": 4,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        }
    elif architecture == "fsmt":
        further = {name: VOCABULARY for name in ("src_vocab_size", "tgt_vocab_size")}
        further |= {"langs": ["a", "b"], "tie_word_embeddings": False}
    return AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(architecture, **{**sizes, **further})
    )


def data(architecture: str, layout: str) -> Dataset:
    task = "automatic-speech-recognition" if architecture == "whisper" else "summarization"
    columns = zoo_dataset(task).select(range(14))[:]  # FSMT needs a label in every row
    labels = torch.tensor(columns["labels"])
    if "prompt" in layout:
        labels[:, :PROMPT] = -100
        labels[:, PROMPT] = 7
    ids = torch.randint(5, VOCABULARY, labels.shape, generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 4 if "prompt" in layout else PAD if architecture == "t5" else START
    del columns["labels"]
    if layout != "ids":
        columns["labels"] = labels.tolist()
    if not layout.startswith("labels"):
        columns["decoder_input_ids"] = ids.tolist()
    return Dataset.from_dict(columns)


def evaluated(student: Any, rows: Dataset, path: Path, **options: Any) -> float:
    teacher = {"teacher_model": options.pop("teacher")} if "teacher" in options else {}
    collator = options.pop("data_collator", default_data_collator)
    trainer = DistillationTrainer(
        student,
        arguments(path, **{"teacher_check_samples": 0, "distillation_loss_weight": 1.0, **options}),
        train_dataset=rows,
        data_collator=collator,
        **teacher,
    )
    return float(trainer.evaluate(rows)["eval_loss_prediction"])


def cached(teacher: Any, rows: Dataset, folder: Path) -> Dataset:
    return cache_teacher_outputs(
        teacher,
        rows,
        data_collator=default_data_collator,
        output_dir=folder,
        dtype="float32",
        use_cpu=True,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_copy_of_its_teacher_has_nothing_to_learn(architecture: str, tmp_path: Path) -> None:
    teacher = model(architecture)
    for layout in LAYOUTS:
        rows, student = data(architecture, layout), copy.deepcopy(teacher)
        assert evaluated(student, rows, tmp_path, teacher=teacher) < 1e-6, layout
        stored = cached(teacher, rows, tmp_path / layout)
        assert evaluated(student, stored, tmp_path) < 1e-6, layout


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_label_smoothing_does_not_take_the_target_away(architecture: str, tmp_path: Path) -> None:
    """``Trainer`` hides the labels from the student, and BART would read the source instead."""
    teacher = model(architecture)
    options: Any = {"label_smoothing_factor": 0.1, "distillation_loss_weight": 0.5}
    rows, student = data(architecture, "labels"), copy.deepcopy(teacher)
    assert evaluated(student, rows, tmp_path, teacher=teacher, **options) < 1e-6


def test_the_loss_is_that_of_the_targets_given(tmp_path: Path) -> None:
    student, teacher = model("bart", seed=0), model("bart")
    rows = data("bart", "both after a prompt")
    batch = default_data_collator(list(rows))
    _, divergence = expected_losses("summarization", student, teacher, batch, 2.0)
    trainer, _ = distil(
        "summarization",
        tmp_path,
        student=student,
        teacher=teacher,
        train_dataset=rows,
        trainer_options={"data_collator": default_data_collator},
        max_steps=1,
        per_device_train_batch_size=14,
        temperature=2.0,
    )
    assert logged(trainer, "loss_prediction") == [pytest.approx(divergence, rel=1e-5)]


def test_each_model_starts_a_target_as_it_was_trained_to() -> None:
    """The data collator starts it as the student does; a prompt is left as it is."""
    student, teacher = model("bart"), model("bart")
    teacher.config.decoder_start_token_id = 9
    head = find_head(student)
    assert head is not None
    ids = torch.tensor([[START, 8, START, 6], [4, START, 7, 6]])
    batch = {"decoder_input_ids": ids, "labels": torch.full((2, 4), 5)}
    found = head.target_inputs(batch, teacher)["decoder_input_ids"]
    assert found.tolist() == [[9, 8, START, 6], [4, START, 7, 6]]
    labels = {"labels": torch.tensor([[-100, 7, 8, -100]])}
    for who, start in ((student, START), (teacher, 9)):
        found = head.target_inputs(labels, who)["decoder_input_ids"]
        assert found.tolist() == [[start, PAD, 7, 8]]


def shifted(rows: Dataset) -> Dataset:
    """With the decoder's inputs that BART makes of the labels itself."""
    make = model("bart").prepare_decoder_input_ids_from_labels
    ids = [make(labels=torch.tensor([labels]))[0].tolist() for labels in rows["labels"]]
    return rows.add_column("decoder_input_ids", ids)


def replaced(rows: Dataset, name: str, place: int, value: int) -> Dataset:
    column = [list(row) for row in rows[name]]
    for row in column:
        row[place] = value
    return rows.remove_columns(name).add_column(name, column)


def padded(side: str, mask: bool = False) -> Any:
    def collator(rows: list[dict[str, Any]]) -> Any:
        batch = default_data_collator(rows)
        target = batch["labels"]
        if mask:
            batch["decoder_attention_mask"] = torch.ones_like(target)
        more = (2, 0) if side == "left" else (0, 2)
        padding = {"labels": -100, "decoder_input_ids": PAD, "decoder_attention_mask": 0}
        for name in padding.keys() & batch.keys():
            batch[name] = torch.nn.functional.pad(batch[name], more, value=padding[name])
        return batch

    return collator


def test_a_cache_is_for_the_targets_that_the_teacher_read(tmp_path: Path) -> None:
    teacher = model("bart")
    found = {
        layout: cached(teacher, data("bart", layout), tmp_path / layout)
        for layout in ("labels after a prompt", "both after a prompt", "ids")
    }
    labels, both, ids = found.values()

    def loss(rows: Dataset, collator: Any = default_data_collator) -> float:
        return evaluated(teacher, rows, tmp_path, data_collator=collator)

    teacher = copy.deepcopy(teacher)
    for rows in (shifted(labels), labels, both):  # the same target, however it is padded
        for collator in (default_data_collator, padded("right"), padded("right", mask=True)):
            assert loss(rows, collator) < 1e-6
    for place in (0, 1, 5):
        for rows in (both, ids):
            with pytest.raises(ValueError, match="do not belong to its input"):
                loss(replaced(rows, "decoder_input_ids", place, 11))
    # Without a mask a decoder reads what it is padded with on the left.
    with pytest.raises(ValueError, match="do not belong to its input"):
        loss(both, padded("left"))
    # The prompt, of which the labels only say where it is, moves.
    moved = replaced(replaced(labels, "labels", PROMPT, -100), "labels", PROMPT - 1, 7)
    with pytest.raises(ValueError, match="do not belong to its input"):
        loss(moved)


def test_padding_on_the_left_that_is_masked_changes_nothing_in_a_checksum() -> None:
    head = find_head(model("t5"))
    assert head is not None
    rows = list(data("t5", "both after a prompt"))
    plain = identities(head, padded("right", mask=True)(rows))
    left = identities(head, padded("left", mask=True)(rows))
    assert [[a.tolist() for a in row] for row in plain] == [
        [a.tolist() for a in row] for row in left
    ]
