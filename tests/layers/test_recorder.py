"""Samples that ``TeacherRecorderCallback`` writes, in both stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import arguments, distil
from tiny import dataset_for, model_for, tokenizer
from torch import Tensor, nn

from hf_distill import DistillationTrainer, TeacherRecorderCallback
from hf_distill.layers.samples import SampleFolder

TASK = "question-answering"
LOTS = 2**30


def record(path: Path, student: nn.Module, teacher: nn.Module, **options: Any) -> list[Any]:
    recorder_options = options.pop("recorder", {"every_steps": 2})
    recorder = TeacherRecorderCallback(save_to=path / "samples", **recorder_options)
    distil(
        TASK, path, student=student, teacher=teacher, train_sampling_strategy="sequential",
        trainer_options={"callbacks": [recorder], **options.pop("trainer_options", {})},
        **{"learning_rate": 0.0, **options},
    )  # fmt: skip
    return list(SampleFolder(path / "samples", max_bytes=LOTS))


@pytest.mark.parametrize("options", [
    {}, {"stage": "intermediate"}, {"stage": "intermediate", "attention_loss": "scores"},
    {"hidden_states_loss_weight": 1.0},
    {"gradient_accumulation_steps": 2},
], ids=str)  # fmt: skip
def test_samples_are_what_the_models_compute(options: dict[str, Any], tmp_path: Path) -> None:
    student, teacher = model_for(TASK, seed=0, layers=1, width=8), model_for(TASK, seed=1)
    samples = record(
        tmp_path, student, teacher, trainer_options={"processing_class": tokenizer()}, **options
    )
    assert [sample.step for sample in samples] == [0, 2]
    rows = dataset_for(TASK).with_format("torch")
    for sample in samples:
        row = rows[sample.step * 4 * options.get("gradient_accumulation_steps", 1) % 16]
        valid = row["attention_mask"].bool()
        assert sample.input_ids.tolist() == row["input_ids"][valid].tolist()
        assert sample.tokens == tokenizer().convert_ids_to_tokens(sample.input_ids.tolist())
        assert sample.layer_pairs == [(0, 0), (1, 2)]
        for who, model, layers in (("teacher", teacher, {0, 2}), ("student", student, {0, 1})):
            model.eval().set_attn_implementation("eager")
            with torch.no_grad():
                outputs = model(
                    row["input_ids"][None], row["attention_mask"][None],
                    row["token_type_ids"][None], output_hidden_states=True, output_attentions=True,
                )  # fmt: skip
            recorded = getattr(sample, who)
            assert set(recorded.hidden_states) == layers
            for layer, states in recorded.hidden_states.items():
                expected = outputs.hidden_states[layer][0][valid]
                torch.testing.assert_close(states.float(), expected, atol=5e-3, rtol=5e-3)
            for layer in layers - {0}:
                maps: Tensor = outputs.attentions[layer - 1][0][:, valid][:, :, valid]
                found = sample.attention(who, layer)
                torch.testing.assert_close(found, maps, atol=5e-3, rtol=5e-3)


def test_recording_changes_nothing_in_the_run(tmp_path: Path) -> None:
    students = [model_for(TASK, seed=0, layers=1, hidden_dropout_prob=0.1) for _ in range(2)]
    teacher = model_for(TASK, seed=1)
    record(tmp_path, students[0], teacher, learning_rate=1e-2, recorder={"every_steps": 1})
    distil(TASK, tmp_path / "plain", student=students[1], teacher=teacher, learning_rate=1e-2,
           train_sampling_strategy="sequential")  # fmt: skip
    for one, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_may_be_resumed_with_a_recorder(tmp_path: Path) -> None:
    """It adds nothing that a checkpoint must have."""
    student, teacher = model_for(TASK, seed=0, layers=1), model_for(TASK, seed=1)
    distil(TASK, tmp_path, student=student, teacher=teacher, save_strategy="steps", save_steps=2)
    again = DistillationTrainer(
        model=model_for(TASK, seed=0, layers=1), teacher_model=teacher,
        args=arguments(tmp_path, max_steps=6), train_dataset=dataset_for(TASK),
        callbacks=[TeacherRecorderCallback(tmp_path / "samples", every_steps=1)],
    )  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    steps = [sample.step for sample in SampleFolder(tmp_path / "samples", max_bytes=LOTS)]
    assert steps == [2, 3, 4, 5]


def test_the_folder_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = model_for(TASK, seed=0, layers=1), model_for(TASK, seed=1)
    samples = record(
        tmp_path, student, teacher, max_steps=8, recorder={"every_steps": 1, "max_bytes": 30_000}
    )
    size = sum(file.stat().st_size for file in (tmp_path / "samples").iterdir())
    assert 0 < len(samples) < 8 and size <= 30_000
    assert sum("max_bytes" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("options", [{"every_steps": 0}, {"max_bytes": -1}])
def test_bad_options(options: dict[str, int]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but it is {value}"):
        TeacherRecorderCallback(save_to="samples", **options)
