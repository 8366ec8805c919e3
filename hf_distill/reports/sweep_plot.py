"""The picture of a sweep: the metric over the two options that were varied most."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_distill.files import write_atomically
from hf_distill.plotting import declutter, draw_cells, new_figure
from hf_distill.reports.sweep_report import SweepReport, TrialReport, figure, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More values than this were drawn from a range: cells would be empty, so points are shown.
_MOST_CELLS = 12
_MOST_PANELS = 6
_LINE = "#0072B2"
_BEST = "#D55E00"
_CIRCLE: dict[str, Any] = {"s": 170, "facecolors": "none", "edgecolors": _BEST, "linewidths": 2.5}


class HeatMap(NamedTuple):
    """One panel."""

    title: str
    """The value that its trials share; may be empty."""
    columns: list[Any]
    """The values of the horizontal option."""
    rows: list[Any]
    cells: list[list[float | None]]
    """By row and column the mean of the trials there, ``None`` without one."""


class Axis(NamedTuple):
    """An option and the values that were tried."""

    name: str
    values: list[Any]

    @property
    def is_numeric(self) -> bool:
        """Return whether its values are numbers."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    @property
    def is_drawn(self) -> bool:
        """Return whether its values are too many for cells."""
        return self.is_numeric and len(self.values) > _MOST_CELLS


def axes_of(report: SweepReport) -> tuple[list[Axis], Axis | None]:
    """Choose the one or two options that have the most different values, and the one of the panels.

    Returns:
        The horizontal and the vertical axis, in the order of the options; and of the others the
        one with the most values among those that are not numbers, if there is one.
    """
    tried = []
    for name in report.parameters:
        values = list(dict.fromkeys(trial.parameters[name] for trial in report.complete()))
        axis = Axis(name, values)
        tried.append(Axis(name, sorted(values)) if axis.is_numeric else axis)
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
    """Return what is drawn over two options: means over the options that are not an axis.

    Raises:
        ValueError: fewer than two options were varied.
    """
    axes, split = axes_of(report)
    if len(axes) != 2:
        raise ValueError("a heat map needs two options with several values each.")
    maps = []
    for title, trials in _panels(report, split):
        found: dict[tuple[Any, ...], list[TrialReport]] = {}
        for trial in trials:
            found.setdefault(tuple(trial.parameters[axis.name] for axis in axes), []).append(trial)
        columns, rows = (axis.values for axis in axes)
        cells = [[_mean(found[x, y]) if (x, y) in found else None for x in columns] for y in rows]
        maps.append(HeatMap(title, columns, rows, cells))
    return maps


def plot_sweep(report: SweepReport, path: str | os.PathLike[str]) -> Path:
    """Draw the metric over the options.

    Over two options a heat map with the number in each cell, over one a line; points where an
    option was drawn from a range. The best is framed or circled, of equals only the first. An
    option that is not a number, such as the loss, gives each of its values a panel; further options
    are averaged over.

    ``report`` needs a complete trial; the ending of ``path`` is the format (.png, .svg).
    """
    return write_atomically(path, sweep_figure(report).savefig)


def sweep_figure(report: SweepReport) -> Figure:
    """Draw as ``plot_sweep`` does, without writing."""
    axes, split = axes_of(report)
    panels = _panels(report, split)
    is_map = len(axes) == 2 and not any(axis.is_drawn for axis in axes)
    width, height = 4.6, 3.2
    if is_map:
        width = 1.6 + 0.75 * max(len(axes[0].values), 3)
        height = 1.0 + 0.5 * max(len(axes[1].values), 3)
    drawing = new_figure(width * len(panels) + 1.0, height + 0.9)
    places = list(drawing.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0])
    for place, (title, trials) in zip(places, panels, strict=True):
        place.set_title(title, fontsize=10)
        place.set_xlabel(axes[0].name)
        if len(axes) < 2:
            _draw_line(place, report, axes[0], trials)
    if len(axes) == 2:
        image = _draw_maps(places, report) if is_map else _draw_points(places, report, axes, panels)
        places[0].set_ylabel(axes[1].name)
        drawing.colorbar(image, ax=places, label=report.metric)
    direction = "lower is better" if report.lower_is_better else "higher is better"
    title = f"{report.task}: {report.metric} ({direction})"
    averaged = [
        name
        for name in report.parameters
        if name not in [axis.name for axis in (*axes, split) if axis is not None]
        and len({trial.parameters[name] for trial in report.complete()}) > 1
    ]
    if averaged:
        title += f"\nmean over {', '.join(averaged)}"
    drawing.suptitle(title, fontsize=10)
    return drawing


def _panels(report: SweepReport, split: Axis | None) -> list[tuple[str, list[TrialReport]]]:
    trials = report.complete()
    if split is None:
        return [("", trials)]
    return [
        (f"{split.name}: {shown(value)}", [t for t in trials if t.parameters[split.name] == value])
        for value in split.values
    ]


def _mean(trials: Sequence[TrialReport]) -> float:
    return statistics.fmean(
        value for trial in trials for value in [trial.value] if value is not None
    )


def _draw_maps(places: Sequence[Axes], report: SweepReport) -> Any:
    maps = heat_maps(report)
    cells = [
        (cell, number, (x, y))
        for number, one in enumerate(maps)
        for y, row in enumerate(one.cells)
        for x, cell in enumerate(row)
        if cell is not None
    ]
    low, high = min(cell for cell, *_ in cells), max(cell for cell, *_ in cells)
    # The first of equals, as in the table.
    best = low if report.lower_is_better else high
    _, of_best, where = next(one for one in cells if one[0] == best)
    style = {"vmin": low, "vmax": high if high > low else low + 1.0, "cmap": _colors(report)}
    for number, (place, one) in enumerate(zip(places, maps, strict=True)):
        values = [[math.nan if cell is None else cell for cell in row] for row in one.cells]
        framed = [where] if number == of_best else []
        image = draw_cells(place, values, figure, framed, origin="lower", **style)
        place.set_xticks(range(len(one.columns)), list(map(shown, one.columns)))
        place.set_yticks(range(len(one.rows)), list(map(shown, one.rows)))
    return image


def _draw_points(
    places: Sequence[Axes],
    report: SweepReport,
    axes: Sequence[Axis],
    panels: Sequence[tuple[str, list[TrialReport]]],
) -> Any:
    every = [trial.value or 0.0 for trial in report.complete()]
    for place, (_, trials) in zip(places, panels, strict=True):
        across, down = (_positions(place, axis, way) for axis, way in zip(axes, "xy", strict=True))
        xs = [across[trial.parameters[axes[0].name]] for trial in trials]
        ys = [down[trial.parameters[axes[1].name]] for trial in trials]
        image = place.scatter(
            xs, ys, c=[trial.value or 0.0 for trial in trials], cmap=_colors(report),
            vmin=min(every), vmax=max(every), s=60, edgecolors="#444444", linewidths=0.5,
        )  # fmt: skip
        for x, y, trial in zip(xs, ys, trials, strict=True):
            if trial is report.best():
                place.scatter(x, y, **_CIRCLE)
        declutter(place)
    return image


def _draw_line(place: Axes, report: SweepReport, axis: Axis, trials: Sequence[TrialReport]) -> None:
    positions = _positions(place, axis, "x")
    means = []
    for value in axis.values:
        here = [trial for trial in trials if trial.parameters[axis.name] == value]
        if not here:
            continue
        means.append((positions[value], _mean(here)))
        if len(here) == 1 and here[0].spread is not None:
            place.errorbar(*means[-1], yerr=here[0].spread, color=_LINE, capsize=3)
    place.plot(*zip(*means, strict=True), color=_LINE, marker="o", linewidth=1.4)
    choose = min if report.lower_is_better else max
    best = choose(means, key=lambda point: point[1])
    place.scatter(*best, **_CIRCLE, zorder=3)
    place.annotate(figure(best[1]), best, xytext=(8, 8), textcoords="offset points", fontsize=9)
    place.margins(y=0.2)
    place.set_ylabel(report.metric)
    declutter(place)


def _positions(place: Axes, axis: Axis, way: str) -> dict[Any, float]:
    """Place the values of an option; numbers over orders of magnitude by their logarithm."""
    if not axis.is_numeric:
        set_ticks = place.set_xticks if way == "x" else place.set_yticks
        set_ticks(range(len(axis.values)), list(map(shown, axis.values)))
        return {value: float(i) for i, value in enumerate(axis.values)}
    if min(axis.values) > 0 and max(axis.values) >= 20 * min(axis.values):
        (place.set_xscale if way == "x" else place.set_yscale)("log")
    return {value: float(value) for value in axis.values}


def _colors(report: SweepReport) -> str:
    """Return the colour map in which bright is good."""
    return "viridis_r" if report.lower_is_better else "viridis"
