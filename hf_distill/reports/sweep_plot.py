"""The picture of a sweep: the metric over the two options that were varied most."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hf_distill.files import write_atomically
from hf_distill.reports.sweep import SweepReport, TrialReport, figure, shown

# More values than this were drawn from a range: cells would be empty, so points are shown.
_MOST_CELLS = 12
_MOST_PANELS = 6
_BEST = "#D55E00"
_LINE = "#0072B2"


class HeatMap(NamedTuple):
    """One panel.

    Attributes:
        title: what its trials have in common; may be empty.
        columns: the values of the horizontal option.
        rows: those of the vertical one.
        cells: by row and column the mean of the trials there, ``None`` without one.
    """

    title: str
    columns: list[Any]
    rows: list[Any]
    cells: list[list[float | None]]


class Axis(NamedTuple):
    """An option and the values that were tried."""

    name: str
    values: list[Any]

    @property
    def is_numeric(self) -> bool:
        """Whether its values are numbers."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    @property
    def is_drawn(self) -> bool:
        """Whether its values are too many for cells."""
        return self.is_numeric and len(self.values) > _MOST_CELLS


def axes_of(report: SweepReport) -> tuple[list[Axis], Axis | None]:
    """The one or two options that have the most different values, and the one of the panels.

    Returns:
        The horizontal and the vertical axis, in the order of the options; and of the others the
        one with the most values among those that are not numbers, if there is one.
    """
    complete = [trial for trial in report.trials if trial.value is not None]
    tried = [Axis(name, _distinct(complete, name)) for name in report.parameters]
    by_number = sorted(tried, key=lambda axis: (-len(axis.values), not axis.is_numeric))
    chosen = [axis for axis in tried if axis in by_number[:2] and len(axis.values) > 1]
    chosen = chosen or by_number[:1]
    others = [
        axis
        for axis in by_number
        if axis not in chosen and not axis.is_numeric and 1 < len(axis.values) <= _MOST_PANELS
    ]
    return chosen, next(iter(others), None)


def heat_maps(report: SweepReport) -> list[HeatMap]:
    """What is drawn over two options: means over the options that are no axis.

    Raises:
        ValueError: fewer than two options were varied.
    """
    axes, split = axes_of(report)
    if len(axes) != 2:
        raise ValueError("a heat map needs two options with several values each.")
    across, down = axes
    maps = []
    for title, trials in _panels(report, split):
        found: dict[tuple[Any, Any], list[TrialReport]] = {}
        for trial in trials:
            place = (trial.parameters[across.name], trial.parameters[down.name])
            found.setdefault(place, []).append(trial)
        cells = [[_mean(found.get((x, y), [])) for x in across.values] for y in down.values]
        maps.append(HeatMap(title, across.values, down.values, cells))
    return maps


def plot_sweep(report: SweepReport, path: str | os.PathLike[str]) -> Path:
    """Draw the metric over the options.

    Over two options a heat map with the number in each cell, over one a line; points where an
    option was drawn from a range. The best is framed or circled, of equals the first alone. An
    option that is not a number, such as the loss, gives each of its values a panel; further options
    are averaged over.

    Args:
        report: with at least one complete trial.
        path: the image to write, replaced if it is there. The ending says the format (.png, .svg).

    Returns:
        ``path``.

    Raises:
        OSError: if it cannot be written.
    """
    return write_atomically(path, sweep_figure(report).savefig)


def sweep_figure(report: SweepReport) -> Figure:
    """The picture, not yet written; see ``plot_sweep``."""
    axes, split = axes_of(report)
    panels = list(_panels(report, split))
    is_map = len(axes) == 2 and not any(axis.is_drawn for axis in axes)
    width, height = 4.6, 3.2
    if is_map:
        width = 1.6 + 0.75 * max(len(axes[0].values), 3)
        height = 1.0 + 0.5 * max(len(axes[1].values), 3)
    size = (width * len(panels) + 1.0, height + 0.9)
    drawing = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(drawing)
    places = drawing.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    if len(axes) < 2:
        for place, (title, trials) in zip(places, panels, strict=True):
            _draw_line(place, report, axes[0], trials)
            place.set_title(title, fontsize=10)
    else:
        image: Any = None
        maps = heat_maps(report) if is_map else [None] * len(panels)
        for place, (title, trials), heat_map in zip(places, panels, maps, strict=True):
            if heat_map is None:
                image = _draw_points(place, report, axes, trials)
            else:
                image = _draw_map(place, report, heat_map, maps)
            place.set_title(title, fontsize=10)
            place.set_xlabel(axes[0].name)
        places[0].set_ylabel(axes[1].name)
        drawing.colorbar(image, ax=list(places), label=report.metric)
    drawing.suptitle(_title(report, axes, split), fontsize=10)
    return drawing


def _title(report: SweepReport, axes: Sequence[Axis], split: Axis | None) -> str:
    direction = "lower is better" if report.lower_is_better else "higher is better"
    title = f"{report.task}: {report.metric} ({direction})"
    named = {axis.name for axis in (*axes, *([split] if split else []))}
    complete = [trial for trial in report.trials if trial.value is not None]
    averaged = [
        name
        for name in report.parameters
        if name not in named and len(_distinct(complete, name)) > 1
    ]
    return f"{title}\nmean over {', '.join(averaged)}" if averaged else title


def _panels(report: SweepReport, split: Axis | None) -> list[tuple[str, list[TrialReport]]]:
    complete = [trial for trial in report.trials if trial.value is not None]
    if split is None:
        return [("", complete)]
    return [
        (
            f"{split.name}: {shown(value)}",
            [trial for trial in complete if trial.parameters[split.name] == value],
        )
        for value in split.values
    ]


def _distinct(trials: Sequence[TrialReport], name: str) -> list[Any]:
    """The different values of an option: numbers by size, others in the order of the trials."""
    values = list(dict.fromkeys(trial.parameters[name] for trial in trials))
    return sorted(values) if Axis(name, values).is_numeric else values


def _mean(trials: Sequence[TrialReport]) -> float | None:
    values = [trial.value for trial in trials if trial.value is not None]
    return statistics.fmean(values) if values else None


def _draw_map(
    place: Axes, report: SweepReport, heat_map: HeatMap, maps: Sequence[HeatMap | None]
) -> Any:
    places = [
        (cell, one, x, y)
        for one in maps
        if one is not None
        for y, row in enumerate(one.cells)
        for x, cell in enumerate(row)
        if cell is not None
    ]
    every = [cell for cell, *_ in places]
    low, high = min(every), max(every)
    # The first of equals, as in the table.
    best = next(
        where for cell, *where in places if cell == (low if report.lower_is_better else high)
    )
    values = [[float("nan") if cell is None else cell for cell in row] for row in heat_map.cells]
    image = place.imshow(
        values,
        cmap=_colors(report),
        vmin=low,
        vmax=high if high > low else low + 1,
        aspect="auto",
        interpolation="nearest",
        origin="lower",
    )
    for y, row in enumerate(heat_map.cells):
        for x, cell in enumerate(row):
            if cell is None:
                continue
            share = (cell - low) / (high - low) if high > low else 0.0
            bright = share < 0.4 if report.lower_is_better else share > 0.6
            place.text(
                x, y, figure(cell), ha="center", va="center", fontsize=8,
                color="black" if bright else "white",
            )  # fmt: skip
            if best == [heat_map, x, y]:
                corner = (x - 0.5, y - 0.5)
                place.add_patch(
                    Rectangle(
                        corner, 1, 1, fill=False, edgecolor=_BEST, linewidth=2.5, clip_on=False
                    )
                )
    place.set_xticks(range(len(heat_map.columns)), [shown(v) for v in heat_map.columns])
    place.set_yticks(range(len(heat_map.rows)), [shown(v) for v in heat_map.rows])
    return image


def _draw_points(
    place: Axes, report: SweepReport, axes: Sequence[Axis], trials: Sequence[TrialReport]
) -> Any:
    every = [trial.value for trial in report.trials if trial.value is not None]
    across, down = (_positions(place, axis, way) for axis, way in zip(axes, "xy", strict=True))
    points = [
        (across[trial.parameters[axes[0].name]], down[trial.parameters[axes[1].name]])
        for trial in trials
    ]
    image = place.scatter(
        [x for x, _ in points],
        [y for _, y in points],
        c=[trial.value or 0.0 for trial in trials],
        cmap=_colors(report),
        vmin=min(every),
        vmax=max(every),
        s=60,
        edgecolors="#444444",
        linewidths=0.5,
    )
    best = report.best()
    for point, trial in zip(points, trials, strict=True):
        if trial is best:
            place.scatter(*point, s=170, facecolors="none", edgecolors=_BEST, linewidths=2.5)
    _tidy(place)
    return image


def _draw_line(place: Axes, report: SweepReport, axis: Axis, trials: Sequence[TrialReport]) -> None:
    positions = _positions(place, axis, "x")
    means = []
    for value in axis.values:
        here = [trial for trial in trials if trial.parameters[axis.name] == value]
        mean = _mean(here)
        if mean is None:
            continue
        means.append((positions[value], mean))
        if len(here) == 1 and here[0].spread is not None:
            place.errorbar(*means[-1], yerr=here[0].spread, color=_LINE, capsize=3)
    place.plot(*zip(*means, strict=True), color=_LINE, marker="o", linewidth=1.4)
    choose = min if report.lower_is_better else max
    best = choose(means, key=lambda point: point[1])
    place.scatter(*best, s=170, facecolors="none", edgecolors=_BEST, linewidths=2.5, zorder=3)
    place.annotate(figure(best[1]), best, xytext=(8, 8), textcoords="offset points", fontsize=9)
    place.margins(y=0.2)
    place.set_xlabel(axis.name)
    place.set_ylabel(report.metric)
    _tidy(place)


def _positions(place: Axes, axis: Axis, way: str) -> dict[Any, float]:
    """Where the values of an option are; numbers over orders of magnitude by their logarithm."""
    if not axis.is_numeric:
        set_ticks = place.set_xticks if way == "x" else place.set_yticks
        set_ticks(range(len(axis.values)), [shown(value) for value in axis.values])
        return {value: float(i) for i, value in enumerate(axis.values)}
    if min(axis.values) > 0 and max(axis.values) >= 20 * min(axis.values):
        (place.set_xscale if way == "x" else place.set_yscale)("log")
    return {value: float(value) for value in axis.values}


def _colors(report: SweepReport) -> str:
    """Bright is good."""
    return "viridis_r" if report.lower_is_better else "viridis"


def _tidy(place: Axes) -> None:
    place.grid(color="#DDDDDD", linewidth=0.6)
    place.set_axisbelow(True)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
