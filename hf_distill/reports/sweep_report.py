"""The results of a sweep, best first."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_distill._version import __version__
from hf_distill.files import without_paths
from hf_distill.markdown import markdown_table
from hf_distill.tasks.bootstrap import REPLICATES, contains_zero, interval


@dataclass(frozen=True)
class TrialReport:
    """One trial."""

    number: int
    """From 0, in the order in which they were run."""
    parameters: Mapping[str, Any]
    """The options that the sweep set."""
    values: Sequence[float] = ()
    """The metric, one per seed; empty if the trial failed."""
    seconds: float | None = None
    """Of training, all seeds together."""
    failure: str | None = None
    """Why it failed, if it did."""
    replicates: Sequence[float] = ()
    """The value in resamples of the data, from ``bootstrap``."""

    @property
    def value(self) -> float | None:
        """Return the mean of the seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Return the standard deviation of the seeds, if there are several."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class SweepReport:
    """All trials of a sweep that ended, in their order."""

    task: str
    metric: str
    lower_is_better: bool
    trials: Sequence[TrialReport]
    parameters: Sequence[str]
    """The names of the options that the sweep set, in order."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The sweep's own settings, for ``sweep.json``."""
    baseline: tuple[str, float] | None = None
    """A predictor that is the same for every row, and its metric."""

    def complete(self) -> list[TrialReport]:
        """Return the trials that did not fail."""
        return [trial for trial in self.trials if trial.value is not None]

    def ranked(self) -> list[TrialReport]:
        """Return the trials, best first, of equals the earlier; those that failed last."""
        sign = 1 if self.lower_is_better else -1
        failed = [trial for trial in self.trials if trial.value is None]
        return [*sorted(self.complete(), key=lambda one: sign * (one.value or 0.0)), *failed]

    def best(self) -> TrialReport | None:
        """Return the best trial; ``None`` if all failed."""
        return self.ranked()[0] if self.complete() else None

    def equals(self) -> list[TrialReport]:
        """Return the trials that this data and these seeds cannot tell from the best one."""
        best = self.best()
        if best is None:
            return []
        return [one for one in self.ranked() if one is not best and _within_noise(best, one)]

    def header(self) -> list[str]:
        """Return the names of the columns."""
        return ["trial", *self.parameters, self.metric, "95% interval", "seconds"]

    def rows(self) -> list[list[str]]:
        """Return the table, a row per trial."""
        return [
            [
                str(trial.number),
                *(shown(trial.parameters[name]) for name in self.parameters),
                self.score(trial),
                _bounds(trial),
                "" if trial.seconds is None else f"{trial.seconds:.1f}",
            ]
            for trial in self.ranked()
        ]

    def score(self, trial: TrialReport) -> str:
        """Return a trial's value, with its spread if there is one, or why there is none."""
        if trial.value is None:
            return f"failed: {trial.failure}"
        spread = "" if trial.spread is None else f" ± {figure(trial.spread)}"
        return f"{figure(trial.value)}{spread}"

    def headline(self) -> str:
        """Return the best trial in one line."""
        best = self.best()
        if best is None:
            return "No trial came to an end."
        options = " ".join(
            f"--{name} {_plain(best.parameters[name])}"
            for name in self.parameters
            if best.parameters[name] is not None
        )
        text = f"Best: {self.metric} {self.score(best)} with {options} (trial {best.number})."
        equals = self.equals()
        if len(equals) == len(self.complete()) - 1 > 0:
            text += " No other trial is worse by more than noise: this sweep has no winner."
        elif equals:
            numbers = ", ".join(str(trial.number) for trial in equals)
            text += f" Within noise of it: trial{'s'[: len(equals) > 1]} {numbers}."
        if self.baseline is not None and not self._beats(best, self.baseline[1]):
            text += f" That is not better than {self.baseline[0]} ({figure(self.baseline[1])})."
        return text

    def _beats(self, trial: TrialReport, value: float) -> bool:
        own = trial.value or 0.0
        return own < value if self.lower_is_better else own > value

    def footnotes(self) -> list[str]:
        """Return what the table shows, one line each."""
        direction = "lower is better" if self.lower_is_better else "higher is better"
        notes = [f"{self.task}; {self.metric}: {direction}"]
        seeds = self.settings.get("seeds") or []
        if len(seeds) > 1:
            listed = ", ".join(map(str, seeds))
            notes.append(f"mean and standard deviation of the seeds {listed}")
        if any(len(trial.replicates) for trial in self.trials):
            notes.append(
                f"noise: the 95% interval of the difference contains 0 (paired bootstrap, "
                f"{REPLICATES} resamples of the validation data"
                + (" and seeds)" if len(seeds) > 1 else ")")
            )
        if self.baseline is not None:
            notes.append(f"{self.baseline[0]}: {figure(self.baseline[1])}")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        best = self.best()
        return {
            "hf_distill_version": __version__,
            "task": self.task,
            "metric": self.metric,
            "lower_is_better": self.lower_is_better,
            "settings": dict(self.settings),
            "best": None if best is None else best.number,
            "within_noise_of_best": [trial.number for trial in self.equals()],
            "baseline": None if self.baseline is None else list(self.baseline),
            "trials": [
                {
                    "number": trial.number,
                    "parameters": {name: _plain(value) for name, value in trial.parameters.items()},
                    "value": trial.value,
                    "spread": trial.spread,
                    "values": list(trial.values),
                    "interval": interval(trial.replicates),
                    "seconds": trial.seconds,
                    "failure": trial.failure,
                }
                for trial in self.trials
            ],
        }

    def to_markdown(self) -> str:
        """Return the table, the headline and the footnotes as Markdown."""
        numbers = (0, *range(len(self.parameters) + 1, len(self.parameters) + 4))
        table = markdown_table(self.header(), self.rows(), right=numbers)
        notes = "\n".join(f"- {note}" for note in self.footnotes())
        return f"{table}\n\n**{self.headline()}**\n\n{notes}\n"


def _within_noise(best: TrialReport, trial: TrialReport) -> bool:
    if trial.value is None:
        return False
    if not len(best.replicates) == len(trial.replicates) > 0:
        return trial.value == best.value
    pairs = np.asarray([best.replicates, trial.replicates], dtype=np.float64)  # None is NaN
    # Where the metric is not defined in some resamples nothing is known of its noise.
    bounds = interval(pairs[0] - pairs[1])
    return trial.value == best.value if bounds is None else contains_zero(bounds)


def _bounds(trial: TrialReport) -> str:
    bounds = interval(trial.replicates)
    return "" if bounds is None else f"{figure(bounds[0])} to {figure(bounds[1])}"


def shown(value: object) -> str:
    """Return a parameter's value as tables and pictures show it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(_plain(value))


def _plain(value: Any) -> Any:
    return without_paths(value) if isinstance(value, str) else value


def figure(value: float) -> str:
    """Format a metric for tables and pictures: two decimals, or four digits below 1."""
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"
