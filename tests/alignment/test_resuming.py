"""A run with a teacher of another tokenizer that was stopped ends as one that was not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import arguments
from settings import SETTINGS, setting

from hf_distill import DistillationTrainer, cache_teacher_outputs


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_has_the_same_weights(name: str, cached: bool, tmp_path: Path) -> None:
    student, teacher, rows, ours, theirs, collator = setting(name)
    given: dict[str, Any] = {
        "processing_class": ours,
        "teacher_processing_class": theirs,
        "data_collator": collator,
    }
    if cached:
        options: dict[str, Any] = {"output_dir": tmp_path / "cache", "use_cpu": True, **given}
        rows, teacher = cache_teacher_outputs(teacher, rows, **options), None

    def train(folder: str, checkpoint: str | None = None) -> DistillationTrainer:
        trainer = DistillationTrainer(
            model=copy.deepcopy(student),
            teacher_model=teacher,
            args=arguments(
                tmp_path / folder,
                max_steps=4,
                save_strategy="steps",
                save_steps=2,
                per_device_train_batch_size=2,
                teacher_check_samples=0,
            ),
            train_dataset=rows,
            **given,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = train("whole")
    resumed = train("resumed", str(tmp_path / "whole" / "checkpoint-2"))
    assert whole.distiller.alignment.two_encodings
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"]
