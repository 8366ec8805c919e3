"""What every benchmark says about itself, and how its figures get into files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
DOCUMENT = FOLDER / "RESULTS.md"


def circumstances() -> dict[str, Any]:
    """Date, processor, GPU if there is one, threads and library versions."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    machine = f"{len(names)} × {names[0]}, {platform.system()}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
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
    before = read_json(path) if path.exists() else {}
    results = {**before, part: {**content, **circumstances()}}
    write_json(name, results)
    return results


def read_json(path: Path) -> Any:
    """Read a result, or another file of JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def measure_and_record(
    name: str, description: str, measure: Callable[[], Any], render: Callable[[Any], str]
) -> None:
    """Measure and print the table; with ``--record`` also write results/ and RESULTS.md."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    options = parser.parse_args()
    results = measure()
    print(render(results))
    if options.record:
        write_json(name, {"results": results, **circumstances()})
        replace_section(name, render(results))


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
