"""A student that is a copy of its teacher has every distillation loss 0, however data arrives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from runs import arguments
from tiny import tokenizer
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForMultipleChoice,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    default_data_collator,
)
from zoo import AUTO_MODELS, PAD, PAIRS, zoo_dataset, zoo_model

from hf_distill import DistillationTrainer, cache_teacher_outputs

NOT_STACKS = ("convnext",)
TWO_STACKS = ("t5", "bart", "whisper")
WITHOUT_QUERIES = ("mpnet", "deberta-v2")
CASES = (*PAIRS, ("audio-classification", "hubert"), ("audio-classification", "wavlm"),
         ("text-generation", "opt"))  # fmt: skip
BY_ARCHITECTURE = {name: task for task, name in reversed(CASES)}
SAME_CODE = ("roberta", "xlm-roberta", "electra", "qwen2", "hubert")
"""Copied from others of the list in transformers."""
ROWS = 5
TEXTS = [pair for pair in CASES if pair[0] not in (
    "image-classification", "audio-classification", "automatic-speech-recognition")]  # fmt: skip


def losses(
    task: str,
    architecture: str,
    data: Any,
    path: Path,
    *,
    collator: Any = default_data_collator,
    cached: bool = False,
    pad: int = PAD,
    **options: Any,
) -> dict[str, float]:
    """The distillation losses of an evaluation of a copy of the teacher, by their names."""
    teacher = zoo_model(task, architecture, seed=0, layers=2, pad_token_id=pad).eval()
    student = copy.deepcopy(teacher)
    layers = architecture not in NOT_STACKS
    if cached and architecture in TWO_STACKS:
        layers = False  # their hidden states are not stored
    if cached:
        data = cache_teacher_outputs(
            teacher, data, output_dir=path / "cache", data_collator=collator, dtype="float32",
            use_cpu=True, batch_size=2, **({"hidden_layers": [0, 1, 2]} if layers else {}),
        )  # fmt: skip
    elif layers and "wavlm" not in architecture:
        loss = "probabilities" if architecture in WITHOUT_QUERIES else "scores"
        options = {"attention_loss_weight": 1.0, "attention_loss": loss, **options}
    if layers:
        options = {"hidden_states_loss_weight": 1.0, **options}
    trainer = DistillationTrainer(
        model=student, teacher_model=None if cached else teacher, eval_dataset=data,
        data_collator=collator,
        args=arguments(path, per_device_eval_batch_size=3, teacher_check_samples=0, **options),
    )  # fmt: skip
    metrics = trainer.evaluate()
    names = ("prediction", "hidden_states", "attention")
    found = {name: metrics[f"eval_loss_{name}"] for name in names if f"eval_loss_{name}" in metrics}
    weights = trainer.args.intermediate_weights
    assert set(found) == {"prediction"} | {name for name, weight in weights.items() if weight}
    return found


def assert_zero(found: dict[str, float]) -> None:
    assert all(abs(value) <= 1e-6 for value in found.values()), found


def padded_left(data: Dataset) -> Dataset:
    """Each row with its padding in front."""

    def move(row: dict[str, Any]) -> dict[str, Any]:
        masks = row["attention_mask"]
        if isinstance(masks[0], list):  # choices
            return {
                name: [_rolled(value, mask) for value, mask in zip(values, masks, strict=True)]
                if name != "labels" else values
                for name, values in row.items()
            }  # fmt: skip
        moved = {k: _rolled(v, masks) if isinstance(v, list) and len(v) == len(masks) else v
                 for k, v in row.items()}  # fmt: skip
        for name in ("start_positions", "end_positions"):
            if name in row:
                moved[name] = row[name] + len(masks) - sum(masks)
        return moved

    return data.map(move)


def _rolled(values: list[Any], mask: list[int]) -> list[Any]:
    valid = sum(mask)
    return values[valid:] + values[:valid]


def bare(data: Dataset) -> list[dict[str, Any]]:
    """Rows without padding, as a tokenizer leaves them."""

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        masks = row["attention_mask"]
        if isinstance(masks[0], list):
            return {
                name: [value[: sum(mask)] for value, mask in zip(values, masks, strict=True)]
                if name != "labels" else values
                for name, values in row.items()
            }  # fmt: skip
        return {k: v[: sum(masks)] if isinstance(v, list) and len(v) == len(masks) else v
                for k, v in row.items()}  # fmt: skip

    return Dataset.from_list([cut(row) for row in data])


def padding(side: str, collator: Callable[..., Any], **options: Any) -> Any:
    words = tokenizer()
    words.padding_side = side
    return collator(words, **options)


COLLATORS: dict[str, Callable[..., Any]] = {
    "question-answering": DataCollatorWithPadding,
    "text-classification": DataCollatorWithPadding,
    "token-classification": DataCollatorForTokenClassification,
    "multiple-choice": DataCollatorForMultipleChoice,
    "fill-mask": DataCollatorForTokenClassification,
    "text-generation": DataCollatorForTokenClassification,
    "summarization": DataCollatorForSeq2Seq,
}


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize(("task", "architecture"), CASES)
def test_every_task_and_architecture(
    task: str, architecture: str, cached: bool, tmp_path: Path
) -> None:
    assert_zero(losses(task, architecture, zoo_dataset(task, ROWS), tmp_path, cached=cached))


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize(
    ("task", "architecture"),
    sorted({(task, name) for name, task in BY_ARCHITECTURE.items()} & set(TEXTS)),
)
def test_padding_on_the_left(task: str, architecture: str, cached: bool, tmp_path: Path) -> None:
    data = padded_left(zoo_dataset(task, ROWS))
    assert_zero(losses(task, architecture, data, tmp_path, cached=cached))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize("task", COLLATORS)
def test_collators_that_pad(task: str, cached: bool, side: str, tmp_path: Path) -> None:
    """Stored outputs do not fit where positions begin at the padding of another batch."""
    names = [name for one, name in PAIRS if one == task]
    architectures = [names[0], *(name for name in names[1:] if name == "llama")]
    data = bare(zoo_dataset(task, ROWS))
    for architecture in architectures:
        collator = padding(side, COLLATORS[task])
        options = {"cached": cached, "collator": collator, "pad": 0}
        if cached and side == "left" and architecture != "llama":
            refusal = "depend on how far the data collator pads|do not belong to its input"
            with pytest.raises(ValueError, match=refusal):
                losses(task, architecture, data, tmp_path / architecture, **options)
        else:
            assert_zero(losses(task, architecture, data, tmp_path / architecture, **options))


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_labels_that_the_collator_makes(architecture: str, tmp_path: Path) -> None:
    task = "fill-mask" if architecture == "bert" else "text-generation"
    collator = padding("right", DataCollatorForLanguageModeling, mlm=architecture == "bert", seed=0)
    data = bare(zoo_dataset(task, ROWS, labels=False))
    assert_zero(losses(task, architecture, data, tmp_path, collator=collator))


@pytest.mark.parametrize("attention_loss", ["scores", "probabilities", "probabilities_mse",
                                            "relations"])  # fmt: skip
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_packed_rows(architecture: str, attention_loss: str, tmp_path: Path) -> None:
    task = "text-generation"
    data = bare(zoo_dataset(task, ROWS, labels=False)).remove_columns("attention_mask")
    assert_zero(losses(task, architecture, data, tmp_path, collator=DataCollatorWithFlattening(),
                       attention_loss=attention_loss, remove_unused_columns=False))  # fmt: skip


@pytest.mark.parametrize("attention_loss", ["probabilities", "probabilities_mse", "relations"])
@pytest.mark.parametrize("architecture", sorted(BY_ARCHITECTURE.keys() - {*NOT_STACKS, *SAME_CODE}))
def test_every_attention_loss(architecture: str, attention_loss: str, tmp_path: Path) -> None:
    task = BY_ARCHITECTURE[architecture]
    options: dict[str, Any] = {"attention_loss_weight": 1.0, "attention_loss": attention_loss}
    data = zoo_dataset(task, ROWS)
    if attention_loss == "relations" and architecture in (*WITHOUT_QUERIES, "wavlm"):
        with pytest.raises(ValueError, match="use attention_loss='probabilities'"):
            losses(task, architecture, data, tmp_path, **options)
    else:
        assert_zero(losses(task, architecture, data, tmp_path, **options))


@pytest.mark.parametrize("name", ["hidden_states_loss_weight", "attention_loss_weight"])
@pytest.mark.parametrize("architecture", NOT_STACKS)
def test_layers_that_cannot_be_compared_are_refused(
    architecture: str, name: str, tmp_path: Path
) -> None:
    task = BY_ARCHITECTURE[architecture]
    with pytest.raises(ValueError, match=name[:-7]):
        losses(task, architecture, zoo_dataset(task, ROWS), tmp_path, **{name: 1.0})


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_targets_in_the_batch(architecture: str, cached: bool, tmp_path: Path) -> None:
    data = zoo_dataset("summarization", ROWS, target=True)
    assert_zero(losses("summarization", architecture, data, tmp_path, cached=cached))


def test_padding_that_the_teacher_takes_for_text(tmp_path: Path) -> None:
    """Its config.pad_token_id is not the tokenizer's, so it pools the last padding."""
    task, collator = "text-classification", padding("right", DataCollatorWithPadding)
    with pytest.raises(ValueError, match="config.pad_token_id is the tokenizer's"):
        losses(task, "llama", bare(zoo_dataset(task, ROWS)), tmp_path, cached=True,
               collator=collator, pad=PAD)  # fmt: skip


def test_every_task_is_here() -> None:
    assert {task for task, _ in CASES} == set(AUTO_MODELS)
