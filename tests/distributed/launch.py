"""Runs the scripts of this folder in one process or in two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked

Results = dict[str, dict[str, Any]]
"""What a process found, by case."""

LOSSES = ("loss", "loss_task", "loss_prediction", "loss_hidden_states", "loss_attention")


def launch(script: str, *arguments: str, processes: int) -> forked.Run:
    """Run a script of this folder on the CPU."""
    return forked.run(
        Path(__file__).with_name(script),
        *arguments,
        processes=processes,
        environment={"ACCELERATE_USE_CPU": "true"},
        seconds=600,
    )


def run(
    directory: Path,
    cases: dict[str, Any],
    *,
    processes: int,
    batch: int,
    accumulation: int,
    script: str = "step.py",
) -> list[Results]:
    """What each process of a script found."""
    words = (str(directory), str(batch), str(accumulation), json.dumps(cases))
    done = launch(script, *words, processes=processes)
    assert done.ok, done.stderr
    return [json.loads((directory / f"rank{r}.json").read_text()) for r in range(processes)]
