from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from hf_distill.reports.comparison import Comparison, Latency, ModelReport
from hf_distill.reports.comparison_plot import plot_comparison

F1 = {"teacher": 75.0, "student_alone": 62.0, "student_distilled": 69.0}
SIZES = {"teacher": 22_000_000, "student_alone": 12_000_000, "student_distilled": 12_000_000}


def comparison(*timed: str, roles: tuple[str, ...] = tuple(F1)) -> Comparison:
    latencies = {"teacher": 30.0, "student_alone": 16.0, "student_distilled": 15.0}
    models = [
        ModelReport(
            role, role, {"f1": F1[role]}, SIZES[role],
            latency=Latency(latencies[role], (1.0, 99.0), 3) if role in timed else None,
        )
        for role in roles
    ]  # fmt: skip
    return Comparison("question-answering", "dev.json", 7, models, {"f1": "F1"})


@pytest.fixture
def drawn(saved_figure: Any, tmp_path: Path) -> Any:
    """Draws a comparison and returns the figure that was saved."""

    def draw(what: Comparison) -> Figure:
        with saved_figure() as figures:
            path = plot_comparison(what, tmp_path / "plot.png")
        assert imread(path).shape[0] > 400
        assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]
        return figures[0]

    return draw


def points(panel: Axes) -> dict[str, tuple[float, float]]:
    return {dots.get_label(): tuple(dots.get_offsets()[0]) for dots in panel.collections}


def test_points_are_where_the_figures_are(drawn: Any) -> None:
    figure = drawn(comparison(*F1))
    by_size, by_latency = figure.axes
    assert points(by_size) == {
        "teacher": (22.0, 75.0), "student alone": (12.0, 62.0), "student distilled": (12.0, 69.0)
    }  # fmt: skip
    assert points(by_latency)["student distilled"] == (15.0, 69.0)
    assert by_size.get_ylabel() == "F1"
    assert "54% of the gap in F1" in figure.get_suptitle()
    for panel in figure.axes:
        low, high = panel.get_xlim()
        assert low == 0 and all(x < high for x, _ in points(panel).values())


def test_latency_is_left_out_unless_all_have_one(drawn: Any) -> None:
    figure = drawn(comparison("teacher", "student_alone"))
    assert [panel.get_xlabel() for panel in figure.axes] == ["parameters (million)"]


def test_two_models_are_enough(drawn: Any) -> None:
    figure = drawn(comparison(roles=("student_alone", "student_distilled")))
    assert "gap" not in figure.get_suptitle()
    assert len(points(figure.axes[0])) == 2


def test_a_teacher_without_weights_is_a_line(drawn: Any) -> None:
    whole = comparison(*F1)
    teacher = dataclasses.replace(whole.models[0], parameters=None, latency=None)
    figure = drawn(dataclasses.replace(whole, models=[teacher, *whole.models[1:]]))
    assert len(figure.axes) == 2
    for panel in figure.axes:
        assert {*points(panel)} == {"student alone", "student distilled"}
        assert any([*line.get_ydata()] == [75.0, 75.0] for line in panel.lines)
        assert "teacher 75.0" in [text.get_text() for text in panel.texts]


def test_size_and_time_begin_at_nothing(drawn: Any) -> None:
    for panel in drawn(comparison(*F1)).axes:
        assert panel.get_xlim()[0] == 0


def reported(**scores: tuple[float, float]) -> Comparison:
    """Models with a score and the half of its interval's width."""
    models = [
        ModelReport(
            role, role, {"f1": score}, SIZES[role],
            replicates={"f1": np.linspace(score - half, score + half, 1001)} if half else {},
        )
        for role, (score, half) in scores.items()
    ]  # fmt: skip
    return Comparison("question-answering", "dev.json", 7, models, {"f1": "F1"})


@pytest.mark.parametrize("scale", [1.0, 0.001, 0.0, -1.0])
def test_quality_and_its_intervals_are_inside_with_room(drawn: Any, scale: float) -> None:
    whole = reported(teacher=(75.0 * scale, 3.0), student_alone=(62.0 * scale, 4.0))
    for panel in drawn(whole).axes:
        low, high = panel.get_ylim()
        heights = [y for _, y in points(panel).values()]
        heights += [y for line in panel.lines for y in line.get_ydata()]
        room = 0.15 * (high - low)
        assert max(heights) + room < high
        assert min(heights) - room > low or low == 0


def test_equal_models_do_not_look_apart(drawn: Any) -> None:
    whole = reported(teacher=(95.0, 0.0), student_distilled=(95.1, 0.0))
    low, high = drawn(whole).axes[0].get_ylim()
    assert (high - low) / 20 > 0.1


def test_the_title_names_task_and_metric_not_the_file(drawn: Any) -> None:
    title = drawn(comparison(*F1)).get_suptitle()
    assert title.startswith("question answering: F1 of 7 examples") and "dev.json" not in title
