"""Promise 3 of the design: killed at any step, a run resumes to the same weights, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from launch import launch
from safetensors.torch import load_file

from hf_distill.layers import PROJECTIONS_FILE

pytestmark = pytest.mark.slow
NEVER = -1


def run(folder: Path, processes: int, kill_at: int) -> bool:
    folder.mkdir(exist_ok=True)
    return launch("killed.py", str(folder), str(kill_at), processes=processes).ok


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_with_the_same_weights_and_projections(
    processes: int, tmp_path: Path
) -> None:
    step = random.Random(processes).randrange(3, 8)
    assert run(tmp_path / "whole", processes, NEVER)
    assert not run(tmp_path / "killed", processes, step)
    assert not (tmp_path / "killed" / "checkpoint-8").exists()
    assert run(tmp_path / "killed", processes, NEVER)
    for name in ("model.safetensors", PROJECTIONS_FILE):
        whole, resumed = (
            load_file(tmp_path / folder / "checkpoint-8" / name) for folder in ("whole", "killed")
        )
        assert whole.keys() == resumed.keys() and whole
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
