"""Which precision trains faster on this machine."""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F

_CLEARLY_FASTER = 0.8
"""bfloat16's time as a share of float32's: below both's noise, so that a second run of the demo
decides as the first one did."""


def bfloat16_pays() -> bool:
    """Whether training in bfloat16 is clearly faster than in float32.

    On an accelerator it is taken to be. Of a CPU it is measured, in a fraction of a second: with
    instructions for bfloat16 it multiplies two to ten times as fast, without them ten times as
    slowly.
    """
    if torch.accelerator.is_available():
        return True
    return _seconds(torch.bfloat16) < _CLEARLY_FASTER * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of a few products of the demo's largest kind."""
    states, weight = torch.rand(256, 384, dtype=dtype), torch.rand(1536, 384, dtype=dtype)
    F.linear(states, weight)
    shortest = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        F.linear(states, weight)
        shortest = min(shortest, time.perf_counter() - began)
    return shortest
