"""The report of ``hf-distill shrink``: that of its comparison, and how the student came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hf_distill.cli.progress import duration
from hf_distill.cli.run_folder import INTERMEDIATE, read_log
from hf_distill.cli.shrink_plan import SHAPE_COLUMNS, ShrinkRequest, shape_rows
from hf_distill.files import display_name
from hf_distill.reports.report import Decision, Grid, Report, Stage, write_report
from hf_distill.shrinking.commands import ALONE, STUDENT
from hf_distill.shrinking.plan import Plan


def write_shrink_report(
    request: ShrinkRequest,
    plan: Plan,
    compared: Report | None,
    commands: Sequence[str],
    seconds: Mapping[str, float],
    failures: Mapping[str, str],
) -> None:
    """Write ``report.html`` and ``report.md``.

    Args:
        request: what was asked for.
        plan: the plan.
        compared: the report of the comparison; ``None`` without validation data.
        commands: that do the same, one by one.
        seconds: what each step took.
        failures: the steps that failed, and why.
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
            {"steps, at most": str(steps), "learning rate": f"{plan['learning_rate']:g}"},
            log,
        )
        for name, (place, steps) in trainings.items()
        if (log := read_log(place))
    ]
    grids = [Grid("Shapes of a student", SHAPE_COLUMNS, shape_rows(plan))]
    if failures:
        rows = [(step, reason) for step, reason in failures.items()]
        grids.append(Grid("What failed; the student stays as it is", ("step", "why"), rows))
    cost = {step: duration(taken) for step, taken in seconds.items()}
    cost["all steps"] = duration(sum(seconds.values()))
    cost["predicted"] = duration(sum(plan.seconds.values()))
    report = replace(
        compared or Report(""),
        title=f"{display_name(request.teacher)}, made smaller: {plan.shape}",
        decisions=[Decision(one.name, str(one.value), one.reason)
                   for one in plan.decisions.values()],
        stages=stages,
        grids=grids,
        cost=cost,
        commands=commands,
    )  # fmt: skip
    write_report(report, folder)
