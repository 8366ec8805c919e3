"""Exported models of a student, found in folders inside its own or next to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_distill.files import read_json, weights_hash
from hf_distill.markdown import markdown_table
from hf_distill.onnx_model import EXPORT_REPORT, EXPORTED_FILES

_ROLES = ("original", "exported")


class Export(NamedTuple):
    """Folder that ``hf-distill export`` wrote, and its report."""

    folder: Path
    report: Mapping[str, Any]


def find_exports(folder: Path) -> dict[str, Export]:
    """Find what was exported of the weights in ``folder``, by the file's name in a repository.

    Exports of other weights, such as those before another training, are left out.

    Raises:
        ValueError: two folders have the same file, or a report cannot be read.
    """
    found: dict[str, Export] = {}
    paths = [
        *folder.glob(f"*/{EXPORT_REPORT}"),
        *folder.resolve().parent.glob(f"*/{EXPORT_REPORT}"),
    ]
    weights = weights_hash(folder) if paths else None
    for path in sorted(paths):
        report = read_json(path, "export the student again")
        name = report.get("file")
        if report.get("source_weights") != weights or name not in EXPORTED_FILES:
            continue
        if name in found:
            raise ValueError(
                f"{found[name].folder} and {path.parent} both have a {name} of this student; "
                "delete or move one of them."
            )
        found[name] = Export(path.parent, report)
    return found


def exports_table(exports: Mapping[str, Export]) -> str:
    """Return the rows of a model card: quality, size and speed next to the original's."""
    rows = []
    for name, (_, report) in exports.items():
        metric, quality, sizes = report["metric"], report["quality"], report["sizes"]
        scores = [f"{quality[role][metric]:.2f}" if metric else "" for role in _ROLES]
        sizes_mb = [f"{sizes[role] / 1e6:.1f}" for role in _ROLES]
        weights = ", ".join(filter(None, (report["weights"], report["settings"])))
        rows.append(
            [f"`{name}`", weights, metric or "", *scores, *sizes_mb, f"{report['speed_up']:.2f}"]
        )
    header = [
        "file", "weights", "measure", "student", "exported", "student, MB", "exported, MB",
        "times as fast as the student",
    ]  # fmt: skip
    machines = {
        f"{one.report['machine']['processor']}, {one.report['machine']['threads']} threads"
        for one in exports.values()
    }
    return (
        f"Exported, timed on {' and '.join(sorted(machines))}:\n\n"
        + markdown_table(header, rows, right=range(3, len(header)))
        + "\n"
    )
