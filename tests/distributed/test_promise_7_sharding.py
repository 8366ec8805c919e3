"""Promise 7 of the design: the teacher is prepared for FSDP2 and DeepSpeed, and still frozen."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch import LOSSES
from safetensors.torch import load_file

from hf_distill.intermediate import PROJECTIONS_FILE

pytestmark = pytest.mark.slow

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed (on a CPU: DS_ACCELERATOR=cpu DS_BUILD_OPS=0 pip install)",
)


def run(directory: Path, kind: str, stage: str, processes: int) -> dict:
    directory.mkdir()
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, str(Path(__file__).with_name("sharded.py")), str(directory), kind, stage],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        timeout=240,
    )
    return json.loads((directory / "rank0.json").read_text())


@pytest.mark.parametrize(
    "kind",
    [
        "fsdp2",
        pytest.param("zero2", marks=needs_deepspeed),
        pytest.param("zero3", marks=needs_deepspeed),
    ],
)
@pytest.mark.parametrize("stage", ["prediction", "intermediate"])
def test_two_sharded_processes_train_as_one(kind: str, stage: str, tmp_path: Path) -> None:
    one = run(tmp_path / "one", "plain", stage, 1)
    two = run(tmp_path / "two", kind, stage, 2)
    assert two["processes"] == 2
    assert two["teacher_sharded"] == (kind != "zero2")
    assert two["student_sharded"] == (kind != "zero2")
    assert not two["teacher_trains"]
    for name in LOSSES:
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert bool(one["loss_hidden_states"]) == (stage == "intermediate")
    if stage == "intermediate":
        files = [tmp_path / who / "checkpoint-4" / PROJECTIONS_FILE for who in ("one", "two")]
        alone, sharded = (load_file(file) for file in files)
        for name, value in alone.items():
            assert value.flatten().tolist() == pytest.approx(
                sharded[name].flatten().tolist(), rel=1e-3, abs=1e-5
            )
