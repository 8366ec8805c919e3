"""What every benchmark says about itself, and how its figures get into files."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
DOCUMENT = FOLDER / "RESULTS.md"


def circumstances() -> dict[str, Any]:
    """Date, processor, threads and library versions."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{len(names)} × {names[0]}, {platform.system()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets")},
    }


def write_json(name: str, content: dict[str, Any]) -> None:
    """Write ``results/NAME.json``, atomically."""
    RESULTS.mkdir(exist_ok=True)
    _write(RESULTS / f"{name}.json", json.dumps(content, indent=1) + "\n")


def record_part(name: str, part: str, content: dict[str, Any]) -> dict[str, Any]:
    """Put one of several measurements into ``results/NAME.json``, with its circumstances.

    Returns:
        What the file has now, the other measurements included.
    """
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = {**before, part: {**content, **circumstances()}}
    write_json(name, results)
    return results


def replace_section(name: str, text: str) -> None:
    """Replace what stands between the two marks of a section in RESULTS.md.

    Raises:
        ValueError: if the document lacks the marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    document = DOCUMENT.read_text(encoding="utf-8")
    if begin not in document or end not in document:
        raise ValueError(f"{DOCUMENT.name} needs the lines {begin!r} and {end!r}")
    before, rest = document.split(begin, 1)
    _write(DOCUMENT, f"{before}{begin}\n{text}{end}{rest.split(end, 1)[1]}")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
