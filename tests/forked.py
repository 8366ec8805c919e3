"""Scripts in processes of their own that start at once: forked from one that has imported torch.

A launch by ``accelerate launch`` or ``torchrun`` imports PyTorch and transformers in each process
and in the launcher, which takes longer than the tiny runs of most tests. The processes here get the
environment that ``torchrun`` gives. tests/distributed/test_accelerate_configs.py launches for real.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "hf_distill.trainer",
        "hf_distill.teachers.caching",
        "hf_distill.cli.train",
        "transformers.models.bert.modeling_bert",
    ]
)


class Run(NamedTuple):
    """Exit code of each process, and what all of them wrote."""

    codes: list[int | None]
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return set(self.codes) == {0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(
    script: str | Path,
    *arguments: str,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    seconds: float = 300,
) -> Run:
    """Run a script, or a module like ``python -m``, in one process or as the ranks of one launch.

    If a process fails, the others are killed. Whoever hangs is killed and has a negative code.
    """
    port = free_port() if processes > 1 else 0
    with tempfile.TemporaryDirectory() as output:
        started = []
        for rank in range(processes):
            variables = {"OMP_NUM_THREADS": "1", **(environment or {})}
            if processes > 1:
                variables |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "LOCAL_WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            files = (str(Path(output) / f"{name}-{rank}") for name in ("stdout", "stderr"))
            started.append(
                context.Process(
                    target=_enter,
                    args=(str(script), arguments, variables, tuple(files), folder or Path.cwd()),
                )
            )
        for process in started:
            process.start()
        until = time.monotonic() + seconds
        while any(p.is_alive() for p in started) and time.monotonic() < until:
            if any(p.exitcode not in (None, 0) for p in started):
                break
            time.sleep(0.02)
        for process in started:
            process.kill()
            process.join()
        texts = [
            "".join(path.read_text() for path in sorted(Path(output).glob(f"{name}-*")))
            for name in ("stdout", "stderr")
        ]
        return Run([process.exitcode for process in started], *texts)


def _enter(
    script: str,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    files: tuple[str, str],
    folder: Path,
) -> None:
    import torch

    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    if script.endswith(".py"):
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
