"""A plan of ``hf-distill shrink`` from its beginning, or from where it was, to its end."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_distill.cli.continuing import continued_by
from hf_distill.cli.main import command_module
from hf_distill.cli.progress import duration
from hf_distill.cli.run_folder import COMPARED, PLAN_FILE
from hf_distill.cli.shrink import build_parser
from hf_distill.cli.shrink_plan import read_or_make_plan, write_plan
from hf_distill.cli.shrink_report import kept_in, print_plan, write_shrink_report
from hf_distill.cli.shrink_request import ShrinkRequest
from hf_distill.console import log_rank_0
from hf_distill.files import in_use, read_json, without_paths
from hf_distill.shrinking.commands import (
    ALONE,
    AUGMENTED,
    COMPARISON,
    CREATED,
    INT8,
    ONNX,
    OUTPUTS,
    SEARCH,
    STUDENT,
    Command,
    PlanCommands,
)
from hf_distill.shrinking.plan import Plan
from hf_distill.shrinking.steps import Steps

_STEPS = "steps.json"
_LOCK = ".shrink.lock"
_REPORTS = ("report.html", "report.md")
_FOLDERS = (CREATED, AUGMENTED, OUTPUTS, SEARCH, STUDENT, ALONE, ONNX, INT8, COMPARISON)


@dataclass(frozen=True)
class ShrinkResult:
    """A plan and what came of it.

    Attributes:
        plan: the decisions.
        student: the student's folder.
        seconds: what each step took, in its last attempt.
        failures: the steps that failed although the rest did not, and why.
        comparison: the content of ``comparison.json``; empty without validation data.
    """

    plan: Plan
    student: Path
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)

    @property
    def speedup(self) -> float | None:
        """Return the measured speed-up; ``None`` where nothing was timed."""
        return _speedup(self.comparison)


def _speedup(comparison: dict[str, Any]) -> float | None:
    models = comparison.get("models", {})
    times = [models.get(role, {}).get("latency") for role in ("teacher", "student_distilled")]
    if not all(times):
        return None
    teacher, student = (float(one["median"]) for one in times if one is not None)
    return teacher / student


def shrink(
    teacher_model: str | os.PathLike[str],
    train_file: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    validation_file: str | os.PathLike[str] | None = None,
    speedup: float | None = None,
    **options: Any,
) -> ShrinkResult:
    """Make a smaller, faster model from a fine-tuned one; like ``hf-distill shrink``.

    The shape of the student is chosen by latencies that are measured here: of the shapes that reach
    the target, that whose untrained student has the smallest KL divergence from the teacher. The
    student is created (``create_student``), learns the teacher's logits, is exported and compared
    with the teacher. The same call continues after an interruption.

    Args:
        teacher_model: a folder or a Hub id.
        train_file: with labels or without; without them ``distillation_loss_weight`` is 1.
        output_dir: where everything goes; the student to its folder ``student``.
        validation_file: labelled data that the student is scored on.
        speedup: how many times as fast as the teacher the student is to be; 2 by default, if
            nothing else is asked for.
        **options: every other option of the command, by its name.

    Returns:
        The plan, where the student is, and what was measured.

    Raises:
        ValueError: no shape reaches the target (names the fastest), the options or the data do not
            fit, or the folder was begun with other settings.
        OSError: a file cannot be read or written; the same call continues.

    Example::

        >>> result = shrink(
        ...     "teacher", "train.json", "small", validation_file="dev.json", speedup=2
        ... )  # doctest: +SKIP
        >>> result.speedup  # doctest: +SKIP
    """
    paths = {
        "teacher_model": teacher_model,
        "train_file": train_file,
        "output_dir": output_dir,
        "validation_file": validation_file,
    }
    given = {name: None if path is None else os.fspath(path) for name, path in paths.items()}
    parser = build_parser(raises=True)
    words = parser.words_of({**given, "speedup": speedup, **options}, "options")
    request = ShrinkRequest(*parser.parse(list(words)))
    with continued_by("make the same call", overwrites=request.arguments.overwrite_output_dir):
        return run_shrink(request)


def run_shrink(request: ShrinkRequest) -> ShrinkResult:
    """Make the plan, or read it, show it and follow it from where it was."""
    request.check()
    if request.arguments.push_to_hub and not request.arguments.dry_run:
        _make_repository(request)
    busy = f"--output_dir {request.folder} is in use by another hf-distill shrink."
    with in_use(request.folder / _LOCK, busy):
        fresh = request.arguments.overwrite_output_dir and (request.folder / PLAN_FILE).exists()
        # Without a plan, what is in the folder is somebody else's.
        plan = read_or_make_plan(request, _clear if fresh else None)
        print_plan(plan, request)
        result = ShrinkResult(plan, request.folder / STUDENT)
        if not request.arguments.dry_run:
            result = _follow(request, plan)
    return result


def _follow(request: ShrinkRequest, plan: Plan) -> ShrinkResult:
    arguments, folder = request.arguments, request.folder
    steps = Steps(folder, _STEPS, again="--overwrite_output_dir")
    earlier = read_json(folder / PLAN_FILE, "begin again with --overwrite_output_dir")
    seconds: dict[str, float] = dict(earlier.get("seconds", {}))
    failures: dict[str, str] = {}
    failed_before: dict[str, str] = earlier.get("failures", {})
    listed = _commands(request, plan)
    for number in range(1, len(listed) + 1):
        command = listed[number - 1]
        if steps.is_finished(command.folder, command.result) and _is_reported(command, folder):
            continue
        left = sum(plan.seconds.get(one.folder, 0) for one in listed[number - 1 :])
        log_rank_0(
            f"Step {number} of {len(listed)}, {command.folder}; {duration(left)} left in all."
        )
        steps.start(command.folder, command.result, resumes=command.resumes)
        began = time.monotonic()
        try:
            if command.needs in failures:
                raise RuntimeError(f"it was not tried, because {command.needs} failed")
            made = _run(_without(failures, command))
        except OSError:
            raise
        except Exception as error:
            if not command.may_fail:
                raise
            failures[command.folder] = without_paths(str(error))
            log_rank_0(f"{command.folder} failed, and the student stays as it is: {error}")
        seconds[command.folder] = time.monotonic() - began
        if command.folder == SEARCH:
            sweep = read_json(folder / SEARCH / command.result, "delete that folder")
            plan = plan.with_found(sweep)
            listed = _commands(request, plan)
            write_plan(request, plan, seconds=seconds)
        typed = _typed(listed, folder, failures)
        if command.folder == COMPARISON:
            found = _speedup(_read_comparison(folder))
            write_shrink_report(request, plan, made, typed, seconds, failures, found)
        elif command.may_fail and failures.get(command.folder) != failed_before.get(
            command.folder, ""
        ):
            steps.start(COMPARISON, COMPARED)  # an earlier one is of what there was then
        if command.folder not in failures:
            steps.finish(command.folder)
        write_plan(request, plan, commands=typed, seconds=seconds, failures=failures)
    comparison = {}
    if request.validation_options is None:
        typed = _typed(listed, folder, failures)
        write_shrink_report(request, plan, None, typed, seconds, failures)
    else:
        comparison = _read_comparison(folder)
    result = ShrinkResult(plan, folder / STUDENT, seconds, failures, comparison)
    _show(result, request.target.speedup)
    if arguments.push_to_hub:
        _push(request)
    return result


def _commands(request: ShrinkRequest, plan: Plan) -> list[Command]:
    arguments = request.arguments
    return PlanCommands(
        plan,
        request.folder,
        teacher=request.teacher,
        train=request.train_options,
        validation=request.validation_options,
        task=request.task_options,
        seed=request.training.seed,
        use_cpu=not request.on_accelerator,
        teacher_check_samples=request.training.teacher_check_samples,
        baseline=arguments.baseline,
        exports=arguments.export,
        tolerance=arguments.tolerance,
        augment=arguments.augment,
        augment_model=arguments.augment_model,
    ).in_order()


def _read_comparison(folder: Path) -> dict[str, Any]:
    return read_json(folder / COMPARISON / COMPARED, "delete that folder")


def _run(command: Command) -> Any:
    """Run a command in this process, as a user would, and return what it returns."""
    module = command_module(command.name)
    words = module.build_parser().words_of(command.options, "the plan")
    made = module.run([*command.positional, *words])
    gc.collect()  # models of one step are not needed by the next
    return made


def _is_reported(command: Command, folder: Path) -> bool:
    """Return whether the files that a comparison's report consists of exist."""
    return command.folder != COMPARISON or all((folder / one).is_file() for one in _REPORTS)


def _typed(commands: Sequence[Command], folder: Path, failures: Mapping[str, str]) -> list[str]:
    """Return the commands as a user would type them."""
    return [_without(failures, command).shown(folder) for command in commands]


def _without(failures: Mapping[str, str], command: Command) -> Command:
    """Leave the exports that failed out of a comparison."""
    if command.name != "compare":
        return command
    exported = [one for one in command.options["models"] or () if Path(one).name not in failures]
    return replace(command, options={**command.options, "models": exported or None})


def _show(result: ShrinkResult, asked: float | None) -> None:
    plan, speedup = result.plan, result.speedup
    took = sum(result.seconds.values())
    fast = ""
    if speedup is not None:
        missed = asked is not None and speedup < asked
        less = f", less than the {asked:g} times that were asked for" if missed else ""
        fast = (
            f" It is {speedup:.2f} times as fast as the teacher{less}; predicted were "
            f"{plan.speedup:.2f}."
        )
    kept = kept_in(result.student)
    sys.stdout.write(
        f"The student is in {result.student}{'' if kept is None else f': {kept}'}.{fast} "
        f"All steps took {duration(took)}; predicted were {duration(sum(plan.seconds.values()))}.\n"
    )
    for step, reason in result.failures.items():
        sys.stdout.write(f"Without {step}: {reason}\n")
    sys.stdout.write(
        f"All about it is on one page: {result.student.parent / 'report.html'}\nScore it on data "
        "that had no part in choosing it:\n"
        f"  hf-distill evaluate --model {result.student} --task {plan.task} --file FILE\n"
    )


def _make_repository(request: ShrinkRequest) -> None:
    """Ask before hours of training whether the student can be pushed at their end."""
    from hf_distill.hub.push import create_repository, hub_errors

    name = str(request.arguments.hub_model_id)
    remedy = "Fix that, or leave --push_to_hub out and use `hf-distill push` later."
    with hub_errors(f"--hub_model_id {name} cannot be used", remedy):
        create_repository(name, private=request.arguments.private or None)


def _push(request: ShrinkRequest) -> None:
    from hf_distill.cli import push

    words = [str(request.folder / STUDENT), "--hub_model_id", str(request.arguments.hub_model_id)]
    if request.arguments.private:
        words.append("--private")
    if request.validation_options is not None:
        words += ["--comparison", str(request.folder / COMPARISON)]
    push.run(words)


def _clear(folder: Path) -> None:
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (_STEPS, *_REPORTS, PLAN_FILE):
        (folder / name).unlink(missing_ok=True)
