"""Promise 1 of the design over two processes, under `accelerate launch`, as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import TASKS

STEP = Path(__file__).with_name("step.py")
pytestmark = pytest.mark.slow


def run(directory: Path, task: str, processes: int, batch: int, accumulation: int) -> list[dict]:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        launch += f"--num_processes {processes} --mixed_precision no --dynamo_backend no".split()
        launch += ["--main_process_port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launch, str(STEP), str(directory), task, str(batch), str(accumulation), "0.3"],
        check=True,
        env=environment,
        timeout=240,
    )
    return [json.loads((directory / f"rank{r}.json").read_text()) for r in range(processes)]


@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_split(task: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "1x16", task, 1, 16, 1)[0]
    for processes, batch, accumulation in ((2, 8, 1), (2, 4, 2)):
        ranks = run(tmp_path / f"{batch}x{accumulation}", task, processes, batch, accumulation)
        assert [rank["processes"] for rank in ranks] == [2, 2]
        for name in ("loss", "loss_task", "loss_prediction"):
            assert ranks[0][name] == pytest.approx(whole[name], rel=1e-5), name
        for rank in ranks:
            assert rank["norms"] == pytest.approx(whole["norms"], rel=1e-5)
            assert rank["weights"] == pytest.approx(whole["weights"], rel=1e-5, abs=1e-6)
            assert rank["teacher_class"] == whole["teacher_class"]  # not wrapped in DDP
        assert ranks[0]["weights"] == ranks[1]["weights"]
