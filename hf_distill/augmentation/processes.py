"""Who computes which parts: this process, several that it starts, or the ranks of a launcher."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import NamedTuple

from transformers.utils import logging

from hf_distill.augmentation.options import AugmentationOptions
from hf_distill.augmentation.parts import Item, Parts, StoredCandidates
from hf_distill.augmentation.substitution import WordSubstituter, find_word_vectors
from hf_distill.files import in_use

_POLL_SECONDS = 0.2


class Rank(NamedTuple):
    """This process among those that share the work."""

    number: int
    of: int

    @classmethod
    def here(cls) -> Rank:
        """Return the rank that a launcher gave this process; 0 of 1 without a launcher."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextlib.contextmanager
def computed_candidates(
    folder: Path,
    items: Callable[[], Iterable[Item]],
    options: AugmentationOptions,
    substituter: WordSubstituter | None = None,
) -> Iterator[StoredCandidates | None]:
    """Compute the candidates of texts in parts, with as many processes as there are.

    Args:
        folder: where the parts are kept until the block is left without an error.
        items: gives the texts.
        options: those of the run.
        substituter: one that is loaded already, for this process.

    Yields:
        The candidates; ``None`` in all processes of a launcher but the first.

    Raises:
        ValueError: an option is wrong, or is not that of the run to resume, or another process is
            at work in the folder.
        RuntimeError: a process was killed.
    """
    if substituter is not None and options.num_proc > 1:
        raise ValueError(
            f"num_proc={options.num_proc}: other processes cannot use the WordSubstituter that is "
            "in this one; pass model='…' instead, or num_proc=1."
        )
    rank = Rank.here()
    state = None
    if rank.of > 1:
        from accelerate import PartialState

        state = PartialState()
    if state is not None and rank.number:
        state.wait_for_everyone()
        compute_share(Parts(folder), rank, options.device, substituter)
        yield None
        return
    described = options.for_manifest() if substituter is None else {}
    busy = (
        f"{folder}: another process is augmenting into the same file; wait for it, or name another."
    )
    with in_use(folder / ".lock", busy):
        parts = Parts.create(folder, items(), described, resume=options.resume)
        if state is not None:
            state.wait_for_everyone()
        try:
            count = min(options.num_proc, len(parts.missing()))
            if count > 1 and rank.of == 1:
                _compute_in_processes(parts, count, options.device)
            else:
                compute_share(parts, rank, options.device, substituter)
            while parts.missing():
                time.sleep(_POLL_SECONDS)
        except BaseException:
            if len(parts.missing()) == len(parts):
                shutil.rmtree(folder)
            raise
        with contextlib.closing(StoredCandidates(parts)) as stored:
            yield stored
        shutil.rmtree(folder)


def compute_share(
    parts: Parts,
    rank: Rank,
    device: str | None = None,
    substituter: WordSubstituter | None = None,
    parent: int | None = None,
) -> None:
    """Compute every ``rank.of``-th part that is missing, while the process ``parent`` lives."""
    mine = [part for part in parts.missing() if part % rank.of == rank.number]
    if not mine:
        return
    if substituter is None:
        device = device or share_of_accelerators(rank)
        substituter = WordSubstituter.from_pretrained(**parts.options, device=device)
    for part in logging.tqdm(mine, desc="candidates", disable=rank.number > 0 or None):
        if parent not in (None, os.getppid()):
            return
        parts.compute(part, substituter)


def share_of_accelerators(rank: Rank) -> str | None:
    """Return the accelerator of one of several processes on this machine, if there are any."""
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return None
    local = int(os.environ.get("LOCAL_RANK", rank.number))
    return f"{accelerator.type}:{local % torch.accelerator.device_count()}"


def _compute_in_processes(parts: Parts, count: int, device: str | None) -> None:
    # Not Dataset.map: a process of it that is killed leaves nothing of its share to resume from.
    import joblib

    # Once, and not in every process: they would all write the index, and all warn without vectors.
    find_word_vectors(parts.options["glove_path"], parts.options["max_words"])
    share = joblib.delayed(compute_share)
    try:
        with joblib.parallel_config("loky", idle_worker_timeout=1):
            joblib.Parallel(n_jobs=count)(
                share(parts, Rank(number, count), device, parent=os.getpid())
                for number in range(count)
            )
    except BrokenExecutor as error:
        raise RuntimeError(
            f"a process of num_proc was killed; is there enough memory for {count} models?"
        ) from error
