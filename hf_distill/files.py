"""Writing the files of a report: whole or not at all, and without anything about the machine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from filelock import FileLock, Timeout


def display_name(source: str | os.PathLike[str]) -> str:
    """The name of a model or data set as reports show it: no path, so nothing about the machine.

    Args:
        source: a Hub id, which is kept, or a path on this machine, of which the last part is kept.
    """
    text = os.fspath(source)
    if "\\" in text:
        return PureWindowsPath(text).name
    path = Path(text).expanduser()
    is_hub_id = not path.exists() and not path.is_absolute() and text.count("/") <= 1
    return text if is_hub_id and not text.startswith(".") else path.resolve().name


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a file beside ``path``, then put it in its place.

    Args:
        path: the file to make or replace; its folder is made if need be.
        write: called with the path to write to, which ends like ``path``.

    Returns:
        ``path``.

    Raises:
        OSError: if it cannot be written. What stood at ``path`` is then still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def in_use(lock: Path, busy: str) -> Iterator[None]:
    """Keep other processes out while the block runs; one that is killed lets go.

    Args:
        lock: the file to lock; it is left behind, empty.
        busy: what to say where another process has locked it.

    Raises:
        ValueError: another process has locked it.
        OSError: the file cannot be made.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise ValueError(busy) from None


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file in UTF-8, atomically."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | os.PathLike[str], content: Any) -> Path:
    """Write a JSON file that people can read, atomically; NaN and infinity become ``null``."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def _finite(content: Any) -> Any:
    """The same, with ``None`` for the numbers that JSON does not have."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
