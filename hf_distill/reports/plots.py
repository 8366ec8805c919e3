"""Plots of a comparison and of a training run, drawn without a display."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_distill.files import write_atomically
from hf_distill.reports.comparison import ROLES, Comparison, ModelReport

# Okabe and Ito's palette: told apart by people with any colour vision. The shape says it again.
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

    Args:
        comparison: what to draw.
        path: the image to write, replaced if it is there. The ending says the format (.png, .svg).

    Returns:
        ``path``.

    Raises:
        OSError: if it cannot be written.
    """
    axes = [
        axis for axis in _AXES if all(axis.value(model) is not None for model in comparison.models)
    ]
    figure = Figure(figsize=(4.8 * len(axes) + 0.6, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
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
    _tidy(panel)


def _tidy(panel: Axes) -> None:
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


_LOSSES = {
    "loss": "loss: the weighted sum",
    "loss_task": "loss_task: labels",
    "loss_prediction": "loss_prediction: teacher's output",
    "loss_hidden_states": "loss_hidden_states",
    "loss_attention": "loss_attention",
}


def plot_losses(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draw the loss and its parts over the steps, a panel each, in training and evaluation.

    Args:
        log_history: ``trainer.state.log_history``. What is drawn: ``loss``, ``loss_task``,
            ``loss_prediction``, ``loss_hidden_states``, ``loss_attention``, and the same in
            evaluation, except that ``eval_loss`` is no weighted sum and is left out.
        path: the image to write, replaced if it is there. The ending says the format (.png, .svg).

    Returns:
        ``path``.

    Raises:
        ValueError: if there is no loss in ``log_history``.
        OSError: if it cannot be written.
    """
    curves = {
        name: {
            "training": _curve(log_history, name),
            "evaluation": [] if name == "loss" else _curve(log_history, f"eval_{name}"),
        }
        for name in _LOSSES
    }
    curves = {name: kinds for name, kinds in curves.items() if any(kinds.values())}
    total = curves.get("loss", {}).get("training")
    if any(kinds["training"] == total for name, kinds in curves.items() if name != "loss"):
        del curves["loss"]  # the one part that it is the sum of says more
    if not curves:
        raise ValueError(
            "log_history has no loss to draw: train with logging_steps within the number of steps."
        )
    last = max(step for kinds in curves.values() for curve in kinds.values() for step, _ in curve)
    columns = min(len(curves), 2)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.7 * rows + 0.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (name, kinds) in zip(panels, curves.items(), strict=False):
        _draw_losses(panel, kinds)
        panel.set_title(_LOSSES[name], fontsize=10)
        panel.set_xlabel("step")
        panel.set_xlim(0, 1.02 * max(last, 1))
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False
    )
    return write_atomically(path, figure.savefig)


def _curve(log_history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in log_history if name in entry]


def _draw_losses(panel: Axes, kinds: Mapping[str, list[tuple[int, float]]]) -> None:
    styles: dict[str, dict[str, Any]] = {
        "training": {"color": "#0072B2", "linewidth": 1.4, "marker": "."},
        "evaluation": {"color": "#D55E00", "linewidth": 1.4, "marker": "^", "linestyle": "--"},
    }
    values = [value for curve in kinds.values() for _, value in curve]
    for kind, curve in kinds.items():
        if curve:
            steps, losses = zip(*curve, strict=True)
            panel.plot(steps, losses, label=kind, markersize=4, **styles[kind])
    # A loss that falls by orders of magnitude would be a line along the bottom.
    if min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
    _tidy(panel)
