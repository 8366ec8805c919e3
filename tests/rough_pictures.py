"""Pictures without layout and axes, most of their time; `tests/reports` looks at those."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

_save = Figure.savefig


def save_roughly(self: Figure, *args: Any, **options: Any) -> None:
    """Take the place of ``Figure.savefig``."""
    self.set_layout_engine("none")
    for panel in self.axes:
        panel.set_axis_off()
    _save(self, *args, **options)
