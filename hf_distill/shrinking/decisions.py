"""Decisions of a plan and their reasons: pure functions of what was asked for and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hf_distill.reports.report import Decision
from hf_distill.shrinking.plan import Asked, Data, Further, Measured
from hf_distill.shrinking.shapes import Timed


@dataclass(frozen=True)
class Defaults:
    """Settings of a task; ``benchmarks/RESULTS.md`` has the tables that they are from."""

    learning_rate: float = 3e-4
    temperature: float = 4.0
    dropout: float = 0.0
    distillation_loss_weight: float = 1.0
    hidden_states_share: float = 0.0
    """Of all steps, those on hidden states."""
    num_train_epochs: float = 6.0
    batch_size: int = 16


_DEFAULTS = {
    "text-classification": Defaults(5e-5),
    "token-classification": Defaults(5e-5),
    "text-generation": Defaults(temperature=1.0, distillation_loss_weight=0.5),
}
SCORINGS = 8
_PATIENCE = 6
"""Of the scorings. Before, the learning rate is high, and a score may be below that of the start;
most of what a training gains it gains at its end."""
_RESERVE = 0.1
"""Of a budget, for what takes longer than predicted."""
_CACHE_FROM = 1.5
"""Passes over the data from which on stored outputs are worth their computation and their place."""
_FORWARD = 1 / 3
"""Of a training step."""
_EXPORT = 6.0
"""Seconds of an exporter."""
_EXPORT_INPUTS = 2 * 12 * 2 * (1 + 8)
"""Rows that an export is timed on: two models, twelve calls, two lengths, batches of 1 and 8."""
EXPORT_ROWS = 1000
"""The most that an export is scored on, once per setting that is tried."""
_LATENCY_ROWS, _THROUGHPUT_ROWS, _ROUNDS = 64, 100, 4
"""Rows that ``compare`` times each model on: 50, with two of warm-up before each eight."""
_SEARCHED: dict[str, list[float]] = {
    "temperature": [1.0, 4.0],
    "distillation_loss_weight": [0.5, 1.0],
}
_SEARCH_SHARE = 0.5
"""Of the time for training, the most that a search may take."""
_STORED = ("question-answering", "text-classification", "token-classification")
"""Tasks with few logits per input, which do not change from pass to pass."""


def settings_of(task: str, asked: Asked) -> Defaults:
    """Return the settings of a task: those that are set by hand, and the defaults."""
    by_hand = {one.name: getattr(asked, one.name) for one in fields(Defaults)}
    usual = _DEFAULTS.get(task, Defaults())
    return replace(usual, **{name: value for name, value in by_hand.items() if value is not None})


def decide(
    task: str,
    asked: Asked,
    data: Data,
    measured: Measured,
    best: Timed,
    further: Further | None = None,
) -> tuple[list[Decision], dict[str, float]]:
    """Decide how the student is trained.

    Args:
        task: the task.
        asked: what is set by hand.
        data: its sizes.
        measured: seconds of steps.
        best: the student's shape and latency.
        further: what is made in addition.

    Returns:
        The decisions, and the predicted seconds of each step of the plan, by its folder.

    Raises:
        ValueError: a weight below 1 without labels, or a budget that is too small for one step.
    """
    settings, further = settings_of(task, asked), further or Further()
    made = _settings(task, asked, data, settings)
    others = _untrained(data, measured, best, further)
    made += _length(task, asked, data, measured, settings, further, sum(others.values()))
    values = {one.name: one.value for one in made}
    first, second = values["hidden_states_steps"], values["prediction_steps"]
    every = max(1, (first + second) // SCORINGS)
    kept = "without validation data the last one is kept"
    if data.validation:
        every = min(every, max(second, 1))
        kept = (
            "the validation data is scored at each of the prediction stage and the one with the "
            f"best {data.metric} is kept"
        )
    made.append(Decision("save_steps", every, f"about {SCORINGS} checkpoints; {kept}"))
    if data.validation:
        ends = f"training ends once {data.metric} has not improved {_PATIENCE} times in a row"
        made.append(Decision("early_stopping_patience", _PATIENCE, ends))
    values = {one.name: one.value for one in made}
    return made, _seconds(values, data, measured, further, others)


def _seconds(
    values: Mapping[str, Any],
    data: Data,
    measured: Measured,
    further: Further,
    others: Mapping[str, float],
) -> dict[str, float]:
    """Predict the time of each step, by its folder; ``others``: of those without training."""
    first, second = values["hidden_states_steps"], values["prediction_steps"]
    batch = values["per_device_train_batch_size"]
    scoring = _scoring(data, measured, batch)
    seconds: dict[str, float] = {}
    step = measured.prediction_step
    if values["cache_teacher_outputs"]:
        seconds["teacher_outputs"] = data.train / batch * measured.teacher_batch
        step = measured.own_step
    if values.get("search"):
        trial = values["search_steps"] * measured.own_step + (SCORINGS + 2) * scoring
        seconds["search"] = combinations(values["search"]) * trial
    scored = 0 if not data.validation else second // values["save_steps"] + 2
    seconds["student"] = first * measured.hidden_states_step + second * step + scored * scoring
    if further.baseline:
        steps = first + second
        scored = 0 if not data.validation else steps // values["save_steps"] + 2
        seconds["student_alone"] = steps * measured.own_step + scored * scoring
    return {"created": others["created"], **seconds, **others}


def _untrained(data: Data, measured: Measured, best: Timed, further: Further) -> dict[str, float]:
    """Predict the time of the steps in which nothing is trained or stored."""
    seconds = {"created": measured.creation}
    # What is served is scored as it is timed: in float32.
    scored = min(data.validation, EXPORT_ROWS) if further.exports > 1 else 0
    for name in ("onnx", "int8")[: further.exports]:
        seconds[name] = _EXPORT + (2 * scored + _EXPORT_INPUTS) * best.milliseconds / 1000
    if data.validation:
        rows = data.validation + min(_LATENCY_ROWS, data.validation)
        rows += _ROUNDS * min(_THROUGHPUT_ROWS, data.validation)
        students = 1 + further.baseline + further.exports
        models = best.teacher_milliseconds + students * best.milliseconds
        seconds["comparison"] = rows * models / 1000
    return seconds


def _scoring(data: Data, measured: Measured, batch: int) -> float:
    """Return the seconds in which a training scores the student once."""
    return data.validation / batch * _FORWARD * measured.own_step / measured.filled


def _settings(task: str, asked: Asked, data: Data, settings: Defaults) -> list[Decision]:
    weight = asked.distillation_loss_weight
    if not data.labelled:
        if weight is not None and weight < 1:
            raise ValueError(
                f"distillation_loss_weight={weight} gives labels a share of the loss, and the "
                "training data has none: leave it out, or pass labelled data."
            )
        chosen = Decision("distillation_loss_weight", 1.0, "the training data has no labels")
    elif weight is None:
        reason = f"the default for {task}, by the tables of benchmarks/RESULTS.md"
        chosen = Decision("distillation_loss_weight", settings.distillation_loss_weight, reason)
    else:
        chosen = Decision("distillation_loss_weight", weight, _by("distillation_loss_weight"))
    decisions = [chosen]
    names = {
        "learning_rate": "learning_rate",
        "temperature": "temperature",
        "dropout": "dropout",
        "per_device_train_batch_size": "batch_size",
    }
    if data.loss == "mse":
        reason = "numbers to predict have no probabilities, and so no temperature"
        decisions.append(Decision("distillation_loss", data.loss, reason))
        if asked.temperature is not None:
            raise ValueError(f"temperature={asked.temperature}: {reason}; leave it out.")
        del names["temperature"]
    for option, name in names.items():
        reason = f"the default for {task}" if getattr(asked, name) is None else _by(option)
        decisions.append(Decision(option, getattr(settings, name), reason))
    return decisions


def _length(
    task: str,
    asked: Asked,
    data: Data,
    measured: Measured,
    settings: Defaults,
    further: Further,
    others: float,
) -> list[Decision]:
    """Share the steps between the stages, and decide whether the teacher's outputs are stored."""
    searched: list[Decision] = []
    batch, share = settings.batch_size, settings.hidden_states_share
    per_epoch = math.ceil(data.train / batch)
    if asked.budget is None:
        epochs = settings.num_train_epochs
        total = max(1, round(epochs * per_epoch))
        first = min(round(share * total), total - 1)
        second = total - first
        why = f"{epochs:g} epochs of {per_epoch} steps" + (
            "" if asked.num_train_epochs else " (the default)"
        )
        cached, cache_reason = _cache(task, asked, second / per_epoch)
    else:
        scorings = (SCORINGS + 2) * _scoring(data, measured, batch)
        alone = measured.own_step if further.baseline else 0.0
        seconds = (1 - _RESERVE) * asked.budget - others - scorings * (1 + further.baseline)
        first = int(share * seconds / (measured.hidden_states_step + alone)) if share else 0
        left = seconds - first * (measured.hidden_states_step + alone)
        second = int(left / (measured.prediction_step + alone))
        cached, cache_reason = _cache(task, asked, second / per_epoch)
        if cached:
            left -= per_epoch * measured.teacher_batch
            steps = round(settings.num_train_epochs * per_epoch)
            trial = steps * measured.own_step + scorings
            hindrance = None if further.can_search else 'it needs pip install "hf-distill[sweep]"'
            if first:
                hindrance = "hidden states need the teacher, and not its stored outputs"
            searched = _search(asked, data, steps, trial / max(left, 1e-9), hindrance)
            if len(searched) > 1:
                left -= combinations(searched[0].value) * trial
            second = int(left / (measured.own_step + alone))
        if second < 1:
            raise ValueError(
                f"budget: in {asked.budget:.0f} s not one step fits: a step takes "
                f"{measured.prediction_step:.2f} s here, scoring the student on the way "
                f"{scorings:.0f} s, and creating, exporting and comparing it {others:.0f} s. Raise "
                "the budget, or set num_train_epochs."
            )
        hidden = f"{measured.hidden_states_step:.2f} s on hidden states and " if share else ""
        why = (
            f"a budget of {asked.budget:.0f} s, less {_RESERVE:.0%} in reserve, {scorings:.0f} s "
            f"of scoring and {others:.0f} s of creating, exporting and comparing; a step takes "
            f"{hidden}{measured.prediction_step:.2f} s on the prediction layer, teacher included"
            + (f", and {alone:.2f} s for the student alone" if alone else "")
        )
    by_tables = "the default: students that begin in their teacher's states ended no higher by it"
    source = by_tables if asked.hidden_states_share is None else _by("hidden_states_share")
    return [
        Decision("hidden_states_share", share, source),
        Decision("hidden_states_steps", first, f"{share:.0%} of {why}"),
        Decision("prediction_steps", second, f"the rest of {why}"),
        Decision("cache_teacher_outputs", cached, cache_reason),
        *searched,
    ]


def _by(option: str) -> str:
    """Return the reason of a value that is not the plan's."""
    return f"set by --{option}"


def combinations(space: Mapping[str, list[float]]) -> int:
    """Return the number of trainings of a search."""
    return math.prod(map(len, space.values()))


def _search(
    asked: Asked, data: Data, steps: int, share: float, hindrance: str | None
) -> list[Decision]:
    """Decide what is searched before the training; ``share``: of its time, one trial's."""
    space = {
        name: values
        for name, values in _SEARCHED.items()
        if getattr(asked, name) is None
        and (data.loss != "mse" if name == "temperature" else data.labelled)
    }
    if not (space and data.validation):
        return []
    part = combinations(space) * share
    if part > _SEARCH_SHARE:
        hindrance = (
            f"{combinations(space)} trainings would take {part:.0%} of the time for training"
        )
    if hindrance is not None:
        return [Decision("search", None, hindrance)]
    why = (
        f"{combinations(space)} trainings on the stored outputs take {part:.0%} of the time for "
        "training"
    )
    return [Decision("search", space, why), Decision("search_steps", steps, "the default length")]


def _cache(task: str, asked: Asked, epochs: float) -> tuple[bool, str]:
    if asked.cache is not None:
        return asked.cache, _by("cache_teacher_outputs")
    if task not in _STORED:
        return False, f"outputs for {task} are large, or other ones in each pass"
    if epochs < _CACHE_FROM:
        return False, f"the prediction stage sees each row {epochs:.1f} times"
    return True, f"the prediction stage sees each row {epochs:.1f} times; the teacher runs once"
