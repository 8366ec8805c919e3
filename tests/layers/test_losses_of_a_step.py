"""A step's intermediate losses, for every architecture: right, and however split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layer_references import (
    batch_of,
    hidden_states_loss,
    least_squares,
    models,
    probabilities_loss,
    scores_loss,
)
from runs import distil, logged
from transformers import default_data_collator
from zoo import PAIRS, zoo_dataset, zoo_model

from hf_distill.layers.projections import Projections

NOT_STACKS = ("t5", "bart", "whisper", "convnext")
WITHOUT_QUERIES = ("mpnet", "deberta-v2")
SUPPORTED = [pair for pair in PAIRS if pair[1] not in NOT_STACKS]
ONE_TASK = {name: task for task, name in reversed(SUPPORTED)}
MAPPING = [(0, 0), (1, 2)]


def run(task: str, student: Any, teacher: Any, path: Path, **options: Any) -> Any:
    return distil(
        task,
        path,
        student=student,
        teacher=teacher,
        train_dataset=options.pop("train_dataset", None) or zoo_dataset(task),
        trainer_options={"data_collator": default_data_collator},
        **{
            "stage": "intermediate",
            "attention_loss": "probabilities",
            "max_steps": 1,
            "max_grad_norm": 0.0,
            "train_sampling_strategy": "sequential",
            "per_device_train_batch_size": 16,
            "learning_rate": 0.0,
            **options,
        },
    )


@pytest.mark.parametrize(("task", "architecture"), SUPPORTED)
def test_the_losses_are_those_of_sentences_alone(
    task: str, architecture: str, tmp_path: Path
) -> None:
    """Every sentence by itself, unpadded, in float64, with eager attention."""
    student, teacher = models(task, architecture)
    batch = batch_of(task)
    # Layer 2 of ModernBERT has local attention and layer 1 has not.
    pairs = [(0, 0), (1, 1)] if architecture == "modernbert" else MAPPING
    hidden = hidden_states_loss(student, teacher, batch, pairs)
    attention = probabilities_loss(student, teacher, batch, pairs)
    mapping = ",".join(f"{i}:{j}" for i, j in pairs)
    trained, _ = run(task, student, teacher, tmp_path, layer_mapping=mapping)
    assert logged(trained, "loss_hidden_states") == [pytest.approx(hidden, rel=1e-4)]
    assert logged(trained, "loss_attention") == [pytest.approx(attention, rel=1e-4)]
    assert logged(trained, "loss") == [pytest.approx(hidden + attention, rel=1e-4)]
    assert logged(trained, "loss_task") == logged(trained, "loss_prediction") == []


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_scores_are_a_mean_over_the_pairs_that_see_each_other(
    architecture: str, tmp_path: Path
) -> None:
    task = "text-classification"
    student, teacher = models(task, architecture)
    causal = architecture == "gpt2"
    expected = scores_loss(student, teacher, batch_of(task), MAPPING, causal=causal)
    trained, _ = run(task, student, teacher, tmp_path, attention_loss="scores")
    assert logged(trained, "loss_attention") == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize("attention_loss", ["scores", "probabilities_mse", "relations"])
@pytest.mark.parametrize("architecture", sorted(ONE_TASK))
def test_accumulation_changes_neither_loss_nor_gradient(
    architecture: str, attention_loss: str, tmp_path: Path
) -> None:
    if architecture in WITHOUT_QUERIES and not attention_loss.startswith("probabilities"):
        pytest.skip("its queries and keys cannot be recorded; test_refusals.py has it")
    task = ONE_TASK[architecture]

    def step(size: int) -> Any:
        return run(
            task,
            *models(task, architecture),
            tmp_path,
            attention_loss=attention_loss,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
        )

    whole, norms_whole = step(16)
    for size in (4, 1):
        split, norms_split = step(size)
        for part in ("loss", "loss_hidden_states", "loss_attention"):
            assert logged(split, part) == pytest.approx(logged(whole, part), rel=2e-5), part
        assert norms_split.norms == pytest.approx(norms_whole.norms, rel=2e-5)


def test_layers_with_local_attention(tmp_path: Path) -> None:
    task, pairs = "text-classification", [(2, 2)]
    student = zoo_model(task, "modernbert", seed=0, layers=2)
    teacher = zoo_model(task, "modernbert", seed=1, layers=2)
    attention = probabilities_loss(student, teacher, batch_of(task), pairs)
    trained, _ = run(task, student, teacher, tmp_path, layer_mapping="2:2")
    assert logged(trained, "loss_attention") == [pytest.approx(attention, rel=1e-4)]


def test_narrower_students_are_projected(tmp_path: Path) -> None:
    """One projection for the embeddings, one for the layers (TinyBERT, equations 8 and 9).

    They begin with least squares on the training data: nothing linear is nearer to the teacher.
    """
    task = "question-answering"
    student, teacher = models(task, "bert", hidden_size=8)
    batch = batch_of(task)
    best = least_squares(student, teacher, batch, MAPPING)
    at_random = Projections(8, 16, seed=42, device=torch.device("cpu")).maps
    expected, random = (
        hidden_states_loss(student, teacher, batch, MAPPING, maps) for maps in (best, at_random)
    )
    trained, _ = run(task, student, teacher, tmp_path, attention_loss_weight=0.0)
    assert logged(trained, "loss") == [pytest.approx(expected, rel=1e-4)]
    assert expected < 0.8 * random


def test_mixed_into_the_prediction_stage(tmp_path: Path) -> None:
    task = "question-answering"
    student, teacher = models(task, "bert")
    hidden = hidden_states_loss(student, teacher, batch_of(task), MAPPING)
    attention = probabilities_loss(student, teacher, batch_of(task), MAPPING)
    trained, _ = run(
        task, student, teacher, tmp_path, stage="prediction", distillation_loss_weight=0.25,
        hidden_states_loss_weight=0.5, attention_loss_weight=2.0,
    )  # fmt: skip
    (label_loss,), (prediction,) = logged(trained, "loss_task"), logged(trained, "loss_prediction")
    total = 0.75 * label_loss + 0.25 * prediction + 0.5 * hidden + 2.0 * attention
    assert logged(trained, "loss") == [pytest.approx(total, rel=1e-4)]


def test_weights_are_read_at_every_step(tmp_path: Path) -> None:
    task = "question-answering"
    student, teacher = models(task, "bert")
    trained, _ = run(task, student, teacher, tmp_path, max_steps=1)
    hidden, attention = (
        logged(trained, "loss_hidden_states")[0],
        logged(trained, "loss_attention")[0],
    )
    trained, _ = run(task, student, teacher, tmp_path, hidden_states_loss_weight=3.0,
                     attention_loss_weight=0.5)  # fmt: skip
    assert logged(trained, "loss") == [pytest.approx(3 * hidden + 0.5 * attention, rel=1e-5)]


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "modernbert"])
@pytest.mark.parametrize("attention_loss", ["scores", "probabilities", "relations"])
def test_the_padding_content_changes_nothing(
    architecture: str, attention_loss: str, tmp_path: Path
) -> None:
    task = "text-classification"
    data = zoo_dataset(task)
    other = data.map(
        lambda row: {
            "input_ids": [
                i if m else 7 + n % 5
                for n, (i, m) in enumerate(
                    zip(row["input_ids"], row["attention_mask"], strict=True)
                )
            ]
        }
    )
    results = []
    for rows in (data, other):
        student = zoo_model(task, architecture, seed=0)
        teacher = zoo_model(task, architecture, seed=1, layers=2)
        trained, norms = run(
            task, student, teacher, tmp_path, train_dataset=rows, attention_loss=attention_loss
        )
        results.append((logged(trained, "loss"), norms.norms))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


# The default backend writes C++, which takes half a minute; test_training_modes.py has it once.
COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


@pytest.mark.parametrize("options", [
    {"bf16": True}, {"gradient_checkpointing": True}, COMPILED,
    {**COMPILED, "gradient_checkpointing": True},
], ids=str)  # fmt: skip
def test_modes_of_training(options: dict[str, Any], tmp_path: Path) -> None:
    task, steps = "question-answering", {"max_steps": 2, "learning_rate": 1e-3}
    plain, norms = run(task, *models(task, "bert"), tmp_path, attention_loss="scores", **steps)
    other, other_norms = run(
        task, *models(task, "bert"), tmp_path, attention_loss="scores", **steps, **options
    )
    tolerance = 0.05 if "bf16" in options else 1e-5
    for part in ("loss", "loss_hidden_states", "loss_attention"):
        assert logged(other, part) == pytest.approx(logged(plain, part), rel=tolerance)
    assert other_norms.norms == pytest.approx(norms.norms, rel=tolerance)
