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
    "origin": "… from the layers that it was made of",
    "origin-light-attention": "… from those, and attention scores, weight 0.03",
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
    tables: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(RESULTS.glob("stages-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        tables[run["config"]["questions"], run["config"]["student"]].append(run)
    parts = []
    for (questions, student), runs in sorted(tables.items(), key=_all_data_last):
        config = runs[0]["config"]
        parts.append(
            f"**{STUDENTS[student]}**, {questions or 'all'} training questions; learning rate "
            f"{config['settings']['learning_rate']:g} where no other is named, batches of "
            f"{config['settings']['batch_size']}; teacher's F1 {top:.1f}:\n"
        )
        parts.append(_table(runs if questions else _of_all_data(student) + runs, top))
    return "\n".join(parts)


def _all_data_last(table: tuple[tuple[int, str], Any]) -> tuple[bool, int, str]:
    questions, student = table[0]
    return questions == 0, questions, student


def _of_all_data(student: str) -> list[dict[str, Any]]:
    """The runs of ``squad_distillation.py``: of one stage, with all questions."""
    runs = []
    for path in sorted(RESULTS.glob(f"v1.1-{student}-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        row = {"name": run["config"]["way"], "layers": None, "longer": False}
        steps = {"first_steps": 0, "last_steps": run["result"]["step"]}
        config = {"row": row, "seed": run["config"]["seed"], **steps}
        runs.append({**run, "config": config, "first_stage": {}})
    return runs


def _table(runs: list[dict[str, Any]], top: float) -> str:
    lines = [
        "| trained on | steps | seeds | EM: mean (min–max) | F1: mean (min–max) | "
        "gap closed (F1) | CPU minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        rows[run["config"]["row"]["name"], _steps(run)].append(run)
    alone = {
        run["config"]["seed"]: scores(run)[1]
        for run in runs
        if run["config"]["row"]["name"] == "alone"
    }
    order = list(TITLES)
    for (name, steps), same in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), row)):
        exact, f1 = zip(*(scores(run) for run in same), strict=True)
        seeds = [run["config"]["seed"] for run in same]
        shares = [
            100 * (value - alone[seed]) / (top - alone[seed])
            for seed, value in zip(seeds, f1, strict=True)
            if seed in alone and name != "alone"
        ]
        lines.append(
            f"| {TITLES[name]} | {steps} | {len(same)} | {spread(list(exact))} | "
            f"{spread(list(f1))} | {spread(shares) + ' %' if shares else ''} | "
            f"{mean(map(_cpu_seconds, same)) / 60:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _steps(run: dict[str, Any]) -> str:
    """Those of the first stage, if there is one, and of the last."""
    config = run["config"]
    first, last = config["first_steps"], config["last_steps"]
    if config["row"]["layers"] is not None:
        rate = config["first_learning_rate"]
        named = "" if rate == config["settings"]["learning_rate"] else f" (at {rate:g})"
        return f"{first}{named} + {last}"
    return str(first + last if config["row"]["longer"] else last)


def _cpu_seconds(run: dict[str, Any]) -> float:
    """Of both stages and the evaluation, without the teacher's cached outputs."""
    return run["cpu_seconds"] + run["first_stage"].get("cpu_seconds", 0)
