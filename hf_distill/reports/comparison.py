"""Teacher, student alone, student distilled and any other models, side by side."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_distill._version import __version__
from hf_distill.markdown import markdown_table, without_html
from hf_distill.tasks.bootstrap import REPLICATES, Interval, Replicates, contains_zero, interval
from hf_distill.tasks.calibration import Calibration

ROLES = {
    "teacher": "teacher",
    "student_alone": "student alone",
    "student_distilled": "student distilled",
}

FURTHER = "model"
"""Role of a model that is none of these, followed by its number: ``model_1``."""

ABSENT = "–"

_DIFFERENCES = (
    ("student_distilled", "student_alone"),
    ("student_distilled", "teacher"),
    ("student_alone", "teacher"),
)


@dataclass(frozen=True)
class Latency:
    """The time of one example, from text to answer, alone in its batch."""

    median: float
    """Milliseconds."""
    quartiles: tuple[float, float]
    """The 25th and the 75th percentile."""
    runs: int
    """Timed runs, warm-up not counted."""


@dataclass(frozen=True)
class ModelReport:
    """The measurements of one model; ``None`` is what was not measured."""

    role: str
    """A key of ``ROLES``, or ``model_1``, ``model_2``, …"""
    name: str
    """The Hub id, or the last part of the path."""
    quality: Mapping[str, float]
    """The task's metrics by name; with several seeds their means."""
    parameters: int | None = None
    """``None`` if it has no weights: a column of predictions."""
    size_on_disk: int | None = None
    """Bytes of the ``.safetensors`` files."""
    stored_as: str | None = None
    """Number format of the weights in them."""
    latency: Latency | None = None
    throughput: float | None = None
    """Examples per second, in batches."""
    memory: int | None = None
    """Bytes of the weights as they were computed with."""
    agreement: Mapping[str, float] | None = None
    """Agreement of the predictions with the teacher's, by measure, 0 to 1."""
    divergence: float | None = None
    """Mean ``KL(teacher ‖ model)`` of the predicted distributions, in nats."""
    calibration: Calibration | None = None
    """Confidence against correctness; of several seeds all predictions together."""
    outcomes: Mapping[str, int] | None = None
    """Counts of rows by who is right, keyed by ``disagreements.OUTCOMES``; of the first seed."""
    seeds: int = 1
    """The number of models, trained with different seeds, that ``quality`` is the mean of."""
    replicates: Mapping[str, Replicates] = field(default_factory=dict, repr=False, compare=False)
    """``quality`` in resamples of the data, from ``bootstrap``."""

    def __post_init__(self) -> None:
        """Check the role."""
        if self.role not in ROLES and not re.fullmatch(rf"{FURTHER}_\d+", self.role):
            known = ", ".join((*ROLES, f"{FURTHER}_1"))
            raise ValueError(f"role must be one of {known} …, but it is {self.role!r}.")

    @property
    def label(self) -> str:
        """Return what tables and pictures call the model: its role, or its name if it has none."""
        return ROLES.get(self.role, self.name)

    def size(self) -> str:
        """Return the size on disk, with the number format unless that is float32."""
        kind = "" if self.stored_as in (None, "float32") else f" ({self.stored_as})"
        return _cell(self.size_on_disk and self.size_on_disk / 1e6, f"{{:.1f}} MB{kind}")

    def intervals(self) -> dict[str, Interval]:
        """Return the 95 % intervals of the metrics that have one."""
        bounds = {metric: interval(values) for metric, values in self.replicates.items()}
        return {metric: pair for metric, pair in bounds.items() if pair is not None}


@dataclass(frozen=True)
class Difference:
    """The difference in a metric between two models."""

    metric: str
    role: str
    other: str
    """The role of the model that it is compared with."""
    value: float
    """``role``'s metric minus that of ``other``."""
    interval: Interval
    """95 %, by the paired bootstrap."""
    is_noise: bool
    """The interval contains 0: this data cannot tell the two apart."""


@dataclass(frozen=True)
class Comparison:
    """Two or more models on the same data and machine, the teacher first.

    Raises:
        ValueError: fewer than two models, or two of one role.
    """

    task: str
    data: str
    examples: int
    models: Sequence[ModelReport]
    quality_labels: Mapping[str, str]
    """The metrics of the table and what they are called in it; the first is the primary one."""
    agreement_labels: Mapping[str, str] = field(default_factory=dict)
    lower_is_better: Collection[str] = ()
    """Metrics that are errors, such as a perplexity."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the measurements, such as the batch size."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    baseline: tuple[str, Mapping[str, float]] | None = None
    """A predictor that is the same for every row, and its metrics."""

    def __post_init__(self) -> None:
        """Check the number of models and their roles."""
        roles = [model.role for model in self.models]
        if len(roles) < 2:
            raise ValueError(f"A comparison needs at least two models, but models has {roles}.")
        if len(set(roles)) < len(roles):
            raise ValueError(f"Each role can be there once, but models has {roles}.")

    @property
    def primary_metric(self) -> str:
        """Return the metric that the plot shows."""
        return next(iter(self.quality_labels))

    def model(self, role: str) -> ModelReport | None:
        """Return the model of a role, if there is one."""
        return next((model for model in self.models if model.role == role), None)

    def gap_closed(self) -> dict[str, float]:
        """Return the share of the gap between student alone and teacher that was closed, by metric.

        ``(distilled - alone) / (teacher - alone)``: 0 is no better than alone, 1 is as good as the
        teacher; both bounds can be passed. A metric is left out where the share means nothing: a
        model is not there, or the teacher is not better than the student alone.
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

    def differences(self, *metrics: str) -> list[Difference]:
        """Compare each student with the teacher, and the distilled one with the one alone.

        Other models are compared with the teacher, or with the first model where there is none.
        """
        first = self.models[0].role
        further = [(one.role, first) for one in self.models[1:] if one.role not in ROLES]
        found = []
        for metric in metrics or self.quality_labels:
            for role, other in (*_DIFFERENCES, *further):
                one, two = self.model(role), self.model(other)
                resampled = _paired(one, two, metric)
                bounds = None if resampled is None else interval(resampled)
                if one is None or two is None or bounds is None:
                    continue
                value = one.quality[metric] - two.quality[metric]
                is_noise = contains_zero(bounds)
                found.append(Difference(metric, role, other, value, bounds, is_noise))
        return found

    def gap_closed_intervals(self) -> dict[str, Interval]:
        """Return the 95 % intervals of ``gap_closed``, where gap and gain are more than noise."""
        teacher, alone, distilled = (self.model(role) for role in ROLES)
        found: dict[str, Interval] = {}
        for metric in self.quality_labels:
            gap, gain = _paired(teacher, alone, metric), _paired(distilled, alone, metric)
            if gap is not None and gain is not None and self.doubt(metric) is None:
                with np.errstate(divide="ignore", invalid="ignore"):
                    bounds = interval(gain / gap)
                found |= {} if bounds is None else {metric: bounds}
        return found

    def rows(self, *, fidelity: bool = True) -> list[tuple[str, list[str]]]:
        """Return the table: a label and a cell per model. Rows that nobody has are left out.

        With ``fidelity``, ``fidelity_rows`` are in it.
        """
        rows = [("model", [model.name for model in self.models])]
        if any(model.seeds > 1 for model in self.models):
            rows.append(("seeds", [str(model.seeds) for model in self.models]))
        intervals = [model.intervals() for model in self.models]
        for metric, label in self.quality_labels.items():
            rows.append((label, [f"{model.quality[metric]:.2f}" for model in self.models]))
            rows.append(("  95% interval", [_range(one.get(metric), ".2f") for one in intervals]))
        if fidelity:
            rows += self.fidelity_rows()
        counts = [_cell(one.parameters and one.parameters / 1e6, "{:.2f} M") for one in self.models]
        rows.append(("parameters", counts))
        rows.append(self._sizes())
        loaded = [_cell(one.memory and one.memory / 1e6, "{:.1f} MB") for one in self.models]
        rows.append(("weights in memory", loaded))
        times = [model.latency for model in self.models]
        rows.append(("latency", [_cell(t and t.median, "{:.1f} ms") for t in times]))
        rows.append(("  quartiles", [_range(t and t.quartiles, ".1f") for t in times]))
        speeds = [model.throughput for model in self.models]
        rows.append(("throughput", [_cell(speed, "{:.1f}/s") for speed in speeds]))
        return [row for row in rows if set(row[1]) != {ABSENT}]

    def fidelity_rows(self) -> list[tuple[str, list[str]]]:
        """Return how much each model is like the teacher, and how well it knows what it knows."""
        rows = []
        for measure, label in self.agreement_labels.items():
            shares = [(model.agreement or {}).get(measure) for model in self.models]
            rows.append((label, [_cell(share, "{:.1%}") for share in shares]))
        divergences = [_cell(model.divergence, "{:.4f}") for model in self.models]
        rows.append(("KL from the teacher (nats)", divergences))
        errors = [one.calibration and one.calibration.error() for one in self.models]
        rows.append(("calibration error", [_cell(value, "{:.1%}") for value in errors]))
        return [row for row in rows if set(row[1]) != {ABSENT}]

    def _sizes(self) -> tuple[str, list[str]]:
        """Return the row of sizes, with the number format of each where they differ."""
        formats = {model.stored_as for model in self.models if model.size_on_disk is not None}
        if len(formats) == 1 and None not in formats:
            stored = [model.size_on_disk for model in self.models]
            cells = [_cell(size and size / 1e6, "{:.1f} MB") for size in stored]
            return f"size ({formats.pop()})", cells
        return "size on disk", [model.size() for model in self.models]

    def headline(self) -> str:
        """Return the gap closed in one sentence, or why there is none; empty without any role."""
        missing = [label for role, label in ROLES.items() if self.model(role) is None]
        if len(missing) == len(ROLES):
            return ""
        if missing:
            return f"Share of the gap closed: not known without the {' and the '.join(missing)}."
        shares, intervals = self.gap_closed(), self.gap_closed_intervals()
        closed, remarks = [], []
        for metric, label in self.quality_labels.items():
            doubt = self.doubt(metric)
            if doubt is not None:
                remarks.append(f"{label}: {doubt}")
                continue
            remark = " (worse than the student alone)" if shares[metric] < 0 else ""
            if metric in intervals:
                low, high = intervals[metric]
                remark += f" (95% interval {low:.0%} to {high:.0%})"
            closed.append(f"{shares[metric]:.0%} of the gap in {label}{remark}")
        sentence = f"Distillation closed {'; '.join([*closed, *remarks])}."
        return sentence if closed else f"{'; '.join(remarks)}."

    def doubt(self, metric: str) -> str | None:
        """Return why a share of the gap closed would mean nothing; ``None`` if it does not."""
        if metric not in self.gap_closed():
            return "no gap, the teacher is not better than the student alone"
        noise = {(one.role, one.other): one.is_noise for one in self.differences(metric)}
        if noise.get(("student_alone", "teacher")):
            return "teacher and student alone differ by no more than noise on this data"
        if noise.get(("student_distilled", "student_alone")):
            return "the students differ by no more than noise on this data"
        return None

    @property
    def subject(self) -> ModelReport | None:
        """Return the model that the comparison is about: the best student there is."""
        students = map(self.model, ("student_distilled", "student_alone"))
        others = (model for model in self.models if model.role != "teacher")
        return next((one for one in (*students, *others) if one is not None), None)

    def speed_up(self) -> str | None:
        """Return how much faster and smaller the subject is than the teacher, in a sentence."""
        teacher, student = self.model("teacher"), self.subject
        if teacher is None or student is None:
            return None
        if student.size_on_disk and teacher.size_on_disk:
            size = f"{student.size_on_disk / teacher.size_on_disk:.2f} × the size on disk"
        elif student.parameters and teacher.parameters:
            size = f"{student.parameters / teacher.parameters:.2f} × the parameters"
        else:
            return None
        if student.latency is None or teacher.latency is None:
            return f"The {student.label} has {size} of the teacher."
        ratio = teacher.latency.median / student.latency.median
        return f"The {student.label} is {ratio:.1f} times as fast as the teacher, at {size}."

    def footnotes(self) -> list[str]:
        """Return what the figures were measured with, one line each."""
        notes, labels = [], {model.role: model.label for model in self.models}
        for one in self.differences(self.primary_metric):
            low, high = one.interval
            noise = ": within noise" if one.is_noise else ""
            models = f"{labels[one.role]} − {labels[one.other]}"
            notes.append(
                f"{self.quality_labels[one.metric]}, {models}: "
                f"{one.value:+.2f} ({low:+.2f} to {high:+.2f}){noise}"
            )
        if notes:
            notes.append(
                f"intervals: 95%, paired bootstrap, {REPLICATES} resamples of the examples"
                + (" and seeds" if any(model.seeds > 1 for model in self.models) else "")
            )
        if self.baseline is not None:
            what, scores = self.baseline
            shown = (f"{label} {scores[m]:.2f}" for m, label in self.quality_labels.items())
            notes.append(f"{what}: {', '.join(shown)}")
        notes.append(f"{self.data}, {self.examples} examples")
        for part in (self.settings, self.machine):
            if part:
                notes.append("; ".join(f"{key}: {value}" for key, value in part.items()))
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; what was not measured is left out."""
        models = {}
        for model in self.models:
            report = dataclasses.asdict(model)
            for left_out in ("role", "replicates"):
                del report[left_out]
            if model.calibration is not None:
                report["calibration"]["error"] = model.calibration.error()
            report["intervals"] = model.intervals() or None
            models[model.role] = {key: value for key, value in report.items() if value is not None}
        return {
            "hf_distill_version": __version__,
            "task": self.task,
            "data": {"name": self.data, "examples": self.examples},
            "models": models,
            "gap_closed": self.gap_closed(),
            "gap_closed_intervals": self.gap_closed_intervals(),
            "differences": [dataclasses.asdict(one) for one in self.differences()],
            "baseline": None if self.baseline is None else list(self.baseline),
            "settings": dict(self.settings),
            "machine": dict(self.machine),
        }

    def to_markdown(self) -> str:
        """Return the table, the headline and the footnotes as Markdown."""
        header = ["", *(model.label for model in self.models)]
        rows = [list(map(without_html, (label, *cells))) for label, cells in self.rows()]
        table = markdown_table(header, rows, right=range(1, len(header)))
        sentences = [sentence for sentence in (self.headline(), self.speed_up()) if sentence]
        notes = [f"- {without_html(note)}" for note in self.footnotes()]
        text = without_html(" ".join(sentences))
        return "\n".join([table, "", f"**{text}**", "", *notes]) + "\n"


def _cell(value: Any, form: str) -> str:
    return ABSENT if value is None else form.format(value)


def _range(bounds: Any, form: str) -> str:
    if bounds is None:
        return ABSENT
    dash = "–" if bounds[0] >= 0 else " to "
    return f"{bounds[0]:{form}}{dash}{bounds[1]:{form}}"


def _paired(one: ModelReport | None, two: ModelReport | None, metric: str) -> Replicates | None:
    """Return the difference of a metric in each resample, where both models have it."""
    if one is None or two is None or not {*one.replicates} & {*two.replicates} & {metric}:
        return None
    return one.replicates[metric] - two.replicates[metric]
