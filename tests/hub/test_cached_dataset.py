"""A data set with its teacher's outputs on the Hub: the columns come back with their meaning."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import forked
from hub.writable import TOKEN, writable_hub

SCRIPT = """
import sys
from datasets import load_dataset
from transformers import default_data_collator
from hf_distill import DistillationTrainer, cache_teacher_outputs
from hf_distill.teachers.columns import SignalDescription
sys.path.insert(0, sys.argv[1])
from runs import arguments
from tiny import dataset_for, model_for

task = "question-answering"
cached = cache_teacher_outputs(
    model_for(task, seed=1), dataset_for(task), data_collator=default_data_collator, use_cpu=True
)
cached.push_to_hub("tester/cached", private=True)
again = load_dataset("tester/cached", split="train")
assert SignalDescription.of(again) == SignalDescription.of(cached)
assert again["teacher_logits"] == cached["teacher_logits"]
losses = []
for data in (cached, again):
    trainer = DistillationTrainer(
        model=model_for(task, seed=0),
        args=arguments("out", distillation_loss_weight=1.0),
        train_dataset=data,
    )
    trainer.train()
    losses.append([e["loss_prediction"] for e in trainer.state.log_history if "loss" in e])
assert losses[0] == losses[1] and len(losses[0]) == 3
"""


def test_teacher_columns_come_back_from_the_hub(tmp_path: Path) -> None:
    with writable_hub(tmp_path / "hub") as hub:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        done = subprocess.run(
            [forked.interpreter(), "-c", SCRIPT, str(Path(__file__).parents[1])],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    assert any(path.endswith(".parquet") for path in _paths(hub.root / "datasets"))
    assert "tester/cached" in hub.private


def _paths(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*")]
