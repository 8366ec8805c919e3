"""Reports as files: JSON, Markdown and a picture."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from hf_distill.files import write_json, write_text
from hf_distill.plotting import why_no_pictures
from hf_distill.reports.comparison import Comparison
from hf_distill.reports.comparison_plot import plot_comparison
from hf_distill.reports.report import Grid, Picture, Report, Tile
from hf_distill.reports.sweep_plot import plot_sweep, sweep_figure
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


def sweep_page(report: SweepReport, command: str) -> Report:
    """Return the page of a sweep: its plot, its trials, the command line."""
    best = report.best()
    draw = partial(sweep_figure, report)
    reading = "The best trial is framed or circled."
    tiles = [] if best is None else [Tile(report.score(best), f"{report.metric}, best trial")]
    tiles.append(Tile(f"{len(report.complete()):,}", f"trials of {len(report.trials):,} succeeded"))
    seconds = sum(trial.seconds or 0.0 for trial in report.trials)
    return Report(
        title=f"Sweep over {', '.join(report.parameters)}",
        subtitle=f"{report.task}: {report.metric}",
        headline=[report.headline()],
        tiles=tiles,
        pictures=[] if best is None else [Picture("Trials", draw, reading, "sweep.png")],
        grids=[Grid("Trials", report.header(), report.rows(), report.footnotes())],
        cost={"training, all trials": f"{seconds:.0f} s"},
        commands=[command],
    )


def _write_figures(report: Comparison | SweepReport, path: Path) -> list[Path]:
    return [
        write_json(path.with_suffix(".json"), report.to_dict()),
        write_text(path.with_suffix(".md"), report.to_markdown()),
    ]
