"""Figures that are drawn without a display, and the losses of a run as one."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.extras import MissingExtraError, require
from hf_distill.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

logger = logging.getLogger(__name__)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, in inches, that no display and no ``pyplot`` knows of."""
    figure: Figure = require("matplotlib.figure", "plots").Figure(
        figsize=(width, height), dpi=150, layout="constrained"
    )
    return figure


def why_no_pictures() -> str | None:
    """Return the line that names the extra to install; ``None`` where pictures can be drawn."""
    try:
        require("matplotlib", "plots")
    except MissingExtraError as error:
        return f"There are no pictures: {error}"
    return None


def plain(text: str) -> str:
    """Return a text from the data as matplotlib draws it: no formula, nothing that no font has."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def declutter(panel: Axes) -> None:
    """Put a light grid behind the data, and leave out the frame's top and right."""
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def draw_cells(
    panel: Axes,
    values: Sequence[Sequence[float]],
    text: Callable[[float], str] | None,
    framed: Iterable[tuple[int, int]],
    **style: Any,
) -> AxesImage:
    """Draw a heat map; NaN is an empty cell.

    Args:
        panel: where to draw.
        values: by row and column.
        text: returns what stands in a cell.
        framed: columns and rows of the cells with a frame.
        **style: ``cmap``, ``vmin``, ``vmax`` and whatever else ``imshow`` takes.
    """
    from matplotlib.patches import Rectangle

    image = panel.imshow(values, aspect="auto", interpolation="nearest", **style)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if text is not None and not math.isnan(value):
                red, green, blue, _ = image.to_rgba(np.array(value))
                # Whichever has more contrast (WCAG 2: relative luminance). Not black, which
                # pages take for the colour of their text.
                light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
                color = "#111111" if light > 0.179 else "#ffffff"
                place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
                panel.text(x, y, text(value), color=color, **place)
    for x, y in framed:
        frame: dict[str, Any] = {"edgecolor": "#D55E00", "linewidth": 2.5, "clip_on": False}
        panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, **frame))
    return image


_LOSSES = {
    "loss": "loss: the weighted sum",
    "loss_task": "loss_task: labels",
    "loss_prediction": "loss_prediction: teacher's output",
    "loss_hidden_states": "loss_hidden_states",
    "loss_attention": "loss_attention",
}


def plot_losses(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Write the picture of ``losses_figure``.

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
    return write_atomically(path, losses_figure(log_history).savefig)


def loss_curves(
    log_history: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the losses to draw: name -> training and evaluation -> steps and values."""
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
    return curves


def losses_figure(log_history: Sequence[Mapping[str, Any]], *, only: str | None = None) -> Figure:
    """Draw the loss and its parts over the steps, a panel each, in training and evaluation.

    Args:
        log_history: as for ``plot_losses``.
        only: the one loss to draw, a key of ``loss_curves``.

    Raises:
        ValueError: if there is no loss in ``log_history``.
    """
    curves = loss_curves(log_history)
    if not curves:
        raise ValueError(
            "log_history has no loss to draw: train with logging_steps within the number of steps."
        )
    last = max(step for kinds in curves.values() for curve in kinds.values() for step, _ in curve)
    if only is not None:
        curves = {only: curves[only]}
    columns = min(len(curves), 2)
    rows = -(-len(curves) // columns)
    figure = new_figure(4.6 * columns, 2.7 * rows + 0.4)
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
    return figure


def add_loss_plot(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what there is of losses for a model card, which can do without where that cannot be."""
    if any("loss" in entry for entry in log_history):
        try:
            plot_losses(log_history, path)
        except MissingExtraError as error:
            logger.warning("The model card has no %s: %s", path.name, error)


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
    declutter(panel)
