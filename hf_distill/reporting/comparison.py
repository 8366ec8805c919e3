"""Teacher, student alone, student distilled, side by side: what distillation was worth."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_distill._version import __version__
from hf_distill.reporting.files import write_json, write_text
from hf_distill.reporting.markdown import markdown_table

ROLES = {
    "teacher": "teacher",
    "student_alone": "student alone",
    "student_distilled": "student distilled",
}

ABSENT = "–"


@dataclass(frozen=True)
class Latency:
    """How long one example takes, from text in to answer out, alone in its batch.

    Attributes:
        median: milliseconds.
        quartiles: milliseconds, 25th and 75th percentile.
        runs: how many timed runs that is, warm-up not counted.
    """

    median: float
    quartiles: tuple[float, float]
    runs: int


@dataclass(frozen=True)
class ModelReport:
    """What was measured of one model. What was not measured is ``None``.

    Attributes:
        role: a key of ``ROLES``.
        name: Hub id, or last part of the model's path.
        quality: the task's metrics, by name.
        parameters: number of weights.
        size_on_disk: bytes of the ``.safetensors`` files.
        stored_as: number format of the weights in those files.
        latency: one example at a time.
        throughput: examples per second, in batches.
        agreement: how much the predictions are like the teacher's, by measure, 0 to 1.
    """

    role: str
    name: str
    quality: Mapping[str, float]
    parameters: int
    size_on_disk: int | None = None
    stored_as: str | None = None
    latency: Latency | None = None
    throughput: float | None = None
    agreement: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the role."""
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, but it is {self.role!r}.")


@dataclass(frozen=True)
class Comparison:
    """Two or three models on the same data and machine.

    Attributes:
        task: the task's name.
        data: name of the data they were measured on.
        examples: how many examples of it.
        models: the reports, teacher first; each role at most once.
        primary_metric: the metric of ``quality`` that the plot shows.
        quality_labels: how the metrics of ``quality`` that the table shows are called in it, by
            name; the first is the primary one.
        agreement_labels: the same for ``agreement``.
        lower_is_better: metrics of ``quality`` that are errors, such as a perplexity.
        settings: what the measurements depend on, such as the batch size.
        machine: processor, threads, versions; no host name.

    Raises:
        ValueError: with fewer than two models, or two of one role.
    """

    task: str
    data: str
    examples: int
    models: Sequence[ModelReport]
    quality_labels: Mapping[str, str]
    agreement_labels: Mapping[str, str] = field(default_factory=dict)
    lower_is_better: Collection[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the number of models and their roles."""
        roles = [model.role for model in self.models]
        if len(roles) < 2:
            raise ValueError(f"A comparison needs at least two models, but models has {roles}.")
        if len(set(roles)) < len(roles):
            raise ValueError(f"Each role can be there once, but models has {roles}.")

    @property
    def primary_metric(self) -> str:
        """The metric that the plot shows."""
        return next(iter(self.quality_labels))

    def model(self, role: str) -> ModelReport | None:
        """The model of a role, if there is one."""
        return next((model for model in self.models if model.role == role), None)

    def gap_closed(self) -> dict[str, float]:
        """The share of the gap between student alone and teacher that distillation closed.

        ``(distilled - alone) / (teacher - alone)`` for each metric of the table: 0 is no better
        than alone, 1 is as good as the teacher; both bounds can be passed.

        Returns:
            The share by metric. A metric is left out where the share means nothing: a model is
            not there, or the teacher is not better than the student alone.
        """
        teacher, alone, distilled = (self.model(role) for role in ROLES)
        if teacher is None or alone is None or distilled is None:
            return {}
        shares = {}
        for metric in self.quality_labels:
            gap = teacher.quality[metric] - alone.quality[metric]
            if gap < 0 if metric in self.lower_is_better else gap > 0:
                shares[metric] = (distilled.quality[metric] - alone.quality[metric]) / gap
        return shares

    def rows(self) -> list[tuple[str, list[str]]]:
        """The table: a label and a cell for each model. Rows that nobody has are left out."""
        rows = [("model", [model.name for model in self.models])]
        for metric, label in self.quality_labels.items():
            rows.append((label, [f"{model.quality[metric]:.2f}" for model in self.models]))
        for measure, label in self.agreement_labels.items():
            shares = [(model.agreement or {}).get(measure) for model in self.models]
            rows.append((label, [_cell(share, "{:.1%}") for share in shares]))
        rows.append(("parameters", [f"{model.parameters / 1e6:.2f} M" for model in self.models]))
        rows.append(("size on disk", [_size(model) for model in self.models]))
        rows.append(("latency (quartiles)", [_latency(model) for model in self.models]))
        speeds = [model.throughput for model in self.models]
        rows.append(("throughput", [_cell(speed, "{:.1f}/s") for speed in speeds]))
        return [row for row in rows if set(row[1]) != {ABSENT}]

    def headline(self) -> str:
        """The gap closed in one sentence, or why there is none to tell."""
        if len(self.models) < len(ROLES):
            missing = [label for role, label in ROLES.items() if self.model(role) is None]
            return f"Share of the gap closed: not known without the {' and the '.join(missing)}."
        shares = self.gap_closed()
        parts = []
        for metric, label in self.quality_labels.items():
            if metric in shares:
                remark = " (worse than the student alone)" if shares[metric] < 0 else ""
                parts.append(f"{shares[metric]:.0%} of the gap in {label}{remark}")
            else:
                parts.append(f"{label}: no gap, the teacher is not better than the student alone")
        return f"Distillation closed {'; '.join(parts)}." if shares else f"{'; '.join(parts)}."

    def footnotes(self) -> list[str]:
        """What the figures were measured with, one line each."""
        notes = [f"{self.data}, {self.examples} examples"]
        for part in (self.settings, self.machine):
            if part:
                notes.append("; ".join(f"{key}: {value}" for key, value in part.items()))
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; what was not measured is left out."""
        models = {}
        for model in self.models:
            report = dataclasses.asdict(model)
            del report["role"]
            models[model.role] = {key: value for key, value in report.items() if value is not None}
        return {
            "hf_distill_version": __version__,
            "task": self.task,
            "data": {"name": self.data, "examples": self.examples},
            "models": models,
            "gap_closed": self.gap_closed(),
            "settings": dict(self.settings),
            "machine": dict(self.machine),
        }

    def to_markdown(self) -> str:
        """The table, the headline and the footnotes as Markdown."""
        header = ["", *(ROLES[model.role] for model in self.models)]
        rows = [[label, *cells] for label, cells in self.rows()]
        table = markdown_table(header, rows, right=range(1, len(header)))
        notes = [f"- {note}" for note in self.footnotes()]
        return "\n".join([table, "", f"**{self.headline()}**", "", *notes]) + "\n"


def write_comparison(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``comparison.json``, ``comparison.md`` and ``comparison.png``.

    Args:
        comparison: what to write.
        folder: where to; made if need be.

    Returns:
        The three paths.

    Raises:
        OSError: if a file cannot be written.
    """
    from hf_distill.reporting.plots import plot_comparison

    folder = Path(folder)
    return [
        write_json(folder / "comparison.json", comparison.to_dict()),
        write_text(folder / "comparison.md", comparison.to_markdown()),
        plot_comparison(comparison, folder / "comparison.png"),
    ]


def _cell(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)


def _size(model: ModelReport) -> str:
    if model.size_on_disk is None:
        return ABSENT
    number_format = f" ({model.stored_as})" if model.stored_as else ""
    return f"{model.size_on_disk / 1e6:.1f} MB{number_format}"


def _latency(model: ModelReport) -> str:
    if model.latency is None:
        return ABSENT
    low, high = model.latency.quartiles
    return f"{model.latency.median:.1f} ms ({low:.1f}–{high:.1f})"
