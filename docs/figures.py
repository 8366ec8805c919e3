"""Renews the measured figures of README, docs and RESULTS.md: ``python docs/figures.py``.

Behind its figures a line has a comment with expressions that compute them from the files in
``benchmarks/results``; as many figures before it are renewed as there are expressions, with the
digits that they are written with::

    84<!-- = one("augmentation/cost/times as fast as the plain way/grouped") --> times as fast
    F1 69.7 (69.5–70.0)<!-- = *spread("created-squad-6x192-prediction-200-*/eval/f1") -->

A path is the name of a file without ``.json`` and the keys in it, each of which may have a ``*``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/RESULTS.md"]

MARK = re.compile(r"<!-- = (.*?) -->")
NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")


def each(path: str) -> list[float]:
    """Return all values that a path names, in the order of the files and of their keys.

    Raises:
        ValueError: there are none, or one of them is not a number.
    """
    name, *keys = path.split("/")
    found: list[Any] = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(RESULTS.glob(f"{name}.json"))
    ]
    if not found:
        raise ValueError(f"{path!r}: benchmarks/results has no {name}.json")
    for key in keys:
        found = [value for one in found for value in _children(one, key)]
        if not found:
            raise ValueError(f"{path!r}: there is no {key!r}")
    if not all(isinstance(value, int | float) for value in found):
        raise ValueError(f"{path!r}: {found[0]!r} is not a number")
    return found


def _children(value: Any, key: str) -> list[Any]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    items = value.items() if isinstance(value, dict) else ()
    return [child for name, child in items if fnmatchcase(str(name), key)]


def one(path: str) -> float:
    """Return the only value that a path names."""
    found = each(path)
    if len(found) > 1:
        raise ValueError(f"{path!r} names {len(found)} values")
    return found[0]


def spread(path: str) -> tuple[float, float, float]:
    """Return the mean, the lowest and the highest of the values that a path names."""
    return mean(each(path)), min(each(path)), max(each(path))


def gap_closed(alone: str, distilled: str, teacher: str) -> float:
    """Return the share of the gap to the teacher, in percent: the mean over the seeds."""
    pairs = zip(each(alone), each(distilled), strict=True)
    return mean(100 * (d - a) / (one(teacher) - a) for a, d in pairs)


NAMES = {
    "__builtins__": {},
    **{"each": each, "one": one, "spread": spread, "gap_closed": gap_closed},
    **{"mean": lambda path: mean(each(path)), "min": min, "max": max},
}


@dataclass(frozen=True)
class Figure:
    """A figure of a page, as it is written and as its file has it."""

    start: int
    end: int
    line: int
    written: str
    computed: str


def marked(page: Path) -> Iterator[Figure]:
    """Yield the marked figures of a page.

    Raises:
        ValueError: a mark that cannot be evaluated, or has too few figures in front of it.
    """
    text, begin = page.read_text(encoding="utf-8"), 0
    for mark in MARK.finditer(text):
        begin = max(begin, text.rfind("\n", 0, mark.start()) + 1)
        line = text.count("\n", 0, mark.start()) + 1
        numbers = list(NUMBER.finditer(text, begin, mark.start()))
        try:
            values = eval(f"[{mark[1]}]", dict(NAMES))
            if len(values) > len(numbers):
                raise ValueError(f"{len(values)} figures, and {len(numbers)} in front of it")
        except Exception as error:
            raise ValueError(f"{page.name}:{line}: {mark[0]}: {error}") from error
        for number, value in zip(numbers[len(numbers) - len(values) :], values, strict=True):
            digits = f"{',' if ',' in number[0] else ''}.{len(number[0].partition('.')[2])}f"
            yield Figure(*number.span(), line, number[0], format(value, digits))
        begin = mark.end()


def renew(page: Path) -> str:
    """Return a page with its marked figures as their files have them."""
    text = page.read_text(encoding="utf-8")
    for figure in reversed(list(marked(page))):
        text = text[: figure.start] + figure.computed + text[figure.end :]
    return text


if __name__ == "__main__":
    for page in PAGES:
        new = renew(page)
        if new != page.read_text(encoding="utf-8"):
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))
