"""What a GPU does in a step: the time of its kernels, and how many are launched.

    python benchmarks/gpu_kernels.py --record        # on a machine with a GPU

The times of steps in ``step_cost.py`` vary where a GPU waits for the processor that launches its
kernels. The time that kernels take does not: PyTorch's profiler adds it up over three steps, in
bfloat16, 12 → 6 layers of 768, 32 rows of 384 tokens.
"""

from __future__ import annotations

import tempfile
import time
from statistics import median
from typing import Any

import torch
from gpu_paths import synchronize
from report import measure_and_record
from step_cost import ON_GPU, Setting, bare_loop, make_data, trained
from torch.profiler import ProfilerActivity, profile

WAYS = ("bare loop", "Trainer", "distilled", "weight 0", "attention scores")
SETTLED, FIRST, LAST = 4, 12, 15
SETTING = Setting(ON_GPU[1].name, *(768, 12, 12, 6, 30522, 32, 384), LAST - 1, bf16=True)


class Watched:
    """In the place of ``Turns``: times steps, and profiles the last ones."""

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def done(self, name: str, *, last: bool = False) -> None:
        """Take note of the end of a step."""
        if last:
            return
        synchronize()
        self.ended.append(time.perf_counter())
        if len(self.ended) == FIRST:
            self.profile.__enter__()
        if len(self.ended) == LAST:
            self.profile.__exit__(None, None, None)

    def wait(self, name: str) -> None:
        """Nobody else has a turn."""


def measure(name: str) -> dict[str, float]:
    watched: Any = Watched()
    data = make_data(SETTING)
    with tempfile.TemporaryDirectory() as folder:
        if name == "bare loop":
            bare_loop(SETTING, data, watched)
        else:
            trained(SETTING, data, watched, name, folder)
    times = [b - a for a, b in zip(watched.ended, watched.ended[1:FIRST], strict=False)]
    events, steps = watched.profile.key_averages(), LAST - FIRST
    # An operator has the time of its kernels, which are events, too.
    kernels = sum(event.self_device_time_total for event in events) / 2
    return {
        "ms": 1e3 * median(times[SETTLED:]),
        "kernels_ms": kernels / steps / 1e3,
        "launches": sum(e.count for e in events if "LaunchKernel" in e.key) / steps,
    }


def render(found: dict[str, Any]) -> str:
    """Return the table."""
    rows = found["rows"]
    lines = [
        f"{found['gpu']}; {SETTING.name}.",
        "",
        "| | time of kernels, ms | beside the bare loop's or Trainer's | launches |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        base = {"distilled": "bare loop", "weight 0": "Trainer"}.get(name, "")
        beside = f"{row['kernels_ms'] / rows[base]['kernels_ms']:.3f}" if base else ""
        lines.append(f"| {name} | {row['kernels_ms']:.1f} | {beside} | {row['launches']:,.0f} |")
    return "\n".join(lines) + "\n"


def measure_all() -> dict[str, Any]:
    """Measure each way; it needs a GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here.")
    return {"gpu": torch.cuda.get_device_name(), "rows": {name: measure(name) for name in WAYS}}


if __name__ == "__main__":
    measure_and_record("gpu_kernels", str(__doc__), measure_all, render)
