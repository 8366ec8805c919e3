"""State that is put back: attributes that are set for a while, and the random number generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def temporarily_set(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of an object or module inside, and put them back, also after an error.

    Args:
        target: the object, or a mapping such as ``os.environ``, whose entries are set instead.
        values: by name; a name that was not set before is not set afterwards.
    """
    variables = target if isinstance(target, MutableMapping) else vars(target)
    before = {name: variables[name] for name in values if name in variables}
    variables.update(values)
    try:
        yield
    finally:
        for name in values:
            variables.pop(name, None)
        variables.update(before)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside, and each of its modules back into its own after."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


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
