r"""Which lines and branches of the package the tests run: per room, in RESULTS.md.

    pip install --target COVERAGE pytest-cov==7.1.0 coverage==7.17.5
    PYTHONPATH=COVERAGE python benchmarks/tested_lines.py --record

The tests are those of ``make test``, in two processes; what commands in processes of their own run
is not seen, so the true figures are higher.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from report import FOLDER, RESULTS, circumstances, read_json, replace_section, write_json

ROOT = FOLDER.parent
NAMES = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def measure(tests: list[str]) -> dict[str, Any]:
    """Run the tests, and return the counts of each room."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        flags = ["-q", "--cov=hf_distill", "--cov-branch", f"--cov-report=json:{report}", *tests]
        subprocess.run(
            ["make", "test", f"PYTEST_FLAGS={' '.join(flags)}"],
            cwd=ROOT, check=True,
            env={**os.environ, "COVERAGE_FILE": f"{folder}/data"},
        )  # fmt: skip
        files = read_json(report)["files"]
    rooms: dict[str, Counter[str]] = {}
    for name, found in files.items():
        parts = PurePosixPath(name).parts
        room = parts[1] if len(parts) > 2 else "single modules"
        rooms.setdefault(room, Counter()).update({n: found["summary"][n] for n in NAMES})
    return {"rooms": {room: dict(rooms[room]) for room in sorted(rooms)}, **circumstances()}


def render(content: dict[str, Any]) -> str:
    """Return a row per room, and one of all."""
    total: Counter[str] = Counter()
    for counts in content["rooms"].values():
        total.update(counts)
    lines = ["| | statements | run | branches | taken |", "|---|---:|---:|---:|---:|"]
    for room, counts in {"all": dict(total), **content["rooms"]}.items():
        shares = [
            f"{100 * counts[part] / counts[whole]:.1f} %" if counts[whole] else "–"
            for whole, part in (NAMES[:2], NAMES[2:])
        ]
        lines.append(
            f"| {room} | {counts['num_statements']:,} | {shares[0]} | "
            f"{counts['num_branches']:,} | {shares[1]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the tests, print the table, and record it if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    parser.add_argument("--table", action="store_true", help="only write the table, run nothing")
    parser.add_argument("tests", nargs="*", help="files, to try it")
    options = parser.parse_args()
    if options.record and options.tests:
        parser.error("--record is for all tests: leave the files out.")
    if options.table:
        replace_section("tested_lines", render(read_json(RESULTS / "tested_lines.json")))
        return
    content = measure(options.tests)
    print(render(content))
    if options.record:
        write_json("tested_lines", content)
        replace_section("tested_lines", render(content))


if __name__ == "__main__":
    main()
