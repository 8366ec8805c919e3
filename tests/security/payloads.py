"""Files that write a marker when they are unpickled, and code that does when it is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (code(self.marker),)


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()\n"


def plant(path: Path, marker: Path, *, as_torch: bool = True) -> None:
    """A file as ``torch.save`` writes it, or a plain pickle."""
    content = {"qa_outputs.weight": Payload(marker)}
    if as_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
