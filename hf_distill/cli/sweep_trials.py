"""The trials of a sweep: each a training like any other, in its own folder."""

from __future__ import annotations

import errno
import gc
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from optuna.trial import FrozenTrial

from hf_distill.checkpoints import last_complete_checkpoint
from hf_distill.cli.run_folder import INTERMEDIATE, METRICS, REPLICATES
from hf_distill.cli.stages import run_request
from hf_distill.cli.sweep_plan import SweepPlan
from hf_distill.cli.train_request import check_request
from hf_distill.cli.training_run import prepare
from hf_distill.console import log_rank_0
from hf_distill.files import read_json, without_paths, write_json, write_text
from hf_distill.reports.sweep_report import TrialReport
from hf_distill.tasks.base import Measures
from hf_distill.tasks.bootstrap import TIMINGS, pool_seeds

_RESULT = "result.json"
_OPTIONS = "options.yaml"
# What is left of a student that is not the best: figures, and how to train it again.
_REMEDY = "delete it, and run the sweep again"
_KEPT = (_RESULT, METRICS, REPLICATES, _OPTIONS, "trainer_state.json")
# Not of the trial: the next one would end the same way, and this one is worth another try.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


class Judge(NamedTuple):
    """The metric by which trials are compared."""

    metric: str
    """The figure of ``eval`` in metrics.json."""
    lower_is_better: bool


def choose_metric(plan: SweepPlan) -> Judge:
    """Choose the metric. Models and data are loaded for it, as the first trial has them.

    Raises:
        ValueError: they do not fit together, or the metric cannot tell trials apart.
    """
    options = plan.trial_options(next(plan.space.corners()), plan.seeds[0])
    request = plan.request(options, trial_folder(plan, 0), overwrite_output_dir=True)
    trainer = prepare(check_request(request)[0])
    trainer.check()
    scorer: Any = trainer.compute_metrics
    measures: Measures = scorer.measures
    trainer.accelerator.free_memory()
    metric = next(iter(measures.quality)) if plan.metric is None else plan.metric
    if metric.startswith("loss_"):
        raise ValueError(
            f"--metric {metric}: losses of different temperatures or weights cannot be compared; "
            f"name one of {', '.join(measures.quality)}, or loss (of the labels)."
        )
    return Judge(metric, metric == "loss" or metric in measures.lower_is_better)


def trial_folder(plan: SweepPlan, number: int) -> Path:
    """Return the folder of a trial."""
    return plan.output_dir / f"trial-{number:04d}"


def run_trial(plan: SweepPlan, trial: FrozenTrial, judge: Judge) -> TrialReport:
    """Train with each seed, as far as that was not done before, and report; also a failure."""
    folder = trial_folder(plan, trial.number)
    done = read_result(folder, trial, judge.metric)
    if done is not None:
        return done
    values: list[float] = []
    resampled: list[list[float]] = []
    seconds = 0.0
    failure = None
    for seed in plan.seeds:
        run = folder if len(plan.seeds) == 1 else folder / f"seed-{seed}"
        failure = _train(plan, trial, seed, run)
        if failure is None:
            metrics = read_json(run / METRICS, _REMEDY)
            failure = _diverged(metrics, judge.metric)
            seconds += metrics["train"].get("runtime", 0.0)
        if failure is not None:
            values = []
            break
        values.append(_value(metrics["eval"], judge.metric))
        replicates = _read_replicates(run).get(judge.metric)
        resampled.extend([] if replicates is None else [replicates])
    pooled: list[float] = []
    if len(resampled) == len(values) > 0:
        pooled = pool_seeds(resampled, stream=trial.number).tolist()
    result = {
        "metric": judge.metric,
        "values": values,
        "seconds": seconds,
        "failure": failure,
        "replicates": pooled,
    }
    write_json(folder / _RESULT, result)
    return _trial_report(trial, result)


def read_result(folder: Path, trial: FrozenTrial, metric: str) -> TrialReport | None:
    """Return what a trial came to; ``None`` if it has not ended, judged by this metric."""
    try:
        content = read_json(folder / _RESULT, _REMEDY)
    except FileNotFoundError:
        return None
    return _trial_report(trial, content) if content["metric"] == metric else None


def _trial_report(trial: FrozenTrial, result: Mapping[str, Any]) -> TrialReport:
    return TrialReport(
        trial.number,
        trial.params,
        tuple(result["values"]),
        result["seconds"],
        result["failure"],
        tuple(result.get("replicates", ())),  # which early versions did not write
    )


def _read_replicates(run: Path) -> dict[str, list[float]]:
    try:
        return read_json(run / REPLICATES, _REMEDY)
    except FileNotFoundError:  # trained by an early version
        return {}


def read_baseline(plan: SweepPlan, metric: str) -> tuple[str, float] | None:
    """Return what predicts the same for every row, and the metric of that, from any trial."""
    for path in sorted(plan.output_dir.glob(f"trial-*/**/{METRICS}")):
        baseline = read_json(path, _REMEDY).get("baseline")
        if baseline is not None and metric in baseline[1]:
            return baseline[0], baseline[1][metric]
    return None


def delete_student(plan: SweepPlan, number: int, *, checkpoints_alone: bool) -> None:
    """Delete the weights of a trial that came to an end, or its checkpoints."""
    folder = trial_folder(plan, number)
    for run in [folder, *folder.glob("seed-*")]:
        for path in run.glob("checkpoint-*") if checkpoints_alone else list(run.glob("*")):
            if path.is_dir() and path.name.startswith(("checkpoint-", "intermediate")):
                shutil.rmtree(path)
            elif path.is_file() and path.name not in _KEPT:
                path.unlink()


def _train(plan: SweepPlan, trial: FrozenTrial, seed: int, folder: Path) -> str | None:
    """Train, unless that was done; return why it failed, if it did."""
    options = plan.trial_options(trial.params, seed)
    parameters = {name: options.get(name) for name in (*trial.params, "seed")}
    if folder.is_dir() and not _is_of(folder, parameters):
        shutil.rmtree(folder)  # of another trial with this number
    elif (folder / METRICS).is_file():
        return None
    write_text(folder / _OPTIONS, yaml.safe_dump(options, sort_keys=True))
    further: dict[str, Any] = {"overwrite_output_dir": True}
    if last_complete_checkpoint(folder) is not None or (folder / INTERMEDIATE).is_dir():
        further = {"resume_from_checkpoint": "last"}
    try:
        request = plan.request(options, folder, **further)
        run_request(replace(request, shows_data=False))  # it was, with the metric
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        return _in_a_line(error)
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        return _in_a_line(error)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None


def _is_of(folder: Path, parameters: Mapping[str, Any]) -> bool:
    """Return whether a folder holds a training with these parameters."""
    path = folder / _OPTIONS
    if not path.is_file():
        return False
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    return all(before.get(name) == value for name, value in parameters.items())


def _diverged(metrics: Mapping[str, Any], metric: str) -> str | None:
    """Return why figures cannot be trusted; metrics.json has null for what is not finite."""
    for part in ("train", "eval"):
        if metrics[part].get("loss", 0.0) is None:
            return f"the student diverged ({part} loss is not finite)"
    if metrics["eval"].get(metric, 0.0) is None:
        return f"{metric} is not defined for what the student predicts"
    return None


def _value(scores: Mapping[str, Any], metric: str) -> float:
    numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    if metric not in numbers:
        listed = ", ".join(name for name in numbers if not name.endswith(TIMINGS))
        raise ValueError(f"--metric {metric}: there is no such figure in eval; it has {listed}.")
    return float(numbers[metric])


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    log_rank_0(f"This trial failed: {text}")
    text = without_paths(text)
    return text if len(text) <= 300 else f"{text[:299]}…"
