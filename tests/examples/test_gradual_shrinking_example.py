"""The example of shrinking in steps: each student from the one before, resumed where it was."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from example_runs import EXAMPLES
from safetensors.torch import load_file
from test_more_examples import squad_file
from tiny import model_for, tokenizer

import hf_distill


def test_each_student_is_made_from_the_one_before_and_a_stopped_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide: Any = model_for("question-answering", seed=0, width=32, num_attention_heads=4)
    wide.save_pretrained(tmp_path / "teacher")
    tokenizer().save_pretrained(tmp_path / "teacher")
    made: list[tuple[int, int]] = []
    create = hf_distill.create_student

    def noted(model: Any, **options: Any) -> Any:
        made.append((model.config.hidden_size, options["hidden_size"]))
        return create(model, **options)

    monkeypatch.setattr(hf_distill, "create_student", noted, raising=False)

    def run(output: str) -> dict[str, torch.Tensor]:
        options: dict[str, Any] = {
            "teacher": tmp_path / "teacher",
            "train_file": squad_file(tmp_path / "train.json", 16),
            "validation_file": squad_file(tmp_path / "dev.json", 4),
            "output_dir": tmp_path / output,
            "max_length": 32,
            "doc_stride": 4,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        words += ["--hidden_sizes", "24", "16"]
        monkeypatch.setattr(sys, "argv", ["gradual_shrinking.py", *words])
        runpy.run_path(str(EXAMPLES / "gradual_shrinking.py"), run_name="__main__")
        return load_file(tmp_path / output / "16" / "model.safetensors")

    whole = run("whole")
    assert made == [(32, 24), (24, 16)]
    assert whole["bert.encoder.layer.0.output.dense.weight"].shape[0] == 16
    # Stopped in the second step, after its first checkpoint.
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for path in (tmp_path / "stopped" / "16").iterdir():
        if path.name == "checkpoint-2":
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # And while the student was written.
    (tmp_path / "stopped" / "16" / "config.json").write_bytes(
        (tmp_path / "whole" / "16" / "config.json").read_bytes()
    )
    made.clear()
    resumed = run("stopped")
    assert made == [(24, 16)]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
