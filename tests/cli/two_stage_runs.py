"""What the tests of two stages in one command share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl

from hf_distill import DistillationTrainer

TASK = "question-answering"
STAGES = ("--intermediate_max_steps", "4", "--intermediate_learning_rate", "3e-3")
LAST = ("--resume_from_checkpoint", "last")


def one_stage(options: list[str]) -> list[str]:
    """The same run without its first stage."""
    place = options.index(STAGES[0])
    return [*options[:place], *options[place + len(STAGES) :]]


class Killed(BaseException):
    """The process is gone: no handler runs."""


def weights(folder: Path | str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def kill(
    monkeypatch: pytest.MonkeyPatch, *, stage: str, step: int, error: type[BaseException] = Killed
) -> None:
    """Let the next run end when this step of this stage is done, and the checkpoint saved."""
    untouched = DistillationTrainer.train

    def train(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.args.stage == stage:

            class Kill(TrainerCallback):
                def on_step_begin(
                    self, args: Any, state: Any, control: TrainerControl, **kwargs: Any
                ) -> None:
                    if state.global_step == step:
                        raise error

            self.add_callback(Kill())
        return untouched(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", train)
