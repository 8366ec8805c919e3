from __future__ import annotations

import math
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hf_distill.reports.comparison import Comparison, ModelReport
from hf_distill.reports.sweep_report import SweepReport, TrialReport
from hf_distill.reports.terminal import print_comparison
from hf_distill.tasks.bootstrap import (
    REPLICATES,
    bootstrap,
    contains_zero,
    interval,
    pool_seeds,
)
from hf_distill.tasks.metrics import mean_metric

ROWS = 300


def answers(right: int, *, from_the_end: bool = False) -> np.ndarray:
    """1 for each row that was answered right: the first ones, or the last ones."""
    rows = np.arange(ROWS)[::-1] if from_the_end else np.arange(ROWS)
    return (rows < right).astype(float)


def replicates(scores: np.ndarray) -> np.ndarray:
    return bootstrap(mean_metric({"accuracy": scores}))["accuracy"]


def test_the_spread_of_a_mean_is_its_standard_error() -> None:
    found = replicates(answers(240))
    assert found.shape == (REPLICATES,)
    assert found.mean() == pytest.approx(80, abs=0.3)
    assert found.std() == pytest.approx(100 * math.sqrt(0.8 * 0.2 / ROWS), rel=0.1)
    low, high = interval(found) or (math.nan, math.nan)
    assert high - low == pytest.approx(2 * 1.96 * found.std(), rel=0.1)


@pytest.mark.parametrize("apart", [False, True])
def test_differences_are_paired(apart: bool) -> None:
    """Models that are right about the same rows can be told apart by fewer rows."""
    one, other = answers(240), answers(225, from_the_end=apart)
    difference = replicates(one) - replicates(other)
    expected = 100 * (one - other).std() / math.sqrt(ROWS)
    assert difference.std() == pytest.approx(expected, rel=0.1)
    assert contains_zero(interval(difference)) == apart


def test_seeds_add_their_own_chance() -> None:
    means = (60.0, 70.0, 80.0)
    pooled = pool_seeds([np.full(REPLICATES, mean) for mean in means], stream=0)
    # The mean of three draws with replacement: a third of the variance of the three.
    assert pooled.std() == pytest.approx(np.std(means) / math.sqrt(3), rel=0.1)
    assert set(np.round(pooled * 3)) <= {3 * 60 + 10 * step for step in range(7)}
    alone = replicates(answers(200))
    assert np.array_equal(pool_seeds([alone], stream=3), alone)
    other = pool_seeds([np.full(REPLICATES, mean) for mean in means], stream=1)
    assert abs(np.corrcoef(pooled, other)[0, 1]) < 0.15


def test_an_undefined_metric_has_no_interval() -> None:
    assert interval([]) is None and not contains_zero(None)
    assert interval([1.0, math.nan]) is None


def model(role: str, scores: np.ndarray, **options: Any) -> ModelReport:
    found = {"accuracy": replicates(scores)}
    return ModelReport(
        role, f"organisation/{role}-with-a-long-name", {"accuracy": 100 * scores.mean()},
        options.pop("parameters", 10_000_000), replicates=found, **options,
    )  # fmt: skip


def three(teacher: int, alone: int, distilled: int) -> Comparison:
    models = [
        model("teacher", answers(teacher), size_on_disk=45_000_000, stored_as="float16"),
        model("student_alone", answers(alone), parameters=5_200_000, size_on_disk=20_800_000,
              stored_as="float32"),
        model("student_distilled", answers(distilled), parameters=5_200_000),
    ]  # fmt: skip
    return Comparison("text-classification", "dev.csv", ROWS, models, {"accuracy": "accuracy"})


def test_a_few_rows_are_said_to_be_noise() -> None:
    few = three(240, 218, 221)
    assert few.headline() == "accuracy: the students differ by no more than noise on this data."
    assert few.gap_closed()["accuracy"] == pytest.approx(3 / 22)
    assert few.gap_closed_intervals() == {}
    noise = {(one.role, one.other): one.is_noise for one in few.differences()}
    assert noise[("student_distilled", "student_alone")]
    assert not noise[("student_alone", "teacher")]
    text = few.to_markdown()
    assert "accuracy, student distilled − student alone: +1.00 (" in text
    assert "): within noise" in text
    assert (
        "teacher and student alone differ by no more than noise" in three(222, 220, 221).headline()
    )


def test_a_real_gap_has_its_interval() -> None:
    many = three(270, 180, 240)
    low, high = many.gap_closed_intervals()["accuracy"]
    assert 0.4 < low < 60 / 90 < high < 0.9
    assert many.headline() == (
        f"Distillation closed 67% of the gap in accuracy (95% interval {low:.0%} to {high:.0%})."
    )
    rows = dict(many.rows())
    bounds = many.models[0].intervals()["accuracy"]
    assert rows["  95% interval"][0] == f"{bounds[0]:.2f}–{bounds[1]:.2f}"
    assert rows["size on disk"] == ["45.0 MB (float16)", "20.8 MB", "–"]
    assert many.speed_up() == "The student distilled has 0.52 × the parameters of the teacher."


def test_the_table_fits_80_columns() -> None:
    output = StringIO()
    print_comparison(three(270, 180, 240), Console(file=output, width=80))
    shown = output.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "95% interval" in shown and "…" not in shown
    low, high = three(270, 180, 240).models[0].intervals()["accuracy"]
    assert f"{low:.2f}–{high:.2f}" in shown


def trials(*right: int) -> SweepReport:
    reports = [
        TrialReport(i, {"temperature": i}, (answers(n).mean() * 100,), 1.0, None,
                    tuple(replicates(answers(n))))
        for i, n in enumerate(right)
    ]  # fmt: skip
    return SweepReport(
        "text-classification", "accuracy", False, reports, ["temperature"],
        baseline=("always answering 'no'", 80.0),
    )  # fmt: skip


def test_a_sweep_names_the_trials_that_may_be_as_good() -> None:
    some = trials(180, 269, 270, 268)
    assert [trial.number for trial in some.equals()] == [1, 3]
    assert "Within noise of it: trials 1, 3." in some.headline()
    assert "always answering" not in some.headline()
    assert some.to_dict()["within_noise_of_best"] == [1, 3]
    assert "always answering 'no': 80.00" in some.to_markdown()


def test_a_sweep_without_a_winner_says_so() -> None:
    none = trials(200, 201, 200)
    assert "this sweep has no winner" in none.headline()
    assert "That is not better than always answering 'no' (80.00)." in none.headline()
