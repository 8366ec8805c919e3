"""The plan of ``hf-distill shrink`` in the terminal, and the report of what came of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from hf_distill.cli.progress import duration
from hf_distill.cli.run_folder import INTERMEDIATE, METRICS, PLAN_FILE, read_log
from hf_distill.cli.run_report import CHOSE_THE_CHECKPOINT, kept_student
from hf_distill.cli.shrink_plan import DISTANCES
from hf_distill.cli.shrink_request import ShrinkRequest
from hf_distill.files import display_name, read_json
from hf_distill.reports.report import Grid, Report, Stage, write_report
from hf_distill.reports.terminal import print_rows
from hf_distill.shrinking.commands import ALONE, STUDENT
from hf_distill.shrinking.plan import Plan


def print_plan(plan: Plan, request: ShrinkRequest) -> None:
    """Show the latency table, the decisions with their reasons, and the time they will take."""
    print_rows("Shapes of a student", _columns(plan), _shape_rows(plan), numbers=True)
    decided = [
        (one.name, str(one.value).lower() if isinstance(one.value, bool) else str(one.value),
         one.reason)
        for one in plan.decisions.values()
    ]  # fmt: skip
    print_rows("Plan", ["", "value", "reason"], decided)
    parts = ", ".join(f"{step} {duration(time)}" for step, time in plan.seconds.items())
    sys.stdout.write(
        f"Predicted: {plan.speedup:.2f} times as fast as the teacher, in about "
        f"{duration(sum(plan.seconds.values()))} ({parts}).\n"
        f"The plan is in {request.folder / PLAN_FILE}."
    )
    follows = " The same command without --dry_run follows it."
    sys.stdout.write(f"{follows if request.arguments.dry_run else ''}\n")


def _columns(plan: Plan) -> tuple[str, ...]:
    """Return the header of the table of shapes."""
    distance = DISTANCES[plan.get("distillation_loss")]
    return ("shape", "ms", "times as fast", "M parameters", f"{distance} untrained", "")


def _shape_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Return the rows of the table of shapes, the teacher's first."""
    parameters = plan.teacher_parameters
    teacher: tuple[str, ...] = (
        str(plan.teacher),
        f"{median(one.teacher_milliseconds for one in plan.table):.1f}" if plan.table else "",
        "1.00",
        "" if parameters is None else f"{parameters / 1e6:.1f}",
        "",
        "the teacher",
    )
    return [teacher] + [
        (
            str(one.shape),
            f"{one.milliseconds:.1f}",
            f"{one.speedup:.2f}",
            f"{one.parameters / 1e6:.1f}",
            "" if one.divergence is None else f"{one.divergence:.3f}",
            "chosen" if one.shape == plan.shape else "not possible" if one.left_out else "",
        )
        for one in plan.table
    ]


def write_shrink_report(
    request: ShrinkRequest,
    plan: Plan,
    compared: Report | None,
    commands: Sequence[str],
    seconds: Mapping[str, float],
    failures: Mapping[str, str],
    speedup: float | None = None,
) -> None:
    """Write ``report.html`` and ``report.md``.

    Args:
        request: what was asked for.
        plan: the plan.
        compared: the report of the comparison; ``None`` without validation data.
        commands: that do the same, one by one.
        seconds: what each step took.
        failures: the steps that failed, and why.
        speedup: the measured one.
    """
    folder = request.folder
    trainings = {
        "hidden states": (folder / STUDENT / INTERMEDIATE, plan["hidden_states_steps"]),
        "prediction layer": (folder / STUDENT, plan["prediction_steps"]),
        "the same student on labels alone": (
            folder / ALONE,
            plan["hidden_states_steps"] + plan["prediction_steps"],
        ),
    }
    stages = [
        Stage(
            name,
            {
                "steps, at most": str(steps),
                "learning rate": f"{plan['learning_rate']:g}",
                **({} if (kept := kept_in(place)) is None else {"kept": kept}),
            },
            log,
        )
        for name, (place, steps) in trainings.items()
        if (log := read_log(place))
    ]
    notes = []
    if plan.busy is not None:
        notes = [f"They were timed on a busy machine ({plan.busy}); an idle one has other times."]
    grids = [Grid("Shapes of a student", _columns(plan), _shape_rows(plan), notes)]
    if failures:
        rows = [(step, reason) for step, reason in failures.items()]
        grids.append(Grid("What failed; the student stays as it is", ("step", "why"), rows))
    grids.append(_predicted_and_measured(plan, seconds, speedup, request.target.speedup))
    report = replace(
        compared or Report(""),
        title=f"{display_name(request.teacher)}, made smaller: {plan.shape}",
        remarks=[] if compared is None else [CHOSE_THE_CHECKPOINT],
        decisions=list(plan.decisions.values()),
        stages=stages,
        grids=grids,
        commands=commands,
    )
    write_report(report, folder)


def kept_in(run: Path) -> str | None:
    """Say which checkpoint of a finished run its student is; ``None`` if that is not known."""
    file = run / METRICS
    return kept_student(read_json(file, "delete that folder")) if file.exists() else None


def _predicted_and_measured(
    plan: Plan, seconds: Mapping[str, float], speedup: float | None, asked: float | None
) -> Grid:
    """Put what the plan promised beside what came of it."""
    rows = [
        (
            step,
            *(duration(times[step]) if step in times else "" for times in (plan.seconds, seconds)),
        )
        for step in {**plan.seconds, **seconds}
    ]
    totals = (duration(sum(times.values())) for times in (plan.seconds, seconds))
    measured = "" if speedup is None else f"{speedup:.2f}"
    target = "" if asked is None else f" ({asked:g} were asked for)"
    return Grid(
        "Predicted and measured",
        ("", "predicted", "measured"),
        [
            (f"times as fast as the teacher{target}", f"{plan.speedup:.2f}", measured),
            ("all steps", *totals),
            *rows,
        ],
        ["Time of a step that was interrupted is that since it was continued."],
    )
