"""Asking the Hub for files: once and briefly where it cannot be reached."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError

TRANSPORT_ERROR: Any = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
"""What the Hub's client raises without an answer; its library has changed its name."""

_SECONDS_BEFORE_ASKING_AGAIN = 60.0
_asked: dict[str, tuple[float, bool]] = {}


@contextmanager
def hub_tried_once(source: str | os.PathLike[str]) -> Iterator[None]:
    """Load from the Hub, or from what was downloaded before if the Hub does not answer.

    Left to themselves, the libraries ask for each file six times in half a minute.

    Args:
        source: a Hub id; a path that exists is not looked for on the Hub.
    """
    is_local = os.path.exists(os.path.expanduser(source))
    with nullcontext() if is_local or constants.HF_HUB_OFFLINE or _answers() else _offline():
        yield


def _answers() -> bool:
    """Return whether the Hub answers at all, as it was when it was asked in the last minute."""
    url, now = constants.ENDPOINT, time.monotonic()
    when, answered = _asked.get(url, (-math.inf, False))
    if now - when > _SECONDS_BEFORE_ASKING_AGAIN:
        try:
            get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            answered = True
        except (OSError, TRANSPORT_ERROR):
            answered = False
        _asked[url] = (time.monotonic(), answered)
    return answered


@contextmanager
def _offline() -> Iterator[None]:
    """Let the libraries use what was downloaded before, as with ``HF_HUB_OFFLINE=1``."""
    # datasets has its own copy of the switch.
    switches: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value
