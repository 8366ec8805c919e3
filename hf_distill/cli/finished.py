"""Compare a finished run with the command that would resume it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_distill.cli.run_folder import METRICS, read_state
from hf_distill.cli.train_request import Request
from hf_distill.files import as_json, differences, display_name, read_json
from hf_distill.hub.facts import FACTS_FILE, read_facts, training_facts


def check_finished(stages: Sequence[Request]) -> None:
    """Refuse options other than those of a finished run, as far as these are known.

    Args:
        stages: the request of each stage; the last one is that of the run.

    Raises:
        ValueError: lists the differences.
    """
    folder = stages[-1].output_dir
    report = read_json(folder / METRICS, "delete it to resume the run")
    first = report.get("intermediate_stage")
    reports = [report] if first is None else [first, report]
    changed = differences({"stages": len(reports)}, {"stages": len(stages)})
    if not changed:
        facts = reports
        if (folder / FACTS_FILE).is_file():
            facts = read_facts(folder)["stages"][-len(reports) :]
        for request, before, fact in zip(stages, reports, facts, strict=True):
            changed += _changes(request, before, fact.get("training", {}))
    if changed:
        listed = "\n".join(f"  - {line}" for line in dict.fromkeys(changed))
        raise ValueError(
            f"--output_dir {folder} holds a finished run with other settings:\n{listed}\n"
            "Change these back, name another folder, or replace the run "
            "(--overwrite_output_dir instead of --resume)."
        )


def _changes(request: Request, report: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """Name what a stage would do otherwise than the one that is reported."""
    state = read_state(request.output_dir)
    steps = {name: state[name] for name in ("max_steps", "num_train_epochs") if name in state}
    before = {**report, **report.get("distillation", {}), **training, **steps}
    args = request.args
    wanted = {"max_steps": args.max_steps}
    if args.max_steps < 0:
        wanted = {"num_train_epochs": math.ceil(args.num_train_epochs)}
    now = {
        **{name: getattr(args, name) for name in report.get("distillation", {})},
        **training_facts(args),
        **wanted,
        "student_model": display_name(request.run.student_model),
        "train_data": request.data.training.name,
    }
    validation = request.data.validation
    if "validation_data" in report:
        now["validation_data"] = None if validation is None else validation.name
    if request.run.task is not None:
        now["task"] = request.run.task
    stored = request.run.teacher_outputs
    if stored is None or request.run.baseline or Path(stored).exists():
        now["teacher_model"] = request.teacher_name
    now = {name: value for name, value in as_json(now).items() if name in before}
    return differences({name: before[name] for name in now}, now)
