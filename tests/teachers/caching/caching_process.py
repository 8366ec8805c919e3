"""Caching in processes of their own, which are killed where and when a test wants it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import torch
from datasets import Dataset
from forked import free_port
from transformers import default_data_collator
from zoo import zoo_dataset, zoo_model

import hf_distill.teachers.caching.parts
from hf_distill import cache_teacher_outputs
from hf_distill.teachers.caching import cache
from hf_distill.teachers.caching.parts import PartFiles

# Not forked.interpreter(), which takes no functions.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["hf_distill.teachers.caching", "transformers.models.bert"])

TASK = ("question-answering", "bert")
ROWS, ROWS_A_PART = 20, 4
ERROR = "error.txt"


def cached(
    folder: Path, dataset: Dataset | None = None, teacher: Any = None, **options: Any
) -> Any:
    """The same small cache each time, but for the options."""
    return cache_teacher_outputs(
        zoo_model(*TASK, seed=1) if teacher is None else teacher,
        zoo_dataset(TASK[0], ROWS) if dataset is None else dataset,
        output_dir=folder,
        **{
            "data_collator": default_data_collator,
            "use_cpu": True,
            "batch_size": 3,
            "hidden_layers": [1],  # so that the parts are larger than the manifest
            **options,
        },
    )


def start(folder: Path, processes: int = 1, **faults: Any) -> list[BaseProcess]:
    """Begin to cache, in one process or in several that share the work.

    Args:
        folder: the cache.
        processes: how many.
        faults: as for ``_work``.
    """
    port = free_port() if processes > 1 else 0
    started = [
        context.Process(target=_work, args=(folder, rank, processes, port), kwargs=faults)
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    return started


def ended(started: list[BaseProcess], seconds: float = 60) -> list[int | None]:
    """How they ended; whoever hangs is killed and has no exit code."""
    until = time.monotonic() + seconds
    codes = []
    for process in started:
        process.join(max(until - time.monotonic(), 0))
        codes.append(process.exitcode)
    kill(started)
    return codes


def kill(started: list[BaseProcess]) -> None:
    """SIGKILL to all of them."""
    for process in started:
        process.kill()
    for process in started:
        process.join()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but the lock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != cache.LOCK}


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the parts that are there: they change if one is written again."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.glob("part-*.arrow")
    }


def _work(
    folder: Path,
    rank: int,
    processes: int,
    port: int,
    *,
    dies_before: int | None = None,
    looks_late: int | None = None,
    seconds_a_part: float = 0.0,
    largest_file: int | None = None,
) -> None:
    """Cache.

    Args:
        folder: the cache.
        rank: which process this is.
        processes: of how many.
        port: where they meet.
        dies_before: the operation on a file before which the process kills itself.
        looks_late: the process that is slow in looking which parts there are.
        seconds_a_part: that it takes longer.
        largest_file: more bytes than these find no room; what it says of it is in ``ERROR``.
    """
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    hf_distill.teachers.caching.parts._MOST_ROWS = ROWS_A_PART
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if dies_before is not None:
        _die_before(dies_before)
    if looks_late == rank:
        _slow_down(PartFiles, "find", 0.05)
    if seconds_a_part:
        _slow_down(PartFiles, "write", seconds_a_part)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        cached(folder)
    except OSError as error:
        folder.with_name(ERROR).write_text(str(error))
        os._exit(error.errno or 1)
    os._exit(0)  # gloo aborts at exit now and then


def _die_before(number: int) -> None:
    operations = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal operations
            if operations == number:
                os.kill(os.getpid(), signal.SIGKILL)
            operations += 1
            return operation(*args, **kwargs)

        return count

    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    pyarrow.ipc.new_stream = counted(pyarrow.ipc.new_stream)


def _slow_down(owner: Any, name: str, seconds: float) -> None:
    method = getattr(owner, name)

    def slow(*args: Any) -> Any:
        time.sleep(seconds)
        return method(*args)

    setattr(owner, name, slow)
