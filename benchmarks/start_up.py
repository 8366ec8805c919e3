"""How long ``import hf_distill`` and ``hf-distill --help`` take, beside what they need anyway.

    OMP_NUM_THREADS=1 python benchmarks/start_up.py --record

Fresh processes take turns; shown are medians and quartiles of CPU seconds, and how much that is
above an interpreter that does nothing, or above the import of ``transformers.Trainer``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import quantiles
from typing import Any

from report import measure_and_record

WAYS = {
    "python -c pass": ("-c", "pass"),
    "hf-distill --help": ("-m", "hf_distill", "--help"),
    "hf-distill train --help": ("-m", "hf_distill", "train", "--help"),
    "import transformers.Trainer": ("-c", "from transformers import Trainer"),
    "import hf_distill": ("-c", "import hf_distill"),
    "import hf_distill.DistillationTrainer": ("-c", "from hf_distill import DistillationTrainer"),
}
FLOOR = {
    "hf-distill --help": "python -c pass",
    "hf-distill train --help": "python -c pass",
    "import hf_distill": "python -c pass",
    "import hf_distill.DistillationTrainer": "import transformers.Trainer",
}
TURNS = 7


def seconds(words: tuple[str, ...]) -> float:
    """Return the CPU seconds of a process."""
    before = sum(os.times()[2:4])
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return sum(os.times()[2:4]) - before


def measure() -> dict[str, Any]:
    """Return the quartiles of each way."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(TURNS + 1):
        for name, words in WAYS.items():
            taken = seconds(words)
            if turn:  # the first reads files from the disk
                times[name].append(taken)
    return {name: quantiles(taken, n=4) for name, taken in times.items()}


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | CPU seconds | |", "|---|---:|---|"]
    for name, (low, middle, high) in results.items():
        floor = FLOOR.get(name)
        more = f"{middle - results[floor][1]:.2f} s more than `{floor}`" if floor else ""
        lines.append(f"| `{name}` | {middle:.2f} ({low:.2f}–{high:.2f}) | {more} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    measure_and_record("start_up", str(__doc__), measure, table)
