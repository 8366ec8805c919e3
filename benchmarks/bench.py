"""All benchmarks of cost that need no data or models from elsewhere: ``make bench``.

Each runs in its own process, on one thread and with settings of malloc that keep times steady. What
it prints goes to ``build/bench``; what is there is not run again, so the program can be stopped and
started again. By default settings are few, which takes some twenty minutes on two cores, and of the
peers only what needs no installation. With ``--full`` (``make bench FULL=1``) all are measured, the
peers in environments that are made for them, and recorded in ``results/`` and RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from report import FOLDER

ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456",
}  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """A program, and its options."""

    name: str
    quick: Sequence[str]
    full: Sequence[str] = ("--record",)

    def command(self, *, full: bool) -> list[str]:
        """Return what is run."""
        script = str(FOLDER / f"{self.name.partition('-')[0]}.py")
        return [sys.executable, script, *(self.full if full else self.quick)]


PEERS = ("--work_dir", str(FOLDER.parent / "build" / "peers"))
"""Where other tools are installed, each into an environment of its own: some gigabytes."""

BENCHMARKS = (
    Benchmark("step_cost", ()),
    Benchmark(
        "intermediate_cost",
        ("--lengths", "128", "--precisions", "float32", "--dropouts", "0", "--memory"),
    ),
    Benchmark("cached_outputs-step", ("step",), ("step", "--record")),
    Benchmark("processes", ()),
    Benchmark("start_up", ()),
    Benchmark("cpu_attention", ()),
    Benchmark("student_dropout", ()),
    Benchmark("attention_kernels", ("--lengths", "128", "512")),
    Benchmark("peers", (*PEERS, "--quick", "--peers", "snippet"), (*PEERS, "--record")),
    Benchmark(
        "peers_correctness",
        (*PEERS, "--tools", "ours", "snippet", "snippet_scaled"),
        (*PEERS, "--record"),
    ),
)


def run_all(
    benchmarks: Sequence[Benchmark], folder: Path, *, full: bool, environment: Mapping[str, str]
) -> list[str]:
    """Run what has no result in a folder yet; the names of those that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for number, benchmark in enumerate(benchmarks, start=1):
        kind = "full" if full else "quick"
        result = folder / f"{benchmark.name}.{kind}.txt"
        place = f"{number} of {len(benchmarks)}, {benchmark.name}"
        if result.exists():
            print(f"{place}: done before, see {result}", flush=True)
            continue
        command, began = benchmark.command(full=full), time.monotonic()
        print(f"{place}: {' '.join(command[1:])}", flush=True)
        unfinished = result.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as output:
            status = subprocess.run(command, stdout=output, env=environment, check=False).returncode
        print(unfinished.read_text(encoding="utf-8"), flush=True)
        if status:
            failed.append(benchmark.name)
        else:
            unfinished.replace(result)
            print(f"{place}: {time.monotonic() - began:.0f} s", flush=True)
    return failed


def main() -> None:
    """Run all, and say what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all settings, recorded")
    parser.add_argument("--work_dir", type=Path, default=FOLDER.parent / "build" / "bench")
    options = parser.parse_args()
    environment = {**os.environ, **ONE_THREAD}
    failed = run_all(BENCHMARKS, options.work_dir, full=options.full, environment=environment)
    if failed:
        sys.exit(f"These failed: {', '.join(failed)}. The same command runs them again.")


if __name__ == "__main__":
    main()
