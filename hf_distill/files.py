"""Files that are whole or not there, hashes of what they hold, and what changed since."""

from __future__ import annotations

import glob
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

_CHUNK = 1 << 20
_ABANDONED_SECONDS = 3600
"""Temporary files that nobody has written to for so long are those of killed processes."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp(\.\w+)?")
_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST_SHOWN = 60
_PATH = re.compile(r"(^|[\s=,:\"'\[{(])((?:~|[A-Za-z]:)?[/\\](?![/\\])[^\s,\"'\]})]+)")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
HIDDEN = "TOKEN"


def display_name(source: str | os.PathLike[str]) -> str:
    """Return a model's or data set's name without anything about the machine, for reports.

    Args:
        source: a Hub id, which is kept, or a path on this machine, of which the last part is kept.
    """
    text = os.fspath(source)
    if "\\" in text:
        return PureWindowsPath(text).name
    path = Path(text).expanduser()
    is_hub_id = not path.exists() and not path.is_absolute() and text.count("/") <= 1
    return text if is_hub_id and not text.startswith(".") else path.resolve().name


def without_paths(text: str) -> str:
    """Return a text for reports: absolute paths without spaces by their last part, no tokens."""
    shown = _PATH.sub(lambda found: found[1] + display_name(found[2]), text)
    return _TOKEN.sub(HIDDEN, shown)


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yield a path next to ``path`` that no other writer uses; delete what is left there.

    It ends like ``path``. What killed processes left of the same file is deleted as well.
    """
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*.tmp{path.suffix}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                _delete(left)
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        yield temporary
    finally:
        _delete(temporary)


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a file (or folder) next to ``path``, then move it there.

    Args:
        path: the file to make or replace; its folder is made if need be.
        write: called with the path to write to, which ends like ``path``.

    Returns:
        ``path``.

    Raises:
        OSError: it cannot be written. What stood at ``path`` is then still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_path(path) as temporary:
        write(temporary)
        os.replace(temporary, path)
    return path


def is_temporary(path: Path) -> bool:
    """Return whether a file or folder is one that ``write_atomically`` had not finished."""
    return _TEMPORARY.fullmatch(path.name) is not None


@contextmanager
def in_use(lock: Path, busy: str) -> Iterator[None]:
    """Keep other processes out while the block runs; a process that is killed lets go.

    Args:
        lock: the file to lock; it is left behind, empty.
        busy: the message for when another process has locked it.

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


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        remedy: what the user can do if it is damaged, for the error message.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object; {remedy}.")
    return content


def as_json(content: Any) -> Any:
    """Return ``content`` as ``write_json`` followed by ``read_json`` gives it back."""
    return json.loads(json.dumps(_finite(content)))


def json_hash(content: Any) -> str:
    """Return the SHA-256 of JSON content; the order of keys does not matter."""
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = sha256()
    _update(digest, path)
    return digest.hexdigest()


def folder_hash(folder: Path, counts: Callable[[PurePosixPath], bool] = lambda _: True) -> str:
    """Return the SHA-256 of the names and contents of a folder's files.

    Args:
        folder: the folder.
        counts: whether a file matters, by its path within the folder.
    """
    digest = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if counts(PurePosixPath(name)):
            digest.update(f"{name}\n".encode())
            _update(digest, path)
    return digest.hexdigest()


def content_hash(source: str) -> str | None:
    """Return a hash of what is on this machine, apart from checkpoints; ``None`` for Hub ids."""
    path = Path(source).expanduser()
    if path.is_file():
        return file_hash(path)
    if not path.is_dir():
        return None
    return folder_hash(path, lambda one: not any(p.startswith("checkpoint-") for p in one.parts))


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of the weights of a model's folder."""
    return folder_hash(folder, lambda path: path.suffix == ".safetensors" and len(path.parts) == 1)


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    ignore: Collection[str] = (),
    absent: str = "not given",
) -> list[str]:
    """Name what two descriptions of a run differ in.

    Args:
        before: what was written down then.
        now: the same of this run.
        ignore: names that do not matter; those inside a mapping are ``outer.inner``.
        absent: how ``None`` and what is not there are shown.

    Returns:
        One clause per difference, such as ``options.seed was 1 and is now 2``; empty if it is the
        same run.
    """

    def compare(name: str, old: Any, new: Any) -> Iterator[str]:
        if old == new or name in ignore:
            return
        if isinstance(old, dict) and isinstance(new, dict):
            for key in {**old, **new}:
                yield from compare(f"{name}.{key}" if name else key, old.get(key), new.get(key))
        elif all(isinstance(one, str) and _HASH.fullmatch(one) for one in (old, new)):
            yield f"{name} has changed"
        else:
            yield f"{name} was {_shown(old, absent)} and is now {_shown(new, absent)}"

    return list(compare("", as_json(before), as_json(now)))


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _shown(value: Any, absent: str) -> str:
    if value is None:
        return absent
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def _finite(content: Any) -> Any:
    """Replace the numbers that JSON does not have by ``None``."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
