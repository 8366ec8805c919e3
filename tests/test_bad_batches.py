"""Data that does not fit the pair is refused before the first step, with what to change."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset, List, Value
from runs import arguments
from tiny import tokenizer
from transformers import (
    DataCollatorWithPadding,
    PerceiverConfig,
    PerceiverForMaskedLM,
    default_data_collator,
)
from zoo import LENGTH, VOCABULARY, zoo_dataset, zoo_model

from hf_distill import DistillationTrainer

Change = Callable[[dict[str, list[Any]]], dict[str, list[Any]]]


def with_column(name: str, value: Any) -> Change:
    return lambda columns: {**columns, name: value}


def without(*names: str) -> Change:
    return lambda columns: {k: v for k, v in columns.items() if k not in names}


def longer(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {k: [row * 6 for row in v] if k != "labels" else v for k, v in columns.items()}


CASES: dict[str, tuple[str, str, Change, dict[str, Any], str]] = {
    "a label that is no class": (
        "text-classification", "bert", with_column("labels", [0, 1, 2, 3]), {},
        "column 'labels' of train_dataset has the label 3, but the student has 3 labels.*Load",
    ),
    "a negative label": (
        "text-classification", "bert", with_column("labels", [0, 1, -1, 2]), {},
        "has the label -1, but the student has 3 labels, numbered 0 to 2",
    ),
    "a label that is missing": (
        "text-classification", "bert", with_column("labels", [0, 1, None, 2]), {},
        "has the label None",
    ),
    "a tag that is no class": (
        "token-classification", "bert", with_column("labels", [[0] * 11 + [9]] * 4), {},
        "has the label 9, but the student has 3 labels",
    ),
    "a position below 0": (
        "question-answering", "bert", with_column("end_positions", [1, -100, 2, 3]), {},
        "column 'end_positions' of train_dataset has the position -100, but.*0 for .CLS.*beyond",
    ),
    "a position that is missing": (
        "question-answering", "bert", with_column("start_positions", [1, None, 2, 3]), {},
        "column 'start_positions' of train_dataset has the position None",
    ),
    "a list of tags that is missing": (
        "token-classification", "bert", with_column("labels", [[0] * 12, None] * 2), {},
        "column 'labels' of train_dataset has the label None",
    ),
    "a choice that is missing": (
        "multiple-choice", "bert", with_column("labels", [0, None, 1, 0]), {},
        "has the label None, but the label loss needs finite numbers",
    ),
    "texts as labels": (
        "text-classification", "bert", with_column("labels", ["no", "yes", "no", "no"]), {},
        "column 'labels' of the training data holds texts .*'no'.*by the student's config.label2id",
    ),
    "texts as tags": (
        "token-classification", "bert", with_column("labels", [["O"] * 12] * 4), {},
        "column 'labels' of the training data holds texts .*'O'.*by the student's config.label2id",
    ),
    "texts as positions": (
        "question-answering", "bert", with_column("start_positions", ["0", "1", "2", "3"]), {},
        "column 'start_positions' of the training data holds texts .*by their positions",
    ),
    "numbers instead of classes": (
        "text-classification", "bert", with_column("labels", [0.5, 1.0, 0.0, 2.0]), {},
        "labels are floating-point numbers.*problem_type",
    ),
    "no labels": (
        "text-classification", "bert", without("labels"), {},
        "weight=0.5 mixes in the label loss, but the training data has no labels.*weight=1",
    ),
    "no tags": (
        "token-classification", "bert", without("labels"), {},
        "the training data has no labels",
    ),
    "no answers": (
        "question-answering", "bert", without("start_positions"), {},
        "the training data has no start_positions",
    ),
    "no target": (
        "summarization", "t5", without("labels"), {"distillation_loss_weight": 1.0},
        "neither labels nor decoder_input_ids.*needs a target",
    ),
    "rows that are too long for the teacher": (
        "text-classification", "bert", longer, {},
        "rows of 72 tokens, but the teacher has positions for 64 only; truncate.*max_length=64",
    ),
    "ids that the teacher does not know": (
        "text-classification", "bert", with_column("input_ids", [[5] * 11 + [500]] * 4), {},
        "input id 500, but the teacher's vocabulary has only 97 entries",
    ),
    "no token types for a question": (
        "multiple-choice", "bert", without("token_type_ids"), {},
        "trained with token_type_ids.*the batches have none",
    ),
    "images of another size": (
        "image-classification", "vit",
        with_column("pixel_values", torch.zeros(4, 3, 16, 16).tolist()), {},
        "The teacher cannot compute this batch .*size .*16.*doesn't match model",
    ),
    "no rows": ("text-classification", "bert", lambda columns: {k: [] for k in columns}, {},
                "train_dataset is empty"),
    "a negative number of rows to try": (
        "text-classification", "bert", dict, {"teacher_check_samples": -1},
        "teacher_check_samples must be 0 or more, but it is -1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_data_that_does_not_fit(name: str, tmp_path: Path) -> None:
    task, architecture, change, options, message = CASES[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        trainer = DistillationTrainer(
            zoo_model(task, architecture, seed=0),
            arguments(tmp_path, **options),
            teacher_model=zoo_model(task, architecture, seed=1),
            train_dataset=Dataset.from_dict(change(zoo_dataset(task, 4).to_dict())),
            data_collator=default_data_collator,
        )
        trainer.train()
    assert trainer_steps(locals()) == 0


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("name", ["label", "labels"])
def test_texts_as_labels_by_either_collator(
    name: str, padding: bool, as_list: bool, tmp_path: Path
) -> None:
    data = zoo_dataset("text-classification", 4, labels=False).add_column(name, ["no"] * 4)
    trainer = DistillationTrainer(
        zoo_model("text-classification", "bert", seed=0),
        arguments(tmp_path),
        teacher_model=zoo_model("text-classification", "bert", seed=1),
        train_dataset=list(data) if as_list else data,
        data_collator=DataCollatorWithPadding(tokenizer()) if padding else default_data_collator,
    )
    with pytest.raises(ValueError, match=f"column '{name}' of the training data holds texts"):
        trainer.train()


def test_texts_that_a_collator_numbers_are_labels(tmp_path: Path) -> None:
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return default_data_collator([{**row, "labels": int(row["labels"])} for row in rows])

    data = zoo_dataset("text-classification", 4, labels=False).add_column("labels", ["2"] * 4)
    for rows in (data, list(data)):
        trainer = DistillationTrainer(
            zoo_model("text-classification", "bert", seed=0),
            arguments(tmp_path, max_steps=1),
            teacher_model=zoo_model("text-classification", "bert", seed=1),
            train_dataset=rows,
            data_collator=collate,
        )
        trainer.train()
        assert trainer_steps(locals()) == 1


def test_texts_of_a_stream_that_the_collator_drops(tmp_path: Path) -> None:
    data = zoo_dataset("text-classification", 8, labels=False).add_column("labels", ["no"] * 8)
    trainer = DistillationTrainer(
        zoo_model("text-classification", "bert", seed=0),
        arguments(tmp_path),
        teacher_model=zoo_model("text-classification", "bert", seed=1),
        train_dataset=IterableDataset.from_generator(lambda: iter(data)),
        data_collator=default_data_collator,
    )
    with pytest.raises(ValueError, match="column 'labels' of the training data holds texts"):
        trainer.train()


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
@pytest.mark.parametrize(
    ("problem_type", "length"),
    [("multi_label_classification", None), ("multi_label_classification", 3), ("regression", None)],
)
def test_labels_that_are_no_numbers(
    problem_type: str, length: int | None, value: float | None, tmp_path: Path
) -> None:
    kind = {} if length is None else {"length": length}
    labels = [[0.0, 1.0, 0.0], [0.0, value, 1.0]] * 2
    columns = zoo_dataset("text-classification", 4, labels=False)
    data = columns.add_column("labels", labels).cast_column(
        "labels", List(Value("float32"), **kind)
    )
    loss = "mse" if problem_type == "regression" else "kl_div"
    trainer = DistillationTrainer(
        zoo_model("text-classification", "bert", seed=0, problem_type=problem_type),
        arguments(tmp_path, distillation_loss=loss),
        teacher_model=zoo_model("text-classification", "bert", seed=1, problem_type=problem_type),
        train_dataset=data,
        data_collator=default_data_collator,
    )
    message = f"'labels' of train_dataset has the label {value}, but the label loss needs finite"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer_steps(locals()) == 0


def trainer_steps(names: dict[str, Any]) -> int:
    trainer = names.get("trainer")
    return 0 if trainer is None else int(trainer.state.global_step)


def test_a_model_that_leaves_out_tokens(tmp_path: Path) -> None:
    student = zoo_model("fill-mask", "modernbert", seed=0)
    student.config.sparse_prediction = student.sparse_prediction = True
    trainer = DistillationTrainer(
        student,
        arguments(tmp_path),
        teacher_model=zoo_model("fill-mask", "modernbert", seed=1),
        train_dataset=zoo_dataset("fill-mask"),
        data_collator=default_data_collator,
    )
    with pytest.raises(ValueError, match="sparse_prediction=False"):
        trainer.train()


def test_a_model_with_logits_for_its_longest_input_only(tmp_path: Path) -> None:
    config = PerceiverConfig(
        vocab_size=VOCABULARY, d_latents=8, d_model=8, qk_channels=8, v_channels=8, num_latents=2,
        num_blocks=1, num_self_attends_per_block=1, num_self_attention_heads=1,
        num_cross_attention_heads=1, max_position_embeddings=LENGTH + 4,
    )  # fmt: skip
    trainer = DistillationTrainer(
        PerceiverForMaskedLM(config),
        arguments(tmp_path),
        teacher_model=PerceiverForMaskedLM(config),
        train_dataset=zoo_dataset("fill-mask"),
        eval_dataset=zoo_dataset("fill-mask"),
        data_collator=default_data_collator,
    )
    with pytest.raises(ValueError, match="logits for 16 positions .* 12; pad .*max_length=16"):
        trainer.train()


def test_a_later_batch_that_the_teacher_cannot_compute(tmp_path: Path) -> None:
    rows = zoo_dataset("text-classification", 4).to_dict()
    rows["input_ids"][3][-1] = VOCABULARY + 3
    trainer = DistillationTrainer(
        zoo_model("text-classification", "bert", seed=0, vocab_size=VOCABULARY + 8),
        arguments(
            tmp_path, per_device_train_batch_size=1, train_sampling_strategy="sequential",
            teacher_check_samples=0, max_steps=4,
        ),
        teacher_model=zoo_model("text-classification", "bert", seed=1),
        train_dataset=Dataset.from_dict(rows),
        data_collator=default_data_collator,
    )  # fmt: skip
    with pytest.raises(ValueError, match="The teacher cannot compute this batch .*IndexError"):
        trainer.train()
    assert trainer.state.global_step == 3


# ---- the trial of the teacher --------------------------------------------------------------------


def trial(tmp_path: Path, task: str, teacher: Any, data: Dataset, **options: Any) -> Any:
    trainer = DistillationTrainer(
        zoo_model(task, "bert", seed=0),
        arguments(tmp_path, max_steps=1, **options),
        teacher_model=teacher,
        train_dataset=data,
        eval_dataset=data,
        data_collator=default_data_collator,
    )
    trainer.train()
    return trainer


def perfect_and_wrong() -> tuple[Any, Dataset]:
    """A teacher that finds the class by the first id, and data in which it is always wrong."""
    teacher = zoo_model("text-classification", "bert", seed=1)
    rows = zoo_dataset("text-classification", 60)
    batch = default_data_collator([{k: v for k, v in r.items() if k != "labels"} for r in rows])
    with torch.no_grad():
        answers = teacher.eval()(**batch).logits.argmax(-1)
    counts = answers.bincount(minlength=3)
    wrong = torch.where(answers == counts.argmax(), counts.argmin(), counts.argmax())
    columns = {**rows.to_dict(), "labels": wrong.tolist()}
    return teacher, Dataset.from_dict(columns)


def test_a_teacher_that_is_always_wrong_is_refused(tmp_path: Path) -> None:
    teacher, data = perfect_and_wrong()
    with pytest.raises(ValueError, match="the teacher gets 0.0% right.*worse than no teacher"):
        trial(tmp_path, "text-classification", teacher, data)
    trial(tmp_path, "text-classification", teacher, data, teacher_check_samples=0)


def test_a_teacher_without_numbers_is_refused_by_a_trial(tmp_path: Path) -> None:
    """The largest of NaN would be the first class."""
    teacher, data = perfect_and_wrong()
    with torch.no_grad():
        teacher.classifier.bias[1] = torch.nan
    with pytest.raises(ValueError, match="outputs for 16 of 16 labels of .* are NaN or"):
        trial(tmp_path, "text-classification", teacher, data, teacher_check_samples=16)


def test_a_trial_changes_nothing(tmp_path: Path) -> None:
    """A data collator may draw random numbers: dropout must be the same with and without trial."""
    losses = []
    for samples in (0, 16):
        student = zoo_model("fill-mask", "bert", seed=0, hidden_dropout_prob=0.2)
        trainer = DistillationTrainer(
            student,
            arguments(tmp_path, teacher_check_samples=samples),
            teacher_model=zoo_model("fill-mask", "bert", seed=1),
            train_dataset=zoo_dataset("fill-mask"),
            eval_dataset=zoo_dataset("fill-mask", seed=1),
            data_collator=drawing_collator,
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def drawing_collator(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch = default_data_collator(rows)
    drawn = torch.rand(len(rows), LENGTH) < 0.5
    return {**batch, "labels": batch["labels"].masked_fill(drawn, -100)}


# ---- in the middle of a training -----------------------------------------------------------------


@pytest.mark.parametrize("missing", ["labels", "start_positions"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_later_batch_without_labels_is_named(
    missing: str, accumulation: int, tmp_path: Path
) -> None:
    task = "text-classification" if missing == "labels" else "question-answering"
    rows = list(zoo_dataset(task, 12))
    for row in rows[8:]:
        del row[missing]
    trainer = DistillationTrainer(
        zoo_model(task, "bert", seed=0),
        arguments(
            tmp_path,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
        ),
        teacher_model=zoo_model(task, "bert", seed=1),
        train_dataset=rows,
        data_collator=default_data_collator,
    )
    message = (
        rf"weight=0.5 mixes in the label loss, but a batch of training step 3 has no {missing} "
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("task", "name", "value", "message"),
    [
        ("question-answering", "start_positions", -100, "position -100, but positions count"),
        ("text-classification", "labels", [0.0, math.nan, 0.0], "label nan, but the label loss"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_later_batch_with_a_wrong_label_is_named(
    streamed: bool, task: str, name: str, value: Any, message: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {}
    rows = list(zoo_dataset(task, 12))
    if isinstance(value, list):
        options["problem_type"] = "multi_label_classification"
        rows = [{**row, name: [1.0, 0.0, 0.0]} for row in rows]
    rows[9][name] = value
    trainer = DistillationTrainer(
        zoo_model(task, "bert", seed=0, **options),
        arguments(tmp_path, train_sampling_strategy="sequential"),
        teacher_model=zoo_model(task, "bert", seed=1, **options),
        train_dataset=IterableDataset.from_generator(lambda: iter(rows)) if streamed else rows,
        data_collator=default_data_collator,
    )
    message = f"column '{name}' of a batch of training step 3 has the {message}"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 2
