"""Messages on the standard error, once for all processes of a launch."""

from __future__ import annotations

import os
import sys


def log_rank_0(text: str) -> None:
    """Write a line to the standard error; of several processes only the first one does."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{text}\n")
