"""State that is put back: attributes that are set for a while, and the random number generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def temporarily_set(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of ``target`` inside, and put them back at the end, also after an error."""
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def rng_states() -> dict[str, Any]:
    """Return the states of the random number generators of Python, NumPy and PyTorch."""
    states = {"python": random.getstate(), "numpy": np.random.get_state()}
    states["cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_rng_states(states: dict[str, Any]) -> None:
    """Put the random number generators back into the states of ``rng_states``."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Draw random numbers inside without changing those that are drawn afterwards."""
    states = rng_states()
    try:
        yield
    finally:
        restore_rng_states(states)
