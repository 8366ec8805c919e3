"""What one training step costs with other tools and with ours, for the work that both do.

    OMP_NUM_THREADS=1 python benchmarks/peers.py --work_dir DIR --record
    OMP_NUM_THREADS=1 python benchmarks/peers.py --work_dir DIR --length 384 --record

Each tool is installed into an environment of its own (in ``DIR/envs``, once; some 10 GB in all) and
trains in a process of its own, by its own training loop: see the workers in ``benchmarks/peers``.
All get the same random weights and rows. For each pair of a task and a peer, our process and the
peer's take turns, a step each; a row has the medians of the steps after the first ones, and the
quartiles of the ratios of neighbours. Peak memory is that of further processes, which train alone,
from their first step on.

A peer that cannot be installed or run gets a row with the reason. ``--quick`` tries everything with
tiny models; it records nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from peer_environments import OURS, PEERS, NotPossibleError, Peer, python_of
from peer_files import FULL, QUICK, Sizes, write_models, write_rows
from peer_workers import Worker, environment_of
from report import RESULTS, read_json, record_part, replace_section

TEMPERATURE = 2.0
WARM_UP = 2
"""Turns that are not counted: the first ones pay for memory that is new to the process."""
MEMORY_STEPS = 3
CLOCKS = ("cpu_seconds", "seconds")


@dataclass(frozen=True)
class Task:
    """Work that several tools do."""

    title: str
    kind: str
    """Of models and rows."""
    peers: tuple[str, ...]


TASKS = {
    "qa": Task(
        "question answering, prediction layer",
        "qa",
        ("snippet", "haystack", "textbrewer", "modelopt"),
    ),
    "qa_cached": Task("the same from cached teacher outputs", "qa", ("haystack", "textbrewer")),
    "classification": Task(
        "sequence classification, prediction layer", "classification", ("snippet", "silverspoon")
    ),
    "scores_cached": Task(
        "scores of text pairs, cached, squared distance", "scores", ("sentence_transformers",)
    ),
    "hidden": Task(
        "hidden states of all student layers", "qa", ("textbrewer", "modelopt", "silverspoon")
    ),
    "attention": Task(
        "hidden states and attention probabilities", "qa", ("haystack", "textbrewer", "scores")
    ),
    "lm": Task(
        "causal language model, prediction layer",
        "lm",
        ("snippet", "trl", "modelopt", "silverspoon", "textbrewer"),
    ),
}


@dataclass(frozen=True)
class Run:
    """What all comparisons of one call have in common."""

    work_dir: Path
    sizes: Sizes
    batch_size: int
    length: int
    steps: int
    """In a turn."""
    rounds: int

    @property
    def envs(self) -> Path:
        """The folder of the environments."""
        return self.work_dir / "envs"

    @property
    def data_steps(self) -> int:
        """The steps there must be data for: a step ends where the next one has its batch."""
        return max((WARM_UP + self.rounds) * self.steps, MEMORY_STEPS) + 1

    def setting(self, name: str, peer: Peer) -> dict[str, Any]:
        """Write what a worker reads, and return what it is told."""
        kind = TASKS[name].kind
        count = self.batch_size * self.data_steps
        output = self.work_dir / "output" / f"{name}-{peer.script}{peer.way}"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        return {
            "task": name,
            "way": peer.way,
            "models": str(write_models(kind, self.sizes, self.work_dir / "models")),
            "rows": str(write_rows(kind, self.sizes, count, self.length, self.work_dir / "rows")),
            "output": str(output),
            "batch_size": self.batch_size,
            "steps": self.data_steps,
            "temperature": TEMPERATURE,
            "teacher_layers": self.sizes.teacher_layers,
            "student_layers": self.sizes.student_layers,
        }

    def start(self, name: str, key: str | None, *, even_times: bool = True) -> Worker:
        """Start the worker of a peer, or of ours without a key."""
        peer = OURS if key is None else PEERS[key]
        mine = peer.script == OURS.script
        return Worker(
            Path(sys.executable) if key is None else python_of(key, self.envs),
            peer.script,
            self.setting(name, peer),
            environment=environment_of(self.work_dir, ours=mine, even_times=even_times),
            log=self.work_dir / "logs" / f"{name}-{key or 'ours'}.log",
            is_ours=mine,
        )


def take_turns(run: Run, name: str, key: str) -> dict[str, Any]:
    """Let our worker and a peer's train in turns; who begins changes from round to round."""
    with ExitStack() as stack:
        ours = stack.enter_context(run.start(name, None))
        ours.wait_until_ready()
        peer = stack.enter_context(run.start(name, key))
        peer.wait_until_ready()
        workers = {"ours": ours, "peer": peer}
        turns: dict[str, list[dict[str, Any]]] = {who: [] for who in workers}
        for number in range(WARM_UP + run.rounds):
            for who in sorted(workers, reverse=bool(number % 2)):
                turns[who].append(workers[who].go(run.steps))
        facts = peer.facts
    kept = {
        clock: {who: [turn[clock] / run.steps for turn in turns[who][WARM_UP:]] for who in turns}
        for clock in CLOCKS
    }
    return {
        **{clock: {who: median(times) for who, times in kept[clock].items()} for clock in CLOCKS},
        "ratio": {
            clock: quantiles(
                [a / b for a, b in zip(times["peer"], times["ours"], strict=True)], n=4
            )
            for clock, times in kept.items()
        },
        "first_loss": {who: turns[who][0]["loss"] for who in turns},
        "note": facts["note"],
        "peer_versions": facts["versions"],
    }


def peak_memory(run: Run, name: str, key: str | None) -> float:
    """Return the most that a process holds which trains alone, in GB."""
    with run.start(name, key, even_times=False) as worker:
        worker.wait_until_ready()
        worker.go(MEMORY_STEPS)
        return float(worker.quit()["peak_gb"])


def compare(run: Run, name: str, key: str, our_memory: dict[str, float]) -> dict[str, Any]:
    """Return the row of a task and a peer; our own memory is measured once a task."""
    row: dict[str, Any] = {
        "length": run.length,
        "batch_size": run.batch_size,
        "sizes": asdict(run.sizes),
        "rounds": run.rounds,
        "steps": run.steps,
    }
    try:
        python_of(key, run.envs)
        row |= take_turns(run, name, key)
        if name not in our_memory:
            our_memory[name] = peak_memory(run, name, None)
        row["peak_gb"] = {"ours": our_memory[name], "peer": peak_memory(run, name, key)}
    except NotPossibleError as reason:
        row["reason"] = str(reason)
    return row


def render(files: dict[str, dict[str, Any]]) -> str:
    """Markdown of results by the names of their files."""
    lines = [
        "| work | length × batch | peer | peer, CPU s | ours, CPU s | peer / ours, CPU | "
        "peer / ours, wall | peak, GB: peer, ours | how |",
        "|---|---|---|---:|---:|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        for key in task.peers:
            found = [
                rows[key] for file, rows in files.items() if _task_of(file) == name and key in rows
            ]
            for row in sorted(found, key=lambda row: int(row["length"])):
                lines.append(_line(task, PEERS[key], row))
    return "\n".join(lines) + "\n"


def _task_of(file: str) -> str:
    return file.removeprefix("peers-").rpartition("-")[0]


def _line(task: Task, peer: Peer, row: dict[str, Any]) -> str:
    start = f"| {task.title} | {row['length']} × {row['batch_size']} | {peer.title} |"
    if "reason" in row:
        return f"{start} | | | | | {row['reason']} |"
    seconds, peak = row["cpu_seconds"], row["peak_gb"]
    ratios = [
        f"{middle:.3f} ({low:.3f}–{high:.3f})"
        for low, middle, high in map(row["ratio"].get, CLOCKS)
    ]
    versions = row["peer_versions"]
    platform = f"transformers {versions['transformers']}, torch {versions['torch']}"
    cells = [
        f"{seconds['peer']:.3f}",
        f"{seconds['ours']:.3f}",
        *ratios,
        f"{peak['peer']:.2f}, {peak['ours']:.2f}",
        "; ".join(part for part in (row["note"], platform) if part),
    ]
    return f"{start} {' | '.join(cells)} |"


def recorded() -> dict[str, dict[str, Any]]:
    """Return all results that are committed."""
    return {path.stem: read_json(path) for path in sorted(RESULTS.glob("peers-*.json"))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work_dir", type=Path, required=True, help="environments, models, logs")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--quick", action="store_true", help="tiny models, three rounds")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1, help="in a turn")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--record",
        action="store_true",
        help="write results/ and RESULTS.md; what is not measured now stays as it was",
    )
    options = parser.parse_args(arguments)
    if options.quick and options.record:
        parser.error("--quick measures nothing worth recording: leave --record out.")
    run = Run(
        work_dir=options.work_dir.resolve(),
        sizes=QUICK if options.quick else FULL,
        batch_size=options.batch_size,
        length=min(options.length, 32) if options.quick else options.length,
        steps=options.steps,
        rounds=min(options.rounds, 3) if options.quick else options.rounds,
    )
    measured: dict[str, dict[str, Any]] = {}
    our_memory: dict[str, float] = {}
    for name in options.tasks:
        for key in TASKS[name].peers:
            if key not in options.peers:
                continue
            row, file = compare(run, name, key, our_memory), f"peers-{name}-{run.length}"
            measured.setdefault(file, {})[key] = row
            print(_line(TASKS[name], PEERS[key], row), flush=True)
            if options.record:
                record_part(file, key, row)
                replace_section("peers", render(recorded()))
    print(render(measured))


if __name__ == "__main__":
    main()
