from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hf_distill.sweeping import (
    Choices,
    Range,
    SearchSpace,
    SweepStudy,
    in_use,
)

GRID = SearchSpace({"t": Choices((1.0, 2.0, 4.0)), "w": Range(0.0, 1.0, 0.5)})
ENDLESS = SearchSpace({"rate": Range(1e-5, 1e-3, log=True), "loss": Choices(("kl", "mse", None))})
SIZED = SearchSpace({"t": Choices((1.0, 2.0)), "loss": Choices(("kl", "mse", None))})


def opened(path: Path, space: SearchSpace, sampler: str, **options: Any) -> SweepStudy:
    options = {"seed": 0, "lower_is_better": False, **options}
    return SweepStudy(path, space, sampler=sampler, **options)


def worth(parameters: dict[str, Any]) -> float:
    """Anything that depends on all parameters."""
    return sum(ord(letter) * 0.37 for letter in str(sorted(parameters.items())))


def searched(path: Path, space: SearchSpace, sampler: str, trials: int) -> list[Any]:
    study = opened(path, space, sampler)
    while not study.is_done(trials):
        trial = study.interrupted() or study.begin()
        if trial is None:
            break
        study.complete(trial, worth(trial.parameters))
    return study.trials()


def test_a_grid_is_tried_once_and_in_order(tmp_path: Path) -> None:
    trials = searched(tmp_path / "s.jsonl", GRID, "grid", 100)
    assert [trial.parameters for trial in trials] == list(GRID.combinations())
    assert [trial.number for trial in trials] == list(range(9))
    assert all(trial.value == worth(trial.parameters) for trial in trials)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_combination_is_tried_twice(sampler: str, tmp_path: Path) -> None:
    trials = searched(tmp_path / "s.jsonl", SIZED, sampler, 100)
    tried = [trial.parameters for trial in trials]
    assert sorted(map(str, tried)) == sorted(map(str, SIZED.combinations()))
    assert tried != list(SIZED.combinations())


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_ranges_are_searched_within_their_bounds(sampler: str, tmp_path: Path) -> None:
    trials = searched(tmp_path / "s.jsonl", ENDLESS, sampler, 12)
    rates = [trial.parameters["rate"] for trial in trials]
    assert len(set(rates)) == 12 and all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert {trial.parameters["loss"] for trial in trials} <= {"kl", "mse", None}
    others = searched(tmp_path / "other.jsonl", ENDLESS, sampler, 12)
    assert [trial.parameters for trial in others] == [trial.parameters for trial in trials]
    another = opened(tmp_path / "third.jsonl", ENDLESS, sampler, seed=1).begin()
    assert another is not None and another.parameters != trials[0].parameters


def test_there_is_no_end_of_a_range(tmp_path: Path) -> None:
    trials = searched(tmp_path / "s.jsonl", ENDLESS, "random", 110)
    rates: list[Any] = [trial.parameters["rate"] for trial in trials]
    assert len(set(rates)) == 110
    assert 40 < sum(rate < 1e-4 for rate in rates) < 70  # by the logarithm, half of them


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_a_study_that_is_opened_anew_goes_on_as_if_it_had_not(sampler: str, tmp_path: Path) -> None:
    space = GRID if sampler == "grid" else ENDLESS
    whole = searched(tmp_path / "whole.jsonl", space, sampler, 14)
    path = tmp_path / "s.jsonl"
    for _ in range(14):
        study = opened(path, space, sampler)
        trial = study.interrupted() or study.begin()
        if trial is None:
            break
        again = opened(path, space, sampler)  # the first ended suddenly
        assert again.interrupted() == trial
        again.complete(trial, worth(trial.parameters))
    assert opened(path, space, sampler).trials() == whole


def test_tpe_learns_from_what_was_good(tmp_path: Path) -> None:
    space = SearchSpace({"x": Range(0.0, 1.0)})

    def found(sampler: str, lower: bool) -> float:
        study = opened(tmp_path / f"{sampler}{lower}.jsonl", space, sampler, lower_is_better=lower)
        for _ in range(30):
            trial = study.begin()
            assert trial is not None
            distance = abs(float(trial.parameters["x"] or 0) - 0.7)
            study.complete(trial, distance if lower else -distance)
        late = [trial.parameters["x"] for trial in study.trials()[15:]]
        return sum(abs(float(x or 0) - 0.7) for x in late) / len(late)

    for lower in (False, True):
        assert found("tpe", lower) < 0.5 * found("random", lower)


def test_the_best_is_the_first_of_equals(tmp_path: Path) -> None:
    for lower, number in ((False, 1), (True, 0)):
        study = opened(tmp_path / f"{lower}.jsonl", GRID, "grid", lower_is_better=lower)
        assert study.best() is None
        for value in (-3.0, 5.0, 5.0, -3.0):
            trial = study.begin()
            assert trial is not None
            study.complete(trial, value)
        failed = study.begin()
        assert failed is not None
        study.fail(failed)
        best = study.best()
        assert best is not None and best.number == number
        assert [trial.state for trial in study.trials()] == ["complete"] * 4 + ["failed"]
        assert study.trials()[-1].value is None and study.interrupted() is None


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    study = opened(path, GRID, "grid")
    for _ in range(2):
        trial = study.begin()
        assert trial is not None
        study.complete(trial, 1.0)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert all(isinstance(json.loads(line), dict) for line in lines)  # and nothing is pickled
    start = time.monotonic()
    before_last = len(content) - len(lines[-1])
    for cut in (before_last + 1, before_last + 20, len(content) - 1):
        path.write_bytes(content[:cut])
        (tmp_path / "s.jsonl.lock").symlink_to(path)  # of the process that was killed
        again = opened(path, GRID, "grid")
        trial = again.interrupted()
        assert trial is not None and trial.number == 1
        again.complete(trial, 1.0)
        assert [trial.value for trial in opened(path, GRID, "grid").trials()] == [1.0, 1.0]
    assert time.monotonic() - start < 10  # nobody waited for a lock that nobody holds


def test_a_grid_needs_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rate is a range without a step"):
        opened(tmp_path / "s", ENDLESS, "grid")
    with pytest.raises(ValueError, match="sampler must be one of grid, tpe, random"):
        opened(tmp_path / "s", GRID, "annealing")


def test_one_sweep_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    with in_use(folder):
        with pytest.raises(ValueError, match="another sweep is at work"), in_use(folder):
            pass
        child = os.fork()
        if child == 0:
            try:
                with in_use(folder):
                    os._exit(0)
            except ValueError:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    with in_use(folder):
        pass
