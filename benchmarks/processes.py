"""What a second process is worth: steps by ``DistillationTrainer`` and by ``Trainer`` under DDP.

    python benchmarks/processes.py --record

One and two processes with one thread each train the same student, the same number of rows a
process. Whole trainings take turns; a step is the time between the ends of two optimizer steps of
the main process, and what is shown are medians over all turns. The efficiency is the rows a second
of two processes over twice those of one. A process that works at the same time slows the other down
by what they share (caches, memory, clock rate), so two independent trainings
are measured, too: what DDP costs is the rest.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from report import measure_and_record
from step_cost import Setting, build, make_data
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from hf_distill import DistillationTrainer, DistillationTrainingArguments

SETTING = Setting("float32, 6 → 3 layers of 384, 8 × 256", 384, 12, 6, 3, 30522, 16, 256, 12, False)
"""Its rows are enough for two processes of eight."""
WAYS = ("Trainer", "DistillationTrainer")
MODES = {"one process": (1, 1), "two independent runs": (1, 2), "DDP": (2, 1)}
"""How many processes work together, and how many such groups there are."""
ROUNDS = 3


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def train(way: str, output: Path) -> None:
    """Train in this process, one of a group; the main one writes the seconds of its steps."""
    clock = Clock()
    options: dict[str, Any] = {
        "output_dir": str(output.with_suffix("")), "max_steps": SETTING.steps,
        "per_device_train_batch_size": SETTING.batch_size // 2, "use_cpu": True,
        "save_strategy": "no", "logging_steps": 10, "disable_tqdm": True, "report_to": "none",
    }  # fmt: skip
    common: dict[str, Any] = {
        "model": build(SETTING, SETTING.student_layers, seed=1),
        "train_dataset": make_data(SETTING),
        "data_collator": default_data_collator,
        "callbacks": [clock],
    }
    if way == "Trainer":
        trainer = Trainer(args=TrainingArguments(**options), **common)
    else:
        trainer = DistillationTrainer(
            args=DistillationTrainingArguments(**options),
            teacher_model=build(SETTING, SETTING.teacher_layers, seed=2),
            **common,
        )
    trainer.train()
    if trainer.is_world_process_zero():
        steps = [after - before for before, after in itertools.pairwise(clock.times)]
        output.write_text(json.dumps(steps[1:]), encoding="utf-8")


def run(way: str, processes: int, groups: int) -> list[float]:
    """Return the seconds of the steps of some groups of processes that work at the same time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.json") for number in range(groups)]
        launched = [
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--standalone",
                 f"--nproc_per_node={processes}", __file__, "worker", way, str(file)],
                env=environment, stdout=subprocess.DEVNULL,
            )
            for file in files
        ]  # fmt: skip
        if any(process.wait() for process in launched):
            raise SystemExit(f"{way} on {processes} processes failed")
        return [step for file in files for step in json.loads(file.read_text(encoding="utf-8"))]


def measure() -> dict[str, dict[str, float]]:
    """Return the seconds of a step, by the way of training and the mode."""
    times: dict[str, dict[str, list[float]]] = {way: {mode: [] for mode in MODES} for way in WAYS}
    for _ in range(ROUNDS):
        for mode, (processes, groups) in MODES.items():
            for way in WAYS:
                times[way][mode] += run(way, processes, groups)
    return {
        way: {mode: round(median(steps), 4) for mode, steps in modes.items()}
        for way, modes in times.items()
    }


def render(results: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    head = [
        "",
        *(f"{mode}, s a step" for mode in MODES),
        "efficiency",
        "against two independent runs",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for way, modes in results.items():
        alone, apart, together = (modes[mode] for mode in MODES)
        seconds = " | ".join(f"{modes[mode]:.3f}" for mode in MODES)
        lines.append(f"| `{way}` | {seconds} | {alone / together:.2f} | {apart / together:.2f} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> None:
    """Measure all, or be one of the processes."""
    if words[:1] == ["worker"]:
        train(words[1], Path(words[2]))
    else:
        measure_and_record("processes", str(__doc__), measure, render)


if __name__ == "__main__":
    main(sys.argv[1:])
