"""The tables and pictures of ``study.py``: results/*.json to RESULTS.md and docs/images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from report import FOLDER, RESULTS, read_json, replace_section
from scipy.stats import t
from task_distillation import Job

from hf_distill.plotting import declutter, new_figure

IMAGES = FOLDER.parent / "docs" / "images"
COLOURS = {"alone": "#D55E00", "prediction": "#0072B2", "stages": "#009E73"}
LEAST = 3
"""Seeds that an arm needs to be shown."""
LENGTHS = {"-third": 1 / 3, "": 1.0, "-triple": 3.0}


@dataclass(frozen=True)
class Question:
    """What a table answers: arms, each compared with the first."""

    title: str
    arms: tuple[str, ...]


QUESTIONS = (
    Question("Labels, predictions, hidden states", ("alone", "prediction", "stages")),
    Question(
        "Where the student comes from",
        ("prediction", "new-alone", "new-prediction", "created-alone", "created-prediction"),
    ),
    Question(
        "Few labels, and texts without",
        ("prediction", "alone-500", "prediction-500", "alone-100", "prediction-100"),
    ),
    Question(
        "Temperature and weight",
        ("t1-w1.0", "t2-w1.0", "t4-w1.0", "t8-w1.0", "t1-w0.5", "t2-w0.5", "t4-w0.5"),
    ),
    Question("Augmentation", ("prediction-500", "augmented-500")),
    Question("A third of the steps", ("alone-third", "prediction-third", "stages-third")),
    Question("Three times the steps", ("alone-triple", "prediction-triple", "stages-triple")),
    Question("Several teachers", ("prediction", "three-teachers")),
    Question("Attention", ("stages", "attention", "relations")),
)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, with its 95 % interval by Student's t."""

    mean: float
    half: float | None
    """``None`` for one seed."""
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Return the interval of the mean of some values."""
        if len(values) < 2:
            return cls(mean(values), None, len(values))
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
        return cls(mean(values), half, len(values))

    def __str__(self) -> str:
        spread = "" if self.half is None else f" ± {self.half:.1f}"
        return f"{self.mean:.1f}{spread}"


def scores(job: str, arm: str) -> dict[int, float]:
    """Return the scores of an arm by their seeds; none if there are too few."""
    found = [read_json(path) for path in RESULTS.glob(f"study-{job}-{arm}-[0-9].json")]
    if len(found) < LEAST:
        return {}
    return {one["seed"]: one["score"] for one in sorted(found, key=lambda one: one["seed"])}


def difference(job: str, arm: str, other: str) -> Interval | None:
    """Return by how much an arm is ahead of another, over the seeds that both have."""
    ours, theirs = scores(job, arm), scores(job, other)
    pairs = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
    return Interval.of(pairs) if pairs else None


def render(jobs: Mapping[str, Job], titles: Mapping[str, str]) -> str:
    """Return a table per question: scores, and in parentheses what they are more than the first."""
    parts = []
    for question in QUESTIONS:
        first, *others = question.arms
        shown = [name for name in jobs if any(scores(name, arm) for arm in others)]
        head = ["trained on", *(jobs[name].title for name in shown)]
        teachers = ["the teacher itself", *(f"{_teacher(name):.1f}" for name in shown)]
        lines = [head, ["---"] * len(head)]
        for arm in question.arms:
            cells = [_cell(job, arm, first) for job in shown]
            if any(cell != "–" for cell in cells):
                lines.append([titles[arm], *cells])
        if len(lines) > 3:
            rows = [*lines, teachers]
            table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            parts.append(f"**{question.title}**\n\n{table}\n")
    return "\n".join(parts)


def _cell(job: str, arm: str, first: str) -> str:
    found = scores(job, arm)
    if not found:
        return "–"
    text = f"{Interval.of([*found.values()])} ({len(found)})"
    more = None if arm == first else difference(job, arm, first)
    return text if more is None else f"{text}; {more.mean:+.1f} ± {more.half or 0:.1f}"


def _teacher(job: str) -> float:
    return float(read_json(RESULTS / f"study-{job}-teacher.json")["score"])


def write(jobs: Mapping[str, Job], titles: Mapping[str, str], steps: Mapping[str, int]) -> None:
    """Write the tables and the pictures."""
    replace_section("study", render(jobs, titles))
    shown = {name: job for name, job in jobs.items() if scores(name, "prediction-third")}
    if shown:
        _draw_lengths(shown, titles, steps)
    few = {name: job for name, job in jobs.items() if scores(name, "prediction-100")}
    if few:
        _draw_labels(few)


def _draw_lengths(
    jobs: Mapping[str, Job], titles: Mapping[str, str], steps: Mapping[str, int]
) -> None:
    figure = new_figure(3.2 * len(jobs), 3.2)
    for panel, (name, job) in zip(_panels(figure, len(jobs)), jobs.items(), strict=True):
        for arm, colour in COLOURS.items():
            points = [
                (round(steps[name] * length), Interval.of([*found.values()]))
                for suffix, length in LENGTHS.items()
                if (found := scores(name, f"{arm}{suffix}"))
            ]
            _line(panel, points, colour, titles[arm])
        _finish(panel, name, job, "steps of all stages")
    _save(figure, "study-steps")


def _draw_labels(jobs: Mapping[str, Job]) -> None:
    figure = new_figure(3.2 * len(jobs), 3.2)
    for panel, (name, job) in zip(_panels(figure, len(jobs)), jobs.items(), strict=True):
        rows = {"-100": 100, "-500": 500, "": _rows(name)}
        for arm, title in (("alone", "labels of these rows"), ("prediction", "teacher on them")):
            points = [
                (number, Interval.of([*found.values()]))
                for suffix, number in rows.items()
                if (found := scores(name, f"{arm}{suffix}"))
            ]
            _line(panel, points, COLOURS[arm], title)
        _finish(panel, name, job, "training rows")
    _save(figure, "study-labels")


def _rows(job: str) -> int:
    return {"squad": 2_000, "sst2": 8_000, "wnut17": 3_394}[job.partition("-")[0]]


def _panels(figure: Any, number: int) -> list[Any]:
    return list(figure.subplots(1, number, squeeze=False)[0])


def _line(panel: Any, points: list[tuple[int, Interval]], colour: str, title: str) -> None:
    panel.errorbar(
        [x for x, _ in points], [one.mean for _, one in points],
        yerr=[one.half or 0 for _, one in points],
        color=colour, marker="o", markersize=4, capsize=3, linewidth=1.2, label=title,
    )  # fmt: skip


def _finish(panel: Any, name: str, job: Job, quantity: str) -> None:
    panel.axhline(_teacher(name), color="#555555", linewidth=1, linestyle="--", label="the teacher")
    panel.set_xscale("log")
    places = sorted({int(x) for line in panel.containers for x in line[0].get_xdata()})
    panel.set_xticks(places, [f"{place:,}" for place in places])
    panel.minorticks_off()
    panel.set_xlabel(quantity, fontsize=8)
    panel.set_title(job.title, fontsize=9)
    panel.tick_params(labelsize=7)
    declutter(panel)


def _save(figure: Any, name: str) -> None:
    """Write a picture with one legend for all panels below them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=8, frameon=False, ncols=len(labels), loc="outside lower center"
    )
    figure.savefig(IMAGES / f"{name}.png")
