"""A sweep from its beginning, or from where it was, to its end."""

from __future__ import annotations

import shutil

from hf_distill.cli import cache
from hf_distill.cli.sweep_plan import TEACHER_OUTPUTS, SweepPlan, TrialParser
from hf_distill.cli.sweep_trials import (
    Judge,
    choose_metric,
    forget_student,
    read_baseline,
    read_result,
    run_trial,
    trial_folder,
    value_of,
)
from hf_distill.cli.train_arguments import TrainingFileArguments
from hf_distill.console import log_rank_0
from hf_distill.files import differences, read_json
from hf_distill.reports.sweep import SweepReport, TrialReport, shown, write_sweep
from hf_distill.sweeping import SweepStudy, Trial
from hf_distill.tasks.options import TaskArguments, names

_SUMMARY = "sweep.json"
_STUDY = "study.jsonl"
_MOST_FAILURES = 3
_DAMAGED = "choose another --output_dir, or begin again with --overwrite_output_dir"


class Sweep:
    """A sweep in its folder.

    Args:
        plan: what it is to do.

    Raises:
        ValueError: the folder holds something else, or another sweep.
    """

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._described = plan.described()
        self._parser = TrialParser()
        self._judge: Judge | None = None
        self._study: SweepStudy | None = None
        if plan.overwrite:
            self._forget_all()
        self._check_folder()

    def run(self) -> None:
        """Train what is still to be trained.

        Raises:
            ValueError: models, data and options do not fit together.
            OSError: a file or a download failed, or there is no room.
            RuntimeError: several trials in a row failed.
        """
        plan, judge = self._plan, self._judge
        if judge is not None and self._open_study(judge).is_done(plan.n_trials):
            log_rank_0(f"This sweep is finished: {len(self._open_study(judge).trials())} trials.")
            self._tidy()
            return
        if plan.makes_cache:
            self._cache()
        if judge is None:
            judge = self._judge = choose_metric(plan, self._parser)
            self._write()
        self._train(judge, self._open_study(judge))

    def report(self) -> SweepReport:
        """What came of the trials so far."""
        plan, judge = self._plan, self._judge
        assert judge is not None
        ended = []
        for trial in () if self._study is None else self._study.trials():
            if trial.state != "running":
                folder = trial_folder(plan, trial.number)
                ended.append(read_result(folder, trial, judge.metric) or _from_study(trial))
        return SweepReport(
            task=str(plan.options["task"]),
            metric=judge.metric,
            lower_is_better=judge.lower_is_better,
            trials=ended,
            parameters=list(plan.space.options),
            settings=self._described,
            baseline=read_baseline(plan, judge.metric),
        )

    def _train(self, judge: Judge, study: SweepStudy) -> None:
        plan = self._plan
        failures = 0
        while True:
            self._tidy()
            trial = study.interrupted()
            if trial is None and not study.is_done(plan.n_trials):
                trial = study.begin()
            if trial is None:
                return
            log_rank_0(f"Trial {trial.number} (of {plan.n_trials}, from 0): {_in_words(trial)}")
            report = run_trial(plan, self._parser, trial, judge)
            if report.failure is None:
                study.complete(trial, value_of(report))
                failures = 0
            else:
                study.fail(trial)
                failures += 1
            self._write()
            if failures == _MOST_FAILURES:
                raise RuntimeError(
                    f"{failures} trials in a row failed, the last one: {report.failure} See "
                    f"{plan.output_dir / 'sweep.md'}. The same command goes on with the next trial."
                )

    def _open_study(self, judge: Judge) -> SweepStudy:
        if self._study is None:
            plan = self._plan
            self._study = SweepStudy(
                plan.output_dir / _STUDY,
                plan.space,
                sampler=plan.sampler,
                seed=plan.seeds[0],
                lower_is_better=judge.lower_is_better,
            )
        return self._study

    def _cache(self) -> None:
        options = self._plan.options
        shared = (
            "task", "teacher_model", "further_teachers", "teacher_weights", "teacher_combination",
            "use_cpu", *names(TrainingFileArguments, TaskArguments),
        )  # fmt: skip
        wanted = {name: options[name] for name in shared if name in options}
        if options.get("teacher_dtype", "auto") != "auto":
            wanted["teacher_dtype"] = options["teacher_dtype"]
        for precision in ("bf16", "fp16"):
            if options.get(precision):
                wanted["mixed_precision"] = precision
        wanted["output_dir"] = str(self._plan.output_dir / TEACHER_OUTPUTS)
        cache.run(cache.build_parser().words_of(wanted, "options"))

    def _check_folder(self) -> None:
        folder = self._plan.output_dir
        try:
            manifest = read_json(folder / _SUMMARY, _DAMAGED)
        except FileNotFoundError:
            ours = (".sweep.lock", TEACHER_OUTPUTS)
            there = sorted(path.name for path in folder.iterdir() if path.name not in ours)
            if there:
                raise ValueError(
                    f"--output_dir {folder} holds other files ({', '.join(there[:3])}) and no "
                    f"{_SUMMARY}; name a new folder for the sweep."
                ) from None
            return
        changed = differences(manifest["settings"], self._described)
        judge = Judge(manifest["metric"], manifest["lower_is_better"])
        if self._plan.metric not in (None, judge.metric):
            if any(trial["value"] is not None for trial in manifest["trials"]):
                changed.append(f"metric was {judge.metric!r} and is now {self._plan.metric!r}")
            elif not changed:
                (folder / _STUDY).unlink(missing_ok=True)
                return
        if changed:
            raise ValueError(
                f"--output_dir {folder} holds another sweep: {'; '.join(changed)}. Name another "
                "folder, or delete that sweep's trials (--overwrite_output_dir)."
            )
        self._judge = judge

    def _forget_all(self) -> None:
        folder = self._plan.output_dir
        for path in folder.glob("trial-*"):
            shutil.rmtree(path)
        for name in (_STUDY, _SUMMARY, "sweep.md", "sweep.png"):
            (folder / name).unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Keep the best student alone."""
        plan, study = self._plan, self._study
        if study is None or plan.keep_all_trials:
            return
        best = study.best()
        for trial in study.trials():
            if trial.state != "running":
                forget_student(plan, trial.number, checkpoints_alone=trial == best)

    def _write(self) -> None:
        write_sweep(self.report(), self._plan.output_dir, picture=False)


def _from_study(trial: Trial) -> TrialReport:
    """A trial whose folder was deleted."""
    if trial.value is None:
        return TrialReport(trial.number, trial.parameters, failure="its folder was deleted")
    return TrialReport(trial.number, trial.parameters, (trial.value,))


def _in_words(trial: Trial) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in trial.parameters.items())
