"""What a process holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path


def held(kind: str) -> int:
    """Bytes, as the kernel counts them."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {kind}")


def watch(function: Callable[[], None]) -> dict[str, int]:
    """Call it, and say what this process held before, and at most meanwhile."""
    before, most, done = held("RssAnon"), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, held("RssAnon"))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return {"anonymous_before": before, "anonymous": most, "VmHWM": held("VmHWM")}
