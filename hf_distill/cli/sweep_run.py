"""A sweep from its beginning, or from where it was, to its end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from hf_distill.cli import cache
from hf_distill.cli.run_folder import SWEPT, check_sources, check_strangers
from hf_distill.cli.sweep_plan import TEACHER_OUTPUTS, SweepPlan
from hf_distill.cli.sweep_trials import (
    Judge,
    choose_metric,
    delete_student,
    read_baseline,
    read_result,
    run_trial,
    trial_folder,
)
from hf_distill.cli.train_arguments import TrainingFileArguments
from hf_distill.console import log_rank_0
from hf_distill.files import differences, is_temporary, read_json
from hf_distill.reports.pages import write_sweep
from hf_distill.reports.sweep_report import SweepReport, TrialReport, shown
from hf_distill.sweeping import begin_trial, interrupted_trial, open_study
from hf_distill.tasks.options import TaskArguments, names

_STUDY = "study.jsonl"
_MOST_FAILURES = 3
_DAMAGED = "choose another --output_dir, or begin again with --overwrite_output_dir"


def run_sweep(plan: SweepPlan) -> SweepReport:
    """Train what is still to be trained, and return what came of all trials.

    Raises:
        ValueError: models, data and options do not fit together, or the folder holds something
            else, such as another sweep.
        OSError: a file or a download failed, or the disk is full.
        RuntimeError: several trials in a row failed.
    """
    if plan.overwrite and any((plan.output_dir / name).exists() for name in (SWEPT, _STUDY)):
        models = ("student_model", "teacher_model", "teacher_outputs")
        check_sources(
            plan.output_dir,
            {name: plan.options.get(name) for name in models},
            lambda path: bool(path.parts) and path.parts[0].startswith("trial-"),
        )
        for path in plan.output_dir.glob("trial-*"):
            shutil.rmtree(path)
        pages = ("sweep.md", "sweep.png", "report.html", "report.md")
        for name in (_STUDY, SWEPT, *pages):
            (plan.output_dir / name).unlink(missing_ok=True)
    judge = _read_judge(plan)
    if judge is not None:
        study = _open(plan, judge)
        if len(study.trials) >= plan.n_trials and interrupted_trial(study) is None:
            log_rank_0(f"This sweep is finished: {len(study.trials)} trials.")
            _delete_students(plan, judge, study)
            return _report(plan, judge, study.trials)
    if plan.makes_cache:
        _cache(plan)
    if judge is None:
        judge = choose_metric(plan)
        write_sweep(_report(plan, judge, ()), plan.output_dir, picture=False)
        study = _open(plan, judge)
    _train(plan, judge, study)
    return _report(plan, judge, study.trials)


def _read_judge(plan: SweepPlan) -> Judge | None:
    """Return how the trials in the folder are compared, if there are any of this sweep."""
    folder = plan.output_dir
    try:
        manifest = read_json(folder / SWEPT, _DAMAGED)
    except FileNotFoundError:
        check_strangers(folder, SWEPT, _is_of_a_beginning)
        return None
    changed = differences(manifest["settings"], plan.described)
    judge = Judge(manifest["metric"], manifest["lower_is_better"])
    if plan.metric not in (None, judge.metric):
        if any(trial["value"] is not None for trial in manifest["trials"]):
            changed.append(f"metric was {judge.metric!r} and is now {plan.metric!r}")
        elif not changed:
            (folder / _STUDY).unlink(missing_ok=True)
            return None
    if changed:
        raise ValueError(
            f"--output_dir {folder} holds another sweep: {'; '.join(changed)}. Name another "
            "folder, or delete that sweep's trials (--overwrite_output_dir)."
        )
    return judge


def _is_of_a_beginning(path: Path) -> bool:
    """Return whether a sweep leaves this before its first summary, wherever it is stopped."""
    tried = path.is_dir() and path.name.startswith("trial-") and not any(path.iterdir())
    return tried or path.name in (".sweep.lock", TEACHER_OUTPUTS) or is_temporary(path)


def _open(plan: SweepPlan, judge: Judge) -> Study:
    return open_study(plan.output_dir / _STUDY, lower_is_better=judge.lower_is_better)


def _cache(plan: SweepPlan) -> None:
    options = plan.options
    shared = (
        "task", "teacher_model", "teacher_weights", "teacher_combination", "use_cpu",
        *names(TrainingFileArguments, TaskArguments),
    )  # fmt: skip
    wanted = {name: options[name] for name in shared if name in options}
    if options.get("teacher_dtype", "auto") != "auto":
        wanted["teacher_dtype"] = options["teacher_dtype"]
    for precision in ("bf16", "fp16"):
        if options.get(precision):
            wanted["mixed_precision"] = precision
    wanted["output_dir"] = str(plan.output_dir / TEACHER_OUTPUTS)
    cache.run(list(cache.build_parser().words_of(wanted, "options")))


def _train(plan: SweepPlan, judge: Judge, study: Study) -> None:
    failures = 0
    while True:
        _delete_students(plan, judge, study)
        trial = interrupted_trial(study)
        if trial is None and len(study.trials) < plan.n_trials:
            trial = begin_trial(study, plan.space, sampler=plan.sampler, seed=plan.seeds[0])
        if trial is None:
            return
        words = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        log_rank_0(f"Trial {trial.number} (of {plan.n_trials}, from 0): {words}")
        result = run_trial(plan, trial, judge)
        if result.failure is None:
            study.tell(trial.number, result.value)
            failures = 0
        else:
            study.tell(trial.number, state=TrialState.FAIL)
            failures += 1
        write_sweep(_report(plan, judge, study.trials), plan.output_dir, picture=False)
        if failures == _MOST_FAILURES:
            raise RuntimeError(
                f"{failures} trials in a row failed, the last one: {result.failure} See "
                f"{plan.output_dir / 'sweep.md'}. The same command continues with the next trial."
            )


def _report(plan: SweepPlan, judge: Judge, trials: Sequence[FrozenTrial]) -> SweepReport:
    return SweepReport(
        task=str(plan.options["task"]),
        metric=judge.metric,
        lower_is_better=judge.lower_is_better,
        trials=[
            read_result(trial_folder(plan, trial.number), trial, judge.metric)
            or _without_folder(trial)
            for trial in trials
            if trial.state.is_finished()
        ],
        parameters=list(plan.space.options),
        settings=plan.described,
        baseline=read_baseline(plan, judge.metric),
    )


def _delete_students(plan: SweepPlan, judge: Judge, study: Study) -> None:
    """Delete the students of trials that ended, but for the best one."""
    if plan.keep_all_trials:
        return
    report = _report(plan, judge, study.trials)
    for trial in report.trials:
        delete_student(plan, trial.number, checkpoints_alone=trial is report.best())


def _without_folder(trial: FrozenTrial) -> TrialReport:
    if trial.value is None:
        return TrialReport(trial.number, trial.params, failure="its folder was deleted")
    return TrialReport(trial.number, trial.params, (trial.value,))
