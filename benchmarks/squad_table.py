"""The table of ``squad_distillation.py``: results/*.json to a section of RESULTS.md."""

from __future__ import annotations

import json
from statistics import mean, stdev
from typing import Any

from report import RESULTS, replace_section
from squad_students import STUDENTS

Results = dict[str, dict[str, Any]]


def write_table() -> None:
    """Put the tables of all results into RESULTS.md."""
    replace_section("squad_distillation", render())


def render() -> str:
    """Markdown for all results."""
    results: Results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RESULTS.glob("v*.json"))
    }
    parts = []
    for squad in ("1.1", "2.0"):
        teacher = results.get(f"v{squad}-teacher-alone-0")
        if teacher is None:
            continue
        parts.append(f"### SQuAD v{squad}\n\n{_quality(results, squad, teacher)}")
        for model in STUDENTS:
            pairs = _pairs(results, squad, model)
            if pairs:
                parts.append(_one_student(model, pairs, teacher))
        parts.append(_epochs(results, squad))
    return "\n".join(parts)


def _pairs(results: Results, squad: str, model: str) -> list[tuple[int, Any, Any]]:
    """Seed, result alone and result distilled, of the seeds that have both."""
    found = []
    for seed in range(100):
        alone = results.get(f"v{squad}-{model}-alone-{seed}")
        distilled = results.get(f"v{squad}-{model}-distilled-{seed}")
        if alone and distilled:
            found.append((seed, alone, distilled))
    return found


def scores(run: dict[str, Any]) -> tuple[float, float]:
    """Exact match and F1 of a run."""
    result = run["result"]
    return result.get("exact_match", result.get("exact")), result["f1"]


def _quality(results: Results, squad: str, teacher: dict[str, Any]) -> str:
    exact, f1 = scores(teacher)
    lines = [
        "| model | epochs | seeds | EM: mean (min–max) | F1: mean (min–max) |",
        "|---|---|---|---|---|",
        f"| teacher, 6 layers | {teacher['config']['epochs']:g} | 1 | {exact:.1f} | {f1:.1f} |",
    ]
    for model, title in STUDENTS.items():
        for way in ("alone", "distilled"):
            prefix = f"v{squad}-{model}-{way}-"
            runs = [run for name, run in results.items() if name.startswith(prefix)]
            if runs:
                lines.append(
                    f"| {title}, {way} | {runs[0]['config']['epochs']:g} | {len(runs)} | "
                    f"{spread([scores(run)[0] for run in runs])} | "
                    f"{spread([scores(run)[1] for run in runs])} |"
                )
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean and range."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def _one_student(model: str, pairs: list[tuple[int, Any, Any]], teacher: dict[str, Any]) -> str:
    settings = pairs[0][2]["config"]
    lines = [
        f"{STUDENTS[model]}; loss `{settings['distillation_loss']}`, temperature "
        f"{settings['temperature']:g}, weight {settings['distillation_loss_weight']:g}, learning "
        f"rate {settings['learning_rate']:g}, batch {settings['batch_size']}, "
        f"{settings['epochs']:g} epochs; share of the gap closed = (distilled − alone) / "
        "(teacher − alone):",
        "",
        "| seed | EM alone → distilled | gap closed | F1 alone → distilled | gap closed |",
        "|---|---|---|---|---|",
    ]
    top = scores(teacher)
    shares: list[list[float]] = [[], []]
    for seed, alone, distilled in pairs:
        cells = []
        for index in (0, 1):
            low, high = scores(alone)[index], scores(distilled)[index]
            share = 100 * (high - low) / (top[index] - low)
            shares[index].append(share)
            cells.append(f"{low:.1f} → {high:.1f} | {share:.0f} %")
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    if len(pairs) > 1:
        cells = [f"| **{mean(one):.0f} %** (sd {stdev(one):.0f})" for one in shares]
        lines.append(f"| mean | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def _epochs(results: Results, squad: str) -> str:
    """F1 and label loss on the validation set after each epoch."""
    lines = [
        "F1 and (label loss) on the validation set after each epoch:",
        "",
        "| run | per epoch | CPU minutes |",
        "|---|---|---|",
    ]
    for name, run in results.items():
        if name.startswith(f"v{squad}-"):
            steps = " → ".join(f"{e['f1']:.1f} ({e['loss']:.2f})" for e in run["evaluations"])
            lines.append(f"| {name} | {steps} | {run['cpu_seconds'] / 60:.0f} |")
    return "\n".join(lines) + "\n"
