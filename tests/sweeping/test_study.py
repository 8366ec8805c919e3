from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import GridSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from hf_distill.sweeping import SearchSpace, begin_trial, interrupted_trial, open_study

GRID = SearchSpace(
    {"t": CategoricalDistribution([1.0, 2.0, 4.0]), "w": FloatDistribution(0, 1, step=0.5)}
)
ENDLESS = SearchSpace(
    {
        "rate": FloatDistribution(1e-5, 1e-3, log=True),
        "loss": CategoricalDistribution(["kl", "mse", None]),
    }
)
SIZED = SearchSpace(
    {"t": CategoricalDistribution([1.0, 2.0]), "loss": CategoricalDistribution(["kl", "mse", None])}
)


def opened(path: Path, lower_is_better: bool = False) -> Study:
    return open_study(path, lower_is_better=lower_is_better)


def begun(study: Study, space: SearchSpace, sampler: str, seed: int = 0) -> FrozenTrial:
    trial = begin_trial(study, space, sampler=sampler, seed=seed)
    assert trial is not None
    return trial


def worth(parameters: dict[str, Any]) -> float:
    """Anything that depends on all parameters."""
    return sum(ord(letter) * 0.37 for letter in str(sorted(parameters.items())))


def searched(path: Path, space: SearchSpace, sampler: str, trials: int) -> list[FrozenTrial]:
    study = opened(path)
    while len(study.trials) < trials:
        trial = begin_trial(study, space, sampler=sampler, seed=0)
        if trial is None:
            break
        study.tell(trial.number, worth(trial.params))
    return study.trials


def outcomes(trials: list[FrozenTrial]) -> list[Any]:
    return [(trial.number, trial.params, trial.state, trial.value) for trial in trials]


def test_a_grid_is_tried_once_and_in_order(tmp_path: Path) -> None:
    trials = searched(tmp_path / "s.jsonl", GRID, "grid", 100)
    assert [trial.params for trial in trials] == list(GRID.combinations())
    assert [trial.number for trial in trials] == list(range(9))
    assert all(trial.value == worth(trial.params) for trial in trials)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_combination_is_tried_twice(sampler: str, tmp_path: Path) -> None:
    trials = searched(tmp_path / "s.jsonl", SIZED, sampler, 100)
    tried = [trial.params for trial in trials]
    assert sorted(map(str, tried)) == sorted(map(str, SIZED.combinations()))
    assert tried != list(SIZED.combinations())


def test_why_samplers_of_optuna_are_not_asked_directly(tmp_path: Path) -> None:
    """``GridSampler`` shuffles, ``TPESampler`` repeats itself, ``ask`` can be killed halfway."""
    grid = {"t": [1.0, 2.0, 4.0], "w": [0.0, 0.5, 1.0]}
    study = optuna.create_study(sampler=GridSampler(grid, seed=0))
    shuffled = [study.ask(dict(GRID.options)).params for _ in range(9)]
    in_order = list(GRID.combinations())
    assert shuffled != in_order and sorted(map(str, shuffled)) == sorted(map(str, in_order))

    study = optuna.create_study(sampler=TPESampler(seed=0))
    for _ in range(6):
        trial = study.ask(dict(SIZED.options))
        study.tell(trial, worth(trial.params))
    assert len({str(trial.params) for trial in study.trials}) < 6

    path = tmp_path / "s.jsonl"
    opened(path).ask(dict(SIZED.options))
    torn = []
    lines = path.read_bytes().splitlines(keepends=True)
    for end in range(len(lines)):
        path.write_bytes(b"".join(lines[: end + 1]))
        torn += [trial.params for trial in opened(path).trials if len(trial.params) < 2]
    assert torn == [{}, torn[-1]] and len(torn[-1]) == 1


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_a_trial_is_written_down_with_all_its_parameters(sampler: str, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    whole = searched(path, SIZED, sampler, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    for end in range(1, len(lines) + 1):
        path.write_bytes(b"".join(lines[:end]))
        trials = opened(path).trials
        assert [one.params for one in trials] == [one.params for one in whole[: len(trials)]]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_ranges_are_searched_within_their_bounds(sampler: str, tmp_path: Path) -> None:
    trials = searched(tmp_path / "s.jsonl", ENDLESS, sampler, 12)
    rates = [trial.params["rate"] for trial in trials]
    assert len(set(rates)) == 12 and all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert {trial.params["loss"] for trial in trials} <= {"kl", "mse", None}
    others = searched(tmp_path / "other.jsonl", ENDLESS, sampler, 12)
    assert [trial.params for trial in others] == [trial.params for trial in trials]
    another = begun(opened(tmp_path / "third.jsonl"), ENDLESS, sampler, seed=1)
    assert another.params != trials[0].params


def test_there_is_no_end_of_a_range(tmp_path: Path) -> None:
    trials = searched(tmp_path / "s.jsonl", ENDLESS, "random", 110)
    rates = [trial.params["rate"] for trial in trials]
    assert len(set(rates)) == 110
    assert 40 < sum(rate < 1e-4 for rate in rates) < 70  # by the logarithm, half of them


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_a_study_that_is_opened_again_continues_as_if_it_had_not(
    sampler: str, tmp_path: Path
) -> None:
    space = GRID if sampler == "grid" else ENDLESS
    whole = searched(tmp_path / "whole.jsonl", space, sampler, 14)
    path = tmp_path / "s.jsonl"
    for _ in range(14):
        study = opened(path)
        trial = begin_trial(study, space, sampler=sampler, seed=0)
        if trial is None:
            break
        again = opened(path)  # the first ended suddenly
        left = interrupted_trial(again)
        assert left is not None and outcomes([left]) == outcomes([trial])
        again.tell(left.number, worth(left.params))
    assert outcomes(opened(path).trials) == outcomes(whole)


def test_tpe_learns_from_what_was_good(tmp_path: Path) -> None:
    space = SearchSpace({"x": FloatDistribution(0.0, 1.0)})

    def found(sampler: str, lower: bool) -> float:
        study = opened(tmp_path / f"{sampler}{lower}.jsonl", lower)
        for _ in range(30):
            trial = begun(study, space, sampler)
            distance = abs(trial.params["x"] - 0.7)
            study.tell(trial.number, distance if lower else -distance)
        late = [trial.params["x"] for trial in study.trials[15:]]
        return sum(abs(x - 0.7) for x in late) / len(late)

    for lower in (False, True):
        assert found("tpe", lower) < 0.5 * found("random", lower)


def test_trials_that_failed_are_not_tried_again(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.jsonl")
    study.tell(begun(study, GRID, "grid").number, state=TrialState.FAIL)
    second = begun(study, GRID, "grid")
    study.tell(second.number, 1.0)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[0].value is None and interrupted_trial(study) is None
    assert second.params == list(GRID.combinations())[1]


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    study = opened(path)
    for _ in range(2):
        study.tell(begun(study, GRID, "grid").number, 1.0)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert all(isinstance(json.loads(line), dict) for line in lines)  # and nothing is pickled
    start = time.monotonic()
    before_last = len(content) - len(lines[-1])
    for cut in (before_last + 1, before_last + 20, len(content) - 1):
        path.write_bytes(content[:cut])
        (tmp_path / "s.jsonl.lock").symlink_to(path)  # of the process that was killed
        again = opened(path)
        trial = interrupted_trial(again)
        assert trial is not None and trial.number == 1
        again.tell(trial.number, 1.0)
        assert [trial.value for trial in opened(path).trials] == [1.0, 1.0]
    assert time.monotonic() - start < 10  # nobody waited for a lock that nobody holds


def test_a_grid_needs_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rate is a range without a step"):
        begin_trial(opened(tmp_path / "s"), ENDLESS, sampler="grid", seed=0)
