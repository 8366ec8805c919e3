"""Pictures of a comparison: quality against size and time, and reliability."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_distill.files import write_atomically
from hf_distill.plotting import declutter, new_figure, plain
from hf_distill.reports.comparison import Comparison, ModelReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinct with any colour vision. The shape differs as well.
_STYLES = {
    "teacher": ("#0072B2", "s"),
    "student_alone": ("#7F7F7F", "o"),
    "student_distilled": ("#D55E00", "^"),
}
_FURTHER = (("#009E73", "D"), ("#CC79A7", "v"), ("#56B4E9", "P"), ("#E69F00", "X"))


class Axis(NamedTuple):
    """A quantity that quality is drawn against."""

    name: str
    label: str
    value: Callable[[ModelReport], float | None]


_AXES = (
    Axis(
        "parameters",
        "parameters (million)",
        lambda model: model.parameters and model.parameters / 1e6,
    ),
    Axis(
        "latency",
        "latency of one example (ms, median)",
        lambda model: None if model.latency is None else model.latency.median,
    ),
)


def measured_axes(comparison: Comparison) -> list[Axis]:
    """Return what all models have a value of; a column of predictions has none."""
    models = [model for model in comparison.models if model.parameters is not None]
    return [axis for axis in _AXES if all(axis.value(model) is not None for model in models)]


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Draw quality against parameters, and against latency where all models have one.

    The ending of ``path``, which is returned, is the format (.png, .svg).
    """
    figure = quality_figure(comparison, measured_axes(comparison))
    metric = comparison.primary_metric
    label = plain(comparison.quality_labels[metric])
    title = f"{comparison.task.replace('-', ' ')}: {label} of {comparison.examples:,} examples"
    share = comparison.gap_closed().get(metric)
    if share is not None and comparison.doubt(metric) is None:
        title += f"\ndistillation closed {share:.0%} of the gap in {label}"
    figure.suptitle(title, fontsize=11)
    return write_atomically(path, figure.savefig)


def quality_figure(comparison: Comparison, axes: Sequence[Axis]) -> Figure:
    """Draw the primary metric against one or more quantities, a panel each."""
    # One panel is for a page, which a phone shows at this size.
    figure = new_figure(4.8 * len(axes) + 0.6, 4.4) if len(axes) > 1 else new_figure(4.4, 3.7)
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _draw(panel, comparison, axis)
    metric = comparison.primary_metric
    label = plain(comparison.quality_labels[metric])
    panels[0].set_ylabel(
        label if not comparison.models[0].intervals() else f"{label}, 95% interval"
    )
    panels[0].set_ylim(_quality_range(comparison))
    _add_legend(figure, panels[0])
    return figure


def _quality_range(comparison: Comparison) -> tuple[float, float]:
    """Return the part of the axis in which all models are with their intervals.

    It leaves room around them, at least as if they differed by 5 %: nearly equal models must not
    seem to be far from each other.
    """
    metric = comparison.primary_metric
    values = [model.quality[metric] for model in comparison.models]
    values += [bound for m in comparison.models for bound in m.intervals().get(metric, ())]
    low, high = min(values), max(values)
    room = 0.3 * max(high - low, 0.05 * abs(high)) or 1.0
    return low - room if low < 0 else max(0.0, low - room), high + room


def reliability_figure(comparison: Comparison) -> Figure:
    """Draw the share of right predictions against their probability, a line per model.

    The size of a point goes with the number of predictions in its bin; on the diagonal a model is
    as often right as it says. Models without ``calibration`` are left out.
    """
    figure = new_figure(4.4, 4.2)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color="#444444", linewidth=1, linestyle=":")
    for model, (color, marker) in zip(comparison.models, _styles(comparison.models), strict=True):
        if model.calibration is None:
            continue
        points = model.calibration.points()
        sure, right, counts = zip(*points, strict=True)
        total = model.calibration.total
        sizes = [12 + 110 * count / total for count in counts]
        panel.plot(sure, right, color=color, linewidth=1.4)
        label = f"{model.label} (error {model.calibration.error():.1%})"
        panel.scatter(sure, right, s=sizes, color=color, marker=marker, label=label, zorder=3)
    panel.set(xlim=(0, 1.03), ylim=(-0.03, 1.03))
    panel.set_xlabel("probability of the prediction")
    panel.set_ylabel("share of right predictions")
    declutter(panel)
    _add_legend(figure, panel, columns=1)
    return figure


def _styles(models: Sequence[ModelReport]) -> list[tuple[str, str]]:
    further = [model.role for model in models if model.role not in _STYLES]
    return [
        _STYLES.get(model.role) or _FURTHER[further.index(model.role) % len(_FURTHER)]
        for model in models
    ]


def _add_legend(figure: Figure, panel: Axes, columns: int = 3) -> None:
    handles, labels = panel.get_legend_handles_labels()
    style: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "scatterpoints": 1}
    legend = figure.legend(handles, labels, ncols=min(len(labels), columns), **style)
    for handle in legend.legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]


def _draw(panel: Axes, comparison: Comparison, axis: Axis) -> None:
    metric = comparison.primary_metric
    models = comparison.models
    points = {
        model.role: (value, model.quality[metric])
        for model in models
        if (value := axis.value(model)) is not None
    }
    teacher = comparison.model("teacher")
    if teacher is not None:
        color, _ = _STYLES["teacher"]
        height = teacher.quality[metric]
        panel.axhline(height, color=color, linestyle=":", linewidth=1)
        if "teacher" not in points:
            name = f"{teacher.label} {height:.1f}"
            place: dict[str, Any] = {"xytext": (4, 3), "textcoords": "offset points"}
            panel.annotate(name, (0, height), fontsize=9, color=color, **place)
    if "student_alone" in points and "student_distilled" in points:
        panel.annotate(
            "",
            xy=points["student_distilled"],
            xytext=points["student_alone"],
            arrowprops={"arrowstyle": "->", "color": "#444444", "shrinkA": 7, "shrinkB": 7},
        )
    width = 1.2 * max(x for x, _ in points.values())
    heights = [y for role, (_, y) in points.items() if role != "teacher"]
    for model, (color, marker) in zip(models, _styles(models), strict=True):
        if model.role not in points:
            continue
        x, y = points[model.role]
        bounds = model.intervals().get(metric)
        if bounds is not None:
            panel.plot([x, x], bounds, color=color, linewidth=1.4)
        panel.scatter(x, y, s=90, color=color, marker=marker, label=model.label, zorder=3)
        # The lower student's figure goes below, so that two close ones can both be read.
        rise = -13 if model.role != "teacher" and y < max(heights) else 5
        # To the left if another point is where the figure would be.
        crowded = any(x < other < x + 0.12 * width for other, _ in points.values())
        side: dict[str, Any] = {"ha": "right" if crowded else "left", "fontsize": 9}
        shift = (-9 if crowded else 9, rise)
        panel.annotate(f"{y:.1f}", (x, y), xytext=shift, textcoords="offset points", **side)
    panel.set_xlabel(axis.label)
    panel.set_xlim(0, width)
    declutter(panel)
