"""Promise 7 of the design: the teacher is prepared for FSDP2, sharded and still frozen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(directory: Path, processes: int) -> dict:
    directory.mkdir()
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, str(Path(__file__).with_name("fsdp2.py")), str(directory)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    return json.loads((directory / "rank0.json").read_text())


def test_two_sharded_processes_train_as_one(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    assert two["student_sharded"] > 0 and two["teacher_sharded"] > 0
    assert not two["teacher_trains"]
    for name in ("loss", "loss_task", "loss_prediction"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
