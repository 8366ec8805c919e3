r"""How many changes of the code do the tests notice? Mutation testing by mutmut, area by area.

    pip install --target MUTMUT mutmut==3.8.1
    PYTHONPATH=MUTMUT python benchmarks/mutants.py --work_dir DIR --areas losses heads
    python benchmarks/mutants.py --table

mutmut changes one thing at a time (an operator, a constant, an argument, a condition, a string) and
runs the tests of the area that call the changed function. Of each area as many changes as
``--most``, evenly spaced, are tried. mutmut works in a copy of what is committed, in ``DIR``, and
can be stopped and started again. A change that no test notices survives; those that change nothing
but the wording of a text are counted apart.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import FOLDER, RESULTS, read_json, record_part, replace_section

ROOT = FOLDER.parent
KILLED = (1, 3, 36, 24, -24, 152, 255)
"""Exit codes of tests that failed, or ran for far longer than without the change."""
UNTESTED = (5, 33)
SETTINGS = """
[tool.mutmut]
source_paths = ["hf_distill"]
only_mutate = {modules}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
also_copy = {copied}
process_isolation = "forkserver"
timeout_multiplier = 5.0
timeout_constant = 20.0
"""
COPIED = ["README.md", "docs", "benchmarks", "examples", "Makefile", "constraints.txt"]
STRING = re.compile(r"[a-zA-Z]*(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')")


@dataclass(frozen=True)
class Area:
    """Modules, and the tests that guard them."""

    title: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]


WORDS = ("substitution", "words", "drawing", "masking")
AREAS = {
    "losses": Area("losses", ("losses/*.py",), ("losses",)),
    "heads": Area("heads", ("heads/*.py",), ("heads", "test_label_loss.py")),
    "step": Area(
        "normalisation of a step",
        ("step.py", "schedules.py"),
        ("test_step.py", "test_schedules.py", "test_trainer.py", "test_label_loss.py"),
    ),
    "alignment": Area("alignment of tokenizers", ("alignment/*.py",), ("alignment",)),
    "compatibility": Area(
        "compatibility",
        ("compatibility/*.py",),
        (
            "compatibility",
            "teachers/test_teacher_inputs.py",
            "teachers/test_trimmed_vocabulary.py",
            "students/test_vocabulary.py",
            "test_bad_batches.py",
        ),
    ),
    "substitution": Area(
        "replacement of words",
        tuple(
            f"augmentation/{name}.py" for name in ("substitution", "words", "drawing", "masking")
        ),
        tuple(
            f"augmentation/test_{name}.py"
            for name in ("substitution", "words", "drawing", "masking", "ties", "carried")
        ),
    ),
    "students": Area(
        "creation of students",
        tuple(
            f"students/{name}.py"
            for name in ("create", "depth", "fitting", "head_fitting", "regression", "weights")
        ),
        ("students", "test_least_squares.py"),
    ),
}


def prepare(area: Area, folder: Path) -> None:
    """Copy what is committed, and tell mutmut what to change."""
    if (folder / "pyproject.toml").exists():
        return
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=folder, check=True, input=archive.stdout)
    settings = SETTINGS.format(
        modules=json.dumps([f"hf_distill/{one}" for one in area.modules]),
        tests=json.dumps([f"tests/{one}" for one in area.tests]),
        copied=json.dumps(COPIED),
    )
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(settings)


def run(folder: Path, processes: int, most: int) -> None:
    """Try all mutants of the sample that have not been tried."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes)]
    if not outcomes(folder):  # a name that no mutant has: they are made, and none is tried
        subprocess.run([*command, "none"], cwd=folder, check=False, env=environment)
    left = [name for name, code in sample(folder, most).items() if code is None]
    if left:
        subprocess.run([*command, *left], cwd=folder, check=False, env=environment)


def outcomes(folder: Path) -> dict[str, int | None]:
    """Return the exit codes of the tests by mutant; ``None`` where they were not run."""
    found: dict[str, int | None] = {}
    for file in sorted((folder / "mutants").glob("**/*.meta")):
        found |= read_json(file)["exit_code_by_key"]
    return found


def sample(folder: Path, most: int) -> dict[str, int | None]:
    """Return evenly spaced ones of all outcomes."""
    codes = [*outcomes(folder).items()]
    size = min(most, len(codes))
    return dict(codes[i * len(codes) // size] for i in range(size))


def difference(folder: Path, mutant: str) -> str:
    """Return the changed lines of a mutant."""
    command = [sys.executable, "-m", "mutmut", "show", mutant]
    shown = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    lines = [line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in HEADS]
    return "\n".join(lines)


HEADS = ("+++", "---")


def is_wording(change: str) -> bool:
    """Whether nothing but the text of strings with a blank in them changed."""
    sides: dict[str, list[str]] = {"-": [], "+": []}
    for line in change.splitlines():
        sides[line[0]].append(line[1:])
    before, after = ("\n".join(side) for side in sides.values())
    changed = [
        before[a:b] + after[c:d]
        for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after).get_opcodes()
        if tag != "equal"
    ]
    texts = [text for text in STRING.findall(before) if " " in text]
    return bool(changed and texts) and STRING.sub('""', before) == STRING.sub('""', after)


def measure(folder: Path, most: int) -> dict[str, Any]:
    """Count what became of the mutants, and show those that survived."""
    codes = sample(folder, most)
    tried = {name: code for name, code in codes.items() if code is not None}
    survivors = {name: difference(folder, name) for name in tried if not _is_killed(tried[name])}
    return {
        "mutants": len(outcomes(folder)), "tried": len(tried),
        "killed": len(tried) - len(survivors),
        "without_tests": sum(code in UNTESTED for code in tried.values()),
        "wording": sum(map(is_wording, survivors.values())),
        "exit_codes": {str(code): n for code, n in sorted(Counter(tried.values()).items())},
        "survivors": survivors,
    }  # fmt: skip


def _is_killed(code: int) -> bool:
    return code in KILLED


def lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the rows of the table."""
    head = "changes | tried | noticed | unnoticed: wording | no test | else | of all but wording"
    yield f"| area | {head} |"
    yield f"|---|{'---:|' * 7}"
    for name, found in results.items():
        left = found["tried"] - found["killed"] - found["wording"] - found["without_tests"]
        but_wording = found["tried"] - found["wording"]
        cells = [
            AREAS[name].title, f"{found['mutants']:,}", f"{found['tried']:,}",
            f"{found['killed']:,}", found["wording"], found["without_tests"], left,
            f"{100 * found['killed'] / but_wording:.1f} %",
        ]  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"


def render(results: dict[str, Any]) -> str:
    """Return the table of all areas."""
    return "\n".join(lines(results)) + "\n"


def main() -> None:
    """Try the mutants of some areas, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work_dir", type=Path, default=Path("build/mutants"))
    parser.add_argument("--areas", nargs="+", default=list(AREAS), choices=AREAS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--most", type=int, default=300, help="changes to try of an area")
    parser.add_argument("--table", action="store_true", help="only write the table, run nothing")
    options = parser.parse_args()
    for name in () if options.table else options.areas:
        folder = options.work_dir.resolve() / name
        prepare(AREAS[name], folder)
        run(folder, options.processes, options.most)
        record_part("mutants", name, measure(folder, options.most))
    replace_section("mutants", render(read_json(RESULTS / "mutants.json")))


if __name__ == "__main__":
    main()
