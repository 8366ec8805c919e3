"""The plot of a comparison."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hf_distill.files import write_atomically
from hf_distill.plotting import declutter, new_figure
from hf_distill.reports.comparison import ROLES, Comparison, ModelReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: distinct with any colour vision. The shape differs as well.
_COLORS = {"teacher": "#0072B2", "student_alone": "#7F7F7F", "student_distilled": "#D55E00"}
_MARKERS = {"teacher": "s", "student_alone": "o", "student_distilled": "^"}


class _Axis(NamedTuple):
    label: str
    value: Callable[[ModelReport], float | None]


_AXES = (
    _Axis("parameters (million)", lambda model: model.parameters / 1e6),
    _Axis(
        "latency of one example (ms, median)",
        lambda model: None if model.latency is None else model.latency.median,
    ),
)


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Draw quality against parameters, and against latency where all models have one.

    The ending of ``path``, which is returned, is the format (.png, .svg).
    """
    axes = [
        axis for axis in _AXES if all(axis.value(model) is not None for model in comparison.models)
    ]
    figure = new_figure(4.8 * len(axes) + 0.6, 4.4)
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _draw(panel, comparison, axis)
    metric = comparison.primary_metric
    label = comparison.quality_labels[metric]
    panels[0].set_ylabel(
        label if not comparison.models[0].intervals() else f"{label}, 95% interval"
    )
    if all(model.quality[metric] >= 0 for model in comparison.models):
        panels[0].set_ylim(bottom=0)
    title = f"{comparison.task.replace('-', ' ')}: {label} of {comparison.examples:,} examples"
    share = comparison.gap_closed().get(metric)
    if share is not None and comparison.doubt(metric) is None:
        title += f"\ndistillation closed {share:.0%} of the gap in {label}"
    figure.suptitle(title, fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return write_atomically(path, figure.savefig)


def _draw(panel: Axes, comparison: Comparison, axis: _Axis) -> None:
    metric = comparison.primary_metric
    points = {
        model.role: (axis.value(model) or 0.0, model.quality[metric]) for model in comparison.models
    }
    if "teacher" in points:
        panel.axhline(points["teacher"][1], color=_COLORS["teacher"], linestyle=":", linewidth=1)
    if "student_alone" in points and "student_distilled" in points:
        panel.annotate(
            "",
            xy=points["student_distilled"],
            xytext=points["student_alone"],
            arrowprops={"arrowstyle": "->", "color": "#444444", "shrinkA": 7, "shrinkB": 7},
        )
    heights = [y for role, (_, y) in points.items() if role != "teacher"]
    for role, (x, y) in points.items():
        bounds = comparison.model(role).intervals().get(metric)  # type: ignore[union-attr]
        if bounds is not None:
            panel.plot([x, x], bounds, color=_COLORS[role], linewidth=1.4)
        panel.scatter(
            x, y, s=90, color=_COLORS[role], marker=_MARKERS[role], label=ROLES[role], zorder=3
        )
        # The lower student's figure goes below, so that two close ones can both be read.
        rise = -13 if role != "teacher" and y < max(heights) else 5
        panel.annotate(f"{y:.1f}", (x, y), xytext=(9, rise), textcoords="offset points", fontsize=9)
    panel.set_xlabel(axis.label)
    panel.set_xlim(0, 1.2 * max(x for x, _ in points.values()))
    panel.margins(y=0.15)
    declutter(panel)
