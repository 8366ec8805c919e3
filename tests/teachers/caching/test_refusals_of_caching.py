"""What cannot be cached, or not be learnt from, is refused and says what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import distil
from tiny import tokenizer
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    default_data_collator,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from zoo import zoo_dataset, zoo_model

from hf_distill import TeacherRecorderCallback, cache_teacher_outputs, load_teacher_outputs

QA = ("question-answering", "bert")


def cached(data: Any, teacher: Any, folder: Path, **options: Any) -> Dataset:
    return cache_teacher_outputs(
        teacher,
        data,
        output_dir=folder,
        **{"data_collator": default_data_collator, "use_cpu": True, **options},
    )


@pytest.fixture
def stored(tmp_path: Path) -> Dataset:
    return cached(zoo_dataset(QA[0]), zoo_model(*QA, seed=1), tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of .*'int8'"),
        ({"batch_size": 0}, "batch_size must be at least 1, but it is 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        (
            {"hidden_layers": [0, 7]},
            r"hidden_layers=\[0, 7\] must name different layers from 0 .* 1",
        ),
        ({"hidden_layers": [1, 1]}, "must name different layers"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of no, bf16, fp16.*'fp8'"),
        ({"task": "poetry"}, "There is no task 'poetry'"),
    ],
)
def test_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        cached(zoo_dataset(QA[0]), zoo_model(*QA, seed=1), tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_top_k_is_for_classes_of_tokens(task: str, top_k: int, tmp_path: Path) -> None:
    """Start and end of an answer are not two classes of a token, of which one could do."""
    with pytest.raises(ValueError, match=f"top_k={top_k}: .*tokens.*{task}.*leave it out"):
        cached(zoo_dataset(task), zoo_model(task, "bert", seed=1), tmp_path / "a", top_k=top_k)


def test_top_k_is_at_most_the_classes(tmp_path: Path) -> None:
    task = "token-classification"
    with pytest.raises(ValueError, match="top_k=5: the teacher has 3 classes"):
        cached(zoo_dataset(task), zoo_model(task, "bert", seed=1), tmp_path / "a", top_k=5)


def test_data(tmp_path: Path, stored: Dataset) -> None:
    teacher = zoo_model(*QA, seed=1)
    data = zoo_dataset(QA[0])
    with pytest.raises(ValueError, match="is empty"):
        cached(data.select([]), teacher, tmp_path / "a")
    with pytest.raises(ValueError, match="IterableDataset; caching needs"):
        cached(data.to_iterable_dataset(), teacher, tmp_path / "a")
    with pytest.raises(ValueError, match="has a column 'teacher_logits' already"):
        cached(stored, teacher, tmp_path / "a")


def test_a_teacher_that_is_missing_or_of_no_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        cached(zoo_dataset(QA[0]), str(tmp_path / "nowhere"), tmp_path / "a")
    with pytest.raises(ValueError, match=r"teacher's class \(Linear\).* \(task\)"):
        cached(zoo_dataset(QA[0]), torch.nn.Linear(2, 2), tmp_path / "a")


def test_a_collator_that_masks_at_random(tmp_path: Path) -> None:
    teacher = zoo_model("fill-mask", "bert", seed=1)
    data = zoo_dataset("fill-mask", labels=False)
    collator = DataCollatorForLanguageModeling(tokenizer())
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="makes other (input_ids|labels) of the same rows"):
        cached(data, teacher, tmp_path, data_collator=collator)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_collator_that_joins_rows(tmp_path: Path) -> None:
    teacher, data = zoo_model("text-generation", "llama", seed=1), zoo_dataset("text-generation", 4)
    with pytest.raises(ValueError, match="made 1 inputs of 4 rows.*keeps rows apart"):
        cached(data, teacher, tmp_path, data_collator=DataCollatorWithFlattening())


def test_a_transform_that_changes_each_time(tmp_path: Path) -> None:
    def shuffled(rows: dict[str, Any]) -> dict[str, Any]:
        ids = [torch.tensor(row)[torch.randperm(len(row))].tolist() for row in rows["input_ids"]]
        return {**rows, "input_ids": ids}

    data = zoo_dataset(QA[0]).with_transform(shuffled)
    with pytest.raises(ValueError, match="or a transform of the data. makes other input_ids"):
        cached(data, zoo_model(*QA, seed=1), tmp_path)


def cancelling() -> tuple[Any, Dataset]:
    """A teacher whose logits of the shortest row are what is left of large numbers."""
    random = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 90, (n,), generator=random).tolist() for n in (9, 4, 7, 40, 8)]
    teacher = zoo_model("text-classification", "bert", seed=1, layers=2, pad_token_id=0).eval()
    with torch.no_grad():
        teacher.classifier.weight.mul_(100)
        teacher.classifier.bias.sub_(teacher(input_ids=torch.tensor(ids[1:2])).logits[0] - 1e-3)
    masks = [[1] * len(row) for row in ids]
    return teacher, Dataset.from_dict({"input_ids": ids, "attention_mask": masks})


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_padding_is_told_from_rounding(precision: str, tmp_path: Path) -> None:
    teacher, data = cancelling()
    words = tokenizer()
    options: Any = {"mixed_precision": precision, "data_collator": DataCollatorWithPadding(words)}
    assert len(cached(data, teacher, tmp_path / "right", **options)) == len(data)
    words.padding_side = "left"
    with pytest.raises(ValueError, match="outputs for row 1 depend on how far .* padding_side"):
        cached(data, teacher, tmp_path / "left", **options)


def test_the_check_of_padding_spares_kernels_without_float32(tmp_path: Path) -> None:
    def flash(module: Any, query: Any, *others: Any, **options: Any) -> Any:
        assert query.dtype != torch.float32, "FlashAttention only supports fp16 and bf16"
        return sdpa_attention_forward(module, query, *others, **options)

    AttentionInterface.register("flash_of_tests", flash)
    AttentionMaskInterface.register("flash_of_tests", sdpa_mask)
    teacher, data = cancelling()
    teacher.config._attn_implementation = "flash_of_tests"
    collator = DataCollatorWithPadding(tokenizer())
    cached(data, teacher, tmp_path, mixed_precision="bf16", data_collator=collator)


def test_nan_names_the_row(tmp_path: Path) -> None:
    teacher = zoo_model(*QA, seed=1)
    data = zoo_dataset(QA[0])
    with torch.no_grad():
        teacher.bert.embeddings.word_embeddings.weight[96] = torch.nan
    first = next(i for i, row in enumerate(data) if 96 in row["input_ids"])
    others = [i for i, row in enumerate(data) if 96 not in row["input_ids"]]
    with pytest.raises(ValueError, match="for row 2 of the data contain NaN"):
        cached(data.select([*others[:2], first, *others[2:]]), teacher, tmp_path / "a")
    assert not list((tmp_path / "a").glob("part-*"))


def test_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ValueError, match="holds other files and no manifest.json"):
        cached(zoo_dataset(QA[0]), zoo_model(*QA, seed=1), tmp_path)
    with pytest.raises(ValueError, match="output_dir precious.txt is a file"):
        cached(zoo_dataset(QA[0]), zoo_model(*QA, seed=1), tmp_path / "precious.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(ValueError, match="holds no teacher outputs"):
        load_teacher_outputs(zoo_dataset(QA[0]), tmp_path)


def train(data: Dataset, path: Path, teacher: Any = None, **options: Any) -> None:
    distil(
        QA[0],
        path,
        student=options.pop("student", None) or zoo_model(*QA, seed=0),
        teacher=teacher,
        train_dataset=data,
        **{"trainer_options": {"data_collator": default_data_collator}, **options},
    )


def test_two_teachers_at_once(stored: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are two teachers: teacher_model, and"):
        train(stored, tmp_path, zoo_model(*QA, seed=1))


def test_no_teacher_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="or data with the columns of cache_teacher_outputs"):
        train(zoo_dataset(QA[0]), tmp_path)


def test_a_recorder(stored: Dataset, tmp_path: Path) -> None:
    options = {
        "data_collator": default_data_collator,
        "callbacks": [TeacherRecorderCallback(tmp_path / "samples")],
    }
    with pytest.raises(ValueError, match="TeacherRecorderCallback has no teacher to record"):
        train(stored, tmp_path, trainer_options=options)


def test_a_student_of_another_task_or_with_other_labels(stored: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have the same task"):
        train(stored, tmp_path, student=zoo_model("text-classification", "bert", seed=0))


def test_another_tokenizer(tmp_path: Path) -> None:
    teacher, data = zoo_model(*QA, seed=1), zoo_dataset(QA[0])
    stored = cached(data, teacher, tmp_path / "cache", processing_class=tokenizer())
    options = {"data_collator": default_data_collator}
    train(stored, tmp_path, trainer_options={**options, "processing_class": tokenizer()})
    other = tokenizer(lowercase=False)
    with pytest.raises(ValueError, match="cached with another tokenizer"):
        train(stored, tmp_path, trainer_options={**options, "processing_class": other})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"input_ids": [5, *row["input_ids"][1:]]}, "do not belong to its input"),
        (lambda row: {"attention_mask": [1] * 4 + [0] * 8}, "positions, but the loss looks at 4"),
        (lambda row: {"teacher_logits": row["teacher_logits"][::-1]}, "do not belong to its input"),
        (lambda row: {"teacher_logits": row["teacher_logits"][2:]}, "positions, but the loss"),
        (lambda row: {"teacher_checksum": 7}, "do not belong to its input"),
    ],
)
def test_rows_that_changed_after_caching(
    change: Any, message: str, stored: Dataset, tmp_path: Path
) -> None:
    changed = stored.map(change, features=stored.features)
    with pytest.raises(ValueError, match=message):
        train(changed, tmp_path)


def test_a_collator_that_cuts_or_merges(stored: Dataset, tmp_path: Path) -> None:
    def cut(rows: list[dict[str, Any]]) -> Any:
        return {name: value[:, :6] if value.dim() == 2 else value
                for name, value in default_data_collator(rows).items()}  # fmt: skip

    def merged(rows: list[dict[str, Any]]) -> Any:
        return {n: v.flatten()[None] if v.dim() == 2 else v[:1]
                for n, v in default_data_collator(rows).items()}  # fmt: skip

    with pytest.raises(ValueError, match="positions, but the loss looks at 6"):
        train(stored, tmp_path, trainer_options={"data_collator": cut})
    with pytest.raises(ValueError, match="made 1 inputs of 8 rows"):
        train(stored, tmp_path, trainer_options={"data_collator": merged})
    short = cached(
        zoo_dataset(QA[0]), zoo_model(*QA, seed=1), tmp_path / "short", data_collator=cut
    )
    train(short, tmp_path, trainer_options={"data_collator": cut})


def test_moved_labels_of_tokens(tmp_path: Path) -> None:
    """As many labels as before, on other tokens."""
    task, architecture = "token-classification", "bert"
    stored = cached(zoo_dataset(task), zoo_model(task, architecture, seed=1), tmp_path / "cache")
    moved = stored.map(lambda row: {"labels": [*row["labels"][1:], row["labels"][0]]})
    student = zoo_model(task, architecture, seed=0)
    train(stored, tmp_path, student=student)
    with pytest.raises(ValueError, match="do not belong to its input"):
        train(moved, tmp_path, student=student)
