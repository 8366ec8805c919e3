"""What a sweep is made of, so that another one does not go on in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def content_hash(source: str) -> str | None:
    """SHA-256 over a file, or over the names and contents of a folder's files.

    Checkpoints in the folder do not count.

    Args:
        source: a path, or the name of something on the Hub.

    Returns:
        The hash; ``None`` for what is not on this machine.
    """
    path = Path(source).expanduser()
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(
            one
            for one in path.rglob("*")
            if one.is_file() and "/checkpoint-" not in f"/{one.relative_to(path).as_posix()}"
        )
    else:
        return None
    digest = sha256()
    for file in files:
        if path.is_dir():
            digest.update(f"{file.relative_to(path).as_posix()}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What a sweep wrote of itself; ``None`` if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); choose another --output_dir, or begin anew with "
            "--overwrite_output_dir."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no file of a sweep; choose another --output_dir.")
    return content


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two descriptions differ in, in words; mappings are compared part by part.

    Args:
        before: as it was, as JSON gives it back.
        now: as it is.
        prefix: put before the names.
    """
    found: list[str] = []
    now = json.loads(json.dumps(now))
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and "low" not in old:
            found += changed_parts(old, new, f"{prefix}{name}: ")
        elif isinstance(old, str) and isinstance(new, str) and len(old) == len(new) == 64:
            found.append(f"{prefix}{name} has other content")
        else:
            found.append(f"{prefix}{name} was {_shown(old)} and is {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)
