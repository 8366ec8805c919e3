"""Runs scripts in one process, or in two under ``accelerate launch``, as users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, Any]]
"""What a process found, by case."""

LOSSES = ("loss", "loss_task", "loss_prediction", "loss_hidden_states", "loss_attention")


def launched(script: str, processes: int) -> tuple[list[str], dict[str, str]]:
    """The command that runs a script of this folder, and its environment."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        command += f"--num_processes {processes} --mixed_precision no --dynamo_backend no".split()
        command += ["--main_process_port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return [*command, str(Path(__file__).with_name(script))], environment


def run(
    directory: Path, cases: dict[str, Any], *, processes: int, batch: int, accumulation: int
) -> list[Results]:
    """What each process of ``step.py`` found."""
    command, environment = launched("step.py", processes)
    subprocess.run(
        [*command, str(directory), str(batch), str(accumulation), json.dumps(cases)],
        check=True,
        env=environment,
        timeout=600,
    )
    return [json.loads((directory / f"rank{r}.json").read_text()) for r in range(processes)]
