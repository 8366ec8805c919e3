"""The tables of ``squad_stages.py``: results/*.json to a section of RESULTS.md."""

from __future__ import annotations

import json
from collections import defaultdict
from statistics import mean
from typing import Any

from report import RESULTS
from squad_students import STUDENTS
from squad_table import scores, spread

TITLES = {
    "alone": "labels alone",
    "alone-longer": "labels alone, steps of both stages",
    "distilled": "prediction layer",
    "distilled-longer": "prediction layer, steps of both stages",
    "stages": "hidden states, then prediction layer",
    "no-prediction": "… labels instead of the prediction layer",
    "last": "… from the teacher's last layers",
    "first": "… from the teacher's first layers",
    "light-attention": "… and attention scores, weight 0.03",
    "attention": "… and attention scores, weight 1",
    "attention-alone": "… attention scores instead of hidden states",
    "probabilities": "… and attention probabilities, weight 1",
    "relations": "… and attention relations, weight 1",
    "alone-augmented": "labels alone, augmented data",
    "distilled-augmented": "prediction layer, augmented data",
    "distilled-augmented-longer": "prediction layer, augmented data, steps of both stages",
    "distilled-augmented-single": "prediction layer, augmented data (`single`)",
    "stages-augmented": "hidden states, on augmented data, then prediction layer",
}


def render_stages() -> str:
    """Markdown for all results, a table for each size of data and student."""
    teacher = json.loads((RESULTS / "v1.1-teacher-alone-0.json").read_text(encoding="utf-8"))
    top = scores(teacher)[1]
    tables: dict[tuple[int, str], dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    for path in sorted(RESULTS.glob("stages-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        config = run["config"]
        rows = tables[config["questions"], config["student"]]
        rows.setdefault(config["row"]["name"], []).append(run)
    parts = []
    for (questions, student), rows in sorted(tables.items()):
        config = next(iter(rows.values()))[0]["config"]
        parts.append(
            f"**{STUDENTS[student]}**, {questions or 'all'} training questions; "
            f"{config['first_steps']} steps of intermediate layers (learning rate "
            f"{config['first_learning_rate']:g}), {config['last_steps']} of the last stage "
            f"({config['settings']['learning_rate']:g}), batches of "
            f"{config['settings']['batch_size']}; teacher's F1 {top:.1f}:\n"
        )
        parts.append(_table(rows, top))
    return "\n".join(parts)


def _table(rows: dict[str, list[dict[str, Any]]], top: float) -> str:
    lines = [
        "| trained on | seeds | EM: mean (min–max) | F1: mean (min–max) | gap closed (F1) | "
        "CPU minutes |",
        "|---|---|---|---|---|---|",
    ]
    alone = {run["config"]["seed"]: scores(run)[1] for run in rows.get("alone", [])}
    for name, title in TITLES.items():
        runs = rows.get(name, [])
        if not runs:
            continue
        exact, f1 = zip(*(scores(run) for run in runs), strict=True)
        seeds = [run["config"]["seed"] for run in runs]
        shares = [
            100 * (value - alone[seed]) / (top - alone[seed])
            for seed, value in zip(seeds, f1, strict=True)
            if seed in alone and name != "alone"
        ]
        lines.append(
            f"| {title} | {len(runs)} | {spread(list(exact))} | {spread(list(f1))} | "
            f"{spread(shares) + ' %' if shares else ''} | "
            f"{mean(map(_cpu_seconds, runs)) / 60:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _cpu_seconds(run: dict[str, Any]) -> float:
    """Of both stages and the evaluation, without the teacher's cached outputs."""
    return run["cpu_seconds"] + run["first_stage"].get("cpu_seconds", 0)
