"""Who computes which parts: this process, several of ours, or the ranks of a launcher."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import logging

from hf_distill.augmentation.parts import Item, Parts, StoredCandidates
from hf_distill.augmentation.substitution import MAX_WORDS, WordSubstituter, find_word_vectors
from hf_distill.files import in_use

logger = logging.get_logger(__name__)

_POLL_SECONDS = 0.2


class Rank(NamedTuple):
    """This process among those of a launcher such as ``accelerate launch``."""

    number: int
    of: int

    @classmethod
    def here(cls) -> Rank:
        """That of this process; 0 of 1 without a launcher."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextlib.contextmanager
def computed_candidates(
    folder: Path,
    items: Callable[[], Iterable[Item]],
    options: Mapping[str, Any],
    *,
    substituter: WordSubstituter | None = None,
    device: str | None = None,
    num_proc: int = 1,
    resume: bool = False,
) -> Iterator[StoredCandidates | None]:
    """Compute the candidates of texts in parts, with as many processes as there are.

    Args:
        folder: where the parts are kept until the block is left without an error.
        items: gives the texts.
        options: those of ``WordSubstituter.from_pretrained``, all of them.
        substituter: one that is loaded already, for this process.
        device: where to compute; the accelerators are shared out by default.
        num_proc: processes to start; under a launcher its own processes do the work.
        resume: use the parts that are there.

    Yields:
        The candidates; ``None`` in all processes of a launcher but the first.

    Raises:
        ValueError: an option is wrong, or is not that of the run to resume, or another process is
            at work in the folder.
        RuntimeError: a process failed.
    """
    if num_proc < 1:
        raise ValueError(f"num_proc={num_proc} must be at least 1.")
    if substituter is not None and num_proc > 1:
        raise ValueError(
            f"num_proc={num_proc}: other processes cannot use the WordSubstituter that is in this "
            "one; pass model='…' instead, or num_proc=1."
        )
    rank = Rank.here()
    if rank.of > 1:
        from accelerate import PartialState

        state: PartialState | None = PartialState()
    else:
        state = None
    if state is not None and rank.number:
        state.wait_for_everyone()
        compute_share(Parts(folder), rank, substituter, device)
        yield None
        return
    busy = (
        f"{folder}: another process is augmenting into the same file; wait for it, or name another."
    )
    with in_use(folder / ".lock", busy):
        parts = Parts.create(folder, items(), options, resume=resume)
        if state is not None:
            state.wait_for_everyone()
        try:
            if num_proc > 1 and rank.of == 1 and len(parts.missing()) > 1:
                _run_workers(parts, min(num_proc, len(parts.missing())), device)
            else:
                compute_share(parts, rank, substituter, device)
            while parts.missing():
                time.sleep(_POLL_SECONDS)
        except BaseException:
            if len(parts.missing()) == len(parts):
                parts.remove()
            raise
        with contextlib.closing(StoredCandidates(parts)) as stored:
            yield stored
        parts.remove()


def compute_share(
    parts: Parts,
    rank: Rank,
    substituter: WordSubstituter | None,
    device: str | None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Compute every ``rank.of``-th part that is missing.

    Args:
        parts: the folder.
        rank: which ones.
        substituter: one that is loaded already.
        device: where to compute.
        is_wanted: asked before each part.
    """
    mine = [part for part in parts.missing() if part % rank.of == rank.number]
    if not mine:
        return
    if substituter is None:
        device = device or share_of_accelerators(rank)
        substituter = WordSubstituter.from_pretrained(**parts.options, device=device)
    for part in logging.tqdm(mine, desc="candidates", disable=rank.number > 0 or None):
        if not is_wanted():
            return
        parts.compute(part, substituter)


def share_of_accelerators(rank: Rank) -> str | None:
    """The accelerator of one of several processes on this machine, if there are any."""
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return None
    local = int(os.environ.get("LOCAL_RANK", rank.number))
    return f"{accelerator.type}:{local % torch.accelerator.device_count()}"


def _run_workers(parts: Parts, count: int, device: str | None) -> None:
    # Once, and not in every worker: they would all write the index, and their words are not shown.
    find_word_vectors(parts.options.get("glove_path"), parts.options.get("max_words", MAX_WORDS))
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    with contextlib.ExitStack() as stack:
        workers = []
        for index in range(count):
            errors = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            task = json.dumps([str(parts.folder), index, count, device, os.getpid()])
            worker = subprocess.Popen(
                [sys.executable, "-m", "hf_distill.augmentation.worker", task],
                stderr=errors,
                env=environment,
            )
            stack.callback(_stop, worker)
            workers.append((worker, errors))
        left = len(parts.missing())
        with logging.tqdm(total=left, desc="candidates") as bar:
            while any(worker.poll() is None for worker, _ in workers):
                for worker, errors in workers:
                    if worker.poll():
                        raise _failure(worker.returncode, errors)
                before, left = left, len(parts.missing())
                bar.update(before - left)
                time.sleep(_POLL_SECONDS)
        for worker, errors in workers:
            if worker.returncode:
                raise _failure(worker.returncode, errors)


def _failure(status: int, errors: Any) -> RuntimeError:
    errors.seek(0)
    lines = errors.read().strip().splitlines() or ["no message"]
    hint = "; is there enough memory for num_proc models?" if status < 0 else ""
    return RuntimeError(f"a process of num_proc ended with status {status}{hint}: {lines[-1]}")


def _stop(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.terminate()
        worker.wait()
