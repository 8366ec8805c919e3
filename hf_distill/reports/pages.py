"""Reports as files: JSON, Markdown and a picture."""

from __future__ import annotations

import os
from pathlib import Path

from hf_distill.files import write_json, write_text
from hf_distill.plotting import why_no_pictures
from hf_distill.reports.comparison import Comparison
from hf_distill.reports.comparison_plot import plot_comparison
from hf_distill.reports.sweep_plot import plot_sweep
from hf_distill.reports.sweep_report import SweepReport


def write_comparison(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``comparison.json``, ``comparison.md`` and ``comparison.png``, and return their paths.

    Without matplotlib there is no picture.

    Raises:
        OSError: a file cannot be written.
    """
    written = _write_figures(comparison, Path(folder) / "comparison")
    if why_no_pictures() is None:
        written.append(plot_comparison(comparison, Path(folder) / "comparison.png"))
    return written


def write_sweep(
    report: SweepReport, folder: str | os.PathLike[str], *, picture: bool = True
) -> list[Path]:
    """Write ``sweep.json``, ``sweep.md`` and ``sweep.png``, and return their paths.

    Args:
        report: what to write.
        folder: where to; made if need be.
        picture: draw ``sweep.png`` also. Without a complete trial there is nothing to draw.

    Raises:
        OSError: a file cannot be written.
    """
    written = _write_figures(report, Path(folder) / "sweep")
    if picture and report.best() is not None:
        written.append(plot_sweep(report, Path(folder) / "sweep.png"))
    return written


def _write_figures(report: Comparison | SweepReport, path: Path) -> list[Path]:
    return [
        write_json(path.with_suffix(".json"), report.to_dict()),
        write_text(path.with_suffix(".md"), report.to_markdown()),
    ]
