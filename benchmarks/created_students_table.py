"""The tables of ``created_students.py``: results/*.json to a section of RESULTS.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from report import RESULTS
from squad_table import spread


@dataclass(frozen=True)
class Student:
    """One way of making a student from its teacher."""

    title: str
    options: dict[str, Any] | None = None
    """Arguments of ``create_student``; ``None`` for a student that it does not make."""


_FITTED: dict[str, Any] = {"initialization": "least_squares"}
STUDENTS = {
    "6x192": Student("6 × 192, least squares", {"hidden_size": 192}),
    "3x384-copied": Student("3 × 384, copied", {"num_hidden_layers": 3, "initialization": "copy"}),
    "3x192": Student("3 × 192, least squares", {"num_hidden_layers": 3, "hidden_size": 192}),
    "6x288": Student("6 × 288, least squares", {"hidden_size": 288}),
    "3x384-fitted": Student("3 × 384, least squares", {"num_hidden_layers": 3, **_FITTED}),
    "3x384-apart": Student("3 × 384, an encoder trained apart, new head"),
    "6x192-first-units": Student("6 × 192, the first units of each weight"),
    "6x192-random": Student("6 × 192, new weights"),
}
"""The most telling ones first."""

WAYS = {
    "untrained": "untrained",
    "prediction": "prediction layer",
    "stages": "hidden states, then prediction layer",
}


def render(titles: Mapping[str, tuple[str, str]]) -> str:
    """Markdown: a table for each task, and one of sizes and latencies.

    Args:
        titles: of the tasks by name, and the metric of each.
    """
    parts = [*(_task(name, *found) for name, found in titles.items()), _sizes()]
    return "\n".join(part for part in parts if part)


def scores(pattern: str, metric: str) -> list[float]:
    """Return the scores of the results whose names match."""
    paths = sorted(RESULTS.glob(f"{pattern}.json"))
    return [json.loads(path.read_text(encoding="utf-8"))["eval"][metric] for path in paths]


def _scores(job: str, student: str, way: str, steps: int, metric: str) -> list[float]:
    return scores(f"created-{job}-{student}-{way}-{steps}-*", metric)


def _task(job: str, title: str, metric: str) -> str:
    all_steps = {
        int(path.stem.split("-")[-2]) for path in RESULTS.glob(f"created-{job}-[0-9]*.json")
    }
    return "\n".join(_trained(job, title, metric, n) for n in sorted(all_steps - {0}))


def _trained(job: str, title: str, metric: str, steps: int) -> str:
    (teacher,) = _scores(job.removesuffix("-all"), "teacher", "trained", 0, metric)
    lines = [
        f"**{title}**, {steps} steps; teacher {teacher:.1f}. In parentheses: range, and number of "
        "seeds:\n",
        f"| student | {' | '.join(WAYS.values())} | best, of the teacher |",
        f"|---|{'---|' * (len(WAYS) + 1)}",
    ]
    for name, student in STUDENTS.items():
        found = [
            _scores(job, name, way, 0 if way == "untrained" else steps, metric) for way in WAYS
        ]
        if any(found):
            cells = [f"{spread(one)} ({len(one)})" if one else "–" for one in found]
            best = max(sum(one) / len(one) for one in found if one)
            lines.append(
                f"| {student.title} | {' | '.join(cells)} | {100 * best / teacher:.0f} % |"
            )
    return "\n".join(lines) + "\n"


def _sizes() -> str:
    path = RESULTS / "created-latency.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    batches = list(found["ms"]["teacher"])
    timed = " | ".join(f"ms, {batch.replace('x', ' × ')}" for batch in batches)
    lines = [f"| model | parameters, millions | {timed} |", f"|---|---|{'---|' * len(batches)}"]
    titles = {"teacher": "teacher, 6 × 384", **{k: s.title for k, s in STUDENTS.items()}}
    for name, title in ((name, titles[name]) for name in found["ms"]):
        times = " | ".join(f"{found['ms'][name][batch]:.1f}" for batch in batches)
        lines.append(f"| {title} | {found['parameters'][name] / 1e6:.1f} | {times} |")
    return "\n".join(lines) + "\n"
