"""Caching that is killed at random moments, and goes on: does it end with the same files?

    OMP_NUM_THREADS=1 python benchmarks/cache_kills.py [--record]

SIGKILL to all processes, in one process and in two under ``accelerate launch``, and the same
command again after each, until the cache is finished; then another one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import datasets
import torch
from cache_faults import ROWS, ROWS_A_PART, Row, cached, contents, finished, record, render

from hf_distill.teachers.caching import parts

KILLS = 20
PARTS = ROWS // ROWS_A_PART


class Launch:
    """Caching, in processes of its own.

    Args:
        folder: the cache.
        processes: how many share the work.
    """

    def __init__(self, folder: Path, processes: int) -> None:
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
            command += f"--num_processes {processes} --mixed_precision no".split()
            command += ["--dynamo_backend", "no", "--main_process_port", "0"]
        self._marks = Path(tempfile.mkdtemp())
        self._folder, self._processes = folder, processes
        with (self._marks / "log").open("w") as log:
            self._launcher = subprocess.Popen(
                [*command, __file__, "--child", str(folder), str(self._marks)],
                env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )

    def wait_for_beginning(self) -> None:
        """Until all processes have imported what they need."""
        while len(self._pids) < self._processes:
            if self._launcher.poll() is not None:
                raise RuntimeError((self._marks / "log").read_text())
            time.sleep(0.01)

    @property
    def _pids(self) -> list[int]:
        return [int(path.name) for path in self._marks.glob("[0-9]*")]

    def kill(self) -> None:
        """SIGKILL to all."""
        for pid in (*self._pids, self._launcher.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._launcher.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in self._pids):
            time.sleep(0.01)
        shutil.rmtree(self._marks)

    def finish(self) -> float:
        """Wait for the end; seconds from the beginning of the work to the last part."""
        self.wait_for_beginning()
        began = ended = time.monotonic()
        while self._launcher.poll() is None and len(finished(self._folder)) < PARTS:
            ended = time.monotonic()
            time.sleep(0.01)
        if self._launcher.wait(300) != 0:
            raise RuntimeError((self._marks / "log").read_text())
        shutil.rmtree(self._marks)
        return ended - began


def child(folder: str, marks: str) -> None:
    torch.set_num_threads(1)
    parts._MOST_ROWS = ROWS_A_PART
    Path(marks, str(os.getpid())).touch()
    cached(Path(folder))
    os._exit(0)  # gloo aborts at exit now and then


def killed(whole: dict[str, bytes], folder: Path) -> list[Row]:
    rows = []
    for processes in (1, 2):
        moments = random.Random(processes)
        seconds = Launch(folder / f"uninterrupted {processes}", processes).finish()
        equal = contents(folder / f"uninterrupted {processes}") == whole
        kills, rounds, left, written_twice = 0, 0, 0, 0
        while kills < KILLS:
            target, rounds = folder / f"killed {processes} {rounds}", rounds + 1
            before: dict[str, tuple[int, int]] = {}
            while True:
                launch = Launch(target, processes)
                launch.wait_for_beginning()
                # A last one is let through, so that each round ends.
                last = kills == KILLS
                if last:
                    launch.finish()
                else:
                    time.sleep(moments.uniform(0, seconds))
                    launch.kill()
                after = finished(target)
                kills += len(after) < PARTS  # others came too late
                written_twice += sum(after.get(name) != value for name, value in before.items())
                before = after
                if target.exists():
                    left += sum(".tmp" in name for name in contents(target))
                print(f"{processes} processes, kill {kills}: {len(after)} parts", flush=True)
                if len(after) == PARTS:
                    break
            found = contents(target)
            if found != whole:
                equal = False
                names = {n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n)}
                print(f"different: {sorted(names)}", flush=True)
        outcome = (
            f"{'all' if equal else 'NOT all'} files byte-identical to an uninterrupted run; "
            f"{written_twice} finished parts computed again; {left} half-written files seen, none "
            "under a final name"
        )
        what = (
            f"kill -9 before the last part, {'one process' if processes == 1 else 'two processes'}"
        )
        rows.append((f"{what} ({rounds} caches of {PARTS} parts)", kills, outcome))
    return rows


def main() -> None:
    """Try, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    parts._MOST_ROWS = ROWS_A_PART
    with tempfile.TemporaryDirectory() as folder:
        cached(Path(folder) / "whole")
        found = killed(contents(Path(folder) / "whole"), Path(folder))
    print(render(found))
    if arguments.record:
        record("killed", found)


if __name__ == "__main__":
    main()
