"""Choose the precision that trains faster on this machine."""

from __future__ import annotations

import functools
import time

import torch
from torch.nn import functional as F
from transformers import TrainingArguments

from hf_distill.console import log_rank_0

_CLEARLY_FASTER = 0.8
"""bfloat16's time as a share of float32's: below the noise of both."""

_CLEARLY_SLOWER = 1.5
"""Above both's noise: nobody is asked to leave out what helps."""


def bfloat16_pays() -> bool:
    """Return whether training in bfloat16 is clearly faster than in float32.

    On an accelerator it is taken to be. Of a CPU it is measured, in a fraction of a second: with
    instructions for bfloat16 it multiplies up to ten times as fast, without them ten times as
    slowly.
    """
    return torch.accelerator.is_available() or _bfloat16_slowness() < _CLEARLY_FASTER


def warn_if_bfloat16_is_slow(args: TrainingArguments) -> None:
    """Warn, once per process, if a CPU multiplies bfloat16 more slowly than float32."""
    if args.bf16 and args.device.type == "cpu" and args.process_index == 0:
        _warn_if_bfloat16_is_slow()


@functools.cache
def _warn_if_bfloat16_is_slow() -> None:
    slowness = _bfloat16_slowness()
    if slowness > _CLEARLY_SLOWER:
        log_rank_0(
            f"This processor takes {slowness:.1f} times as long for a product in bfloat16 as in "
            "float32; without --bf16 the training would be faster."
        )


def _bfloat16_slowness() -> float:
    """Return the time of a product in bfloat16 over that in float32."""
    return _seconds(torch.bfloat16) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """Return the shortest time of a few products of a small encoder's largest kind."""
    states, weight = torch.rand(256, 384, dtype=dtype), torch.rand(1536, 384, dtype=dtype)
    F.linear(states, weight)
    shortest = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        F.linear(states, weight)
        shortest = min(shortest, time.perf_counter() - began)
    return shortest
