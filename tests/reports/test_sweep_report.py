from __future__ import annotations

import itertools
import json
import statistics
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from rich.console import Console

from hf_distill.reports.pages import write_sweep
from hf_distill.reports.sweep_plot import axes_of, heat_maps, plot_sweep, sweep_figure
from hf_distill.reports.sweep_report import SweepReport, TrialReport
from hf_distill.reports.terminal import print_rows

TEMPERATURES, WEIGHTS, LOSSES = (1.0, 2.0, 8.0), (0.0, 0.25, 0.5, 1.0), ("kl_div", "mse")


def worth(temperature: float, weight: float, loss: str) -> float:
    return 60 + 3 * temperature - 11 * (weight - 0.4) ** 2 - (0.37 if loss == "mse" else 0)


def report(**options: Any) -> SweepReport:
    """24 trials in a shuffled order, one of them failed."""
    combinations = list(itertools.product(TEMPERATURES, WEIGHTS, LOSSES))
    combinations = combinations[7:] + combinations[:7]
    trials = [
        TrialReport(
            number,
            {"temperature": t, "distillation_loss_weight": w, "distillation_loss": loss},
            (worth(t, w, loss),),
            12.34,
        )
        for number, (t, w, loss) in enumerate(combinations)
    ]
    trials[3] = TrialReport(3, trials[3].parameters, failure="out of memory | [bold]")
    return SweepReport(
        **{
            "task": "question-answering",
            "metric": "f1",
            "lower_is_better": False,
            "trials": trials,
            "parameters": ["temperature", "distillation_loss_weight", "distillation_loss"],
            **options,
        }
    )


def of(values: list[Any], **options: Any) -> SweepReport:
    """Trials over one option."""
    trials = [TrialReport(i, {"option": v}, (float(i % 3),)) for i, v in enumerate(values)]
    return report(trials=trials, parameters=["option"], **options)


def test_the_best_comes_first_and_failures_last() -> None:
    for lower in (False, True):
        ranked = report(lower_is_better=lower).ranked()
        values = [trial.value for trial in ranked[:-1]]
        assert values == sorted(values, reverse=not lower) and len(values) == 23
        assert ranked[-1].number == 3
        best = report(lower_is_better=lower).best()
        assert best is ranked[0] or best == ranked[0]
    equal = report(trials=[TrialReport(i, report().trials[0].parameters, (1.0,)) for i in range(3)])
    assert [trial.number for trial in equal.ranked()] == [0, 1, 2]


def test_seeds_are_averaged() -> None:
    trial = TrialReport(0, {"option": 1}, (70.0, 72.0, 77.0))
    assert trial.value == 73.0
    assert trial.spread == pytest.approx(statistics.stdev((70.0, 72.0, 77.0)))
    assert TrialReport(0, {}, (70.0,)).spread is None and TrialReport(0, {}).value is None
    several = report(trials=[trial], parameters=["option"], settings={"seeds": [0, 1, 2]})
    assert several.rows() == [["0", "1", "73.00 ± 3.61", "", ""]]
    assert several.footnotes()[1] == "mean and standard deviation of the seeds 0, 1, 2"


def test_the_table_says_what_the_file_says(tmp_path: Path) -> None:
    whole = report()
    write_sweep(whole, tmp_path)
    content = json.loads((tmp_path / "sweep.json").read_text())
    by_number = {trial["number"]: trial for trial in content["trials"]}
    assert len(by_number) == 24
    text = (tmp_path / "sweep.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 24
    for row in rows[:-1]:
        trial = by_number[int(row[0].removeprefix("| "))]
        assert row[4] == f"{trial['value']:.2f}"
        assert [row[1], row[2]] == [f"{trial['parameters'][n]:g}" for n in whole.parameters[:2]]
    assert content["best"] == int(rows[0][0].removeprefix("| "))
    assert rows[-1][4] == "failed: out of memory \\| [bold]"
    assert "**Best: f1 83.89 with --temperature 8.0 --distillation_loss_weight 0.5" in text
    assert "higher is better" in text
    output = StringIO()
    print_rows("t", whole.header(), whole.rows(), Console(file=output, width=150))
    assert "out of memory | [bold]" in output.getvalue()


def test_without_a_complete_trial_there_is_a_table_and_no_picture(tmp_path: Path) -> None:
    failed = report(trials=[report().trials[3]])
    assert [path.name for path in write_sweep(failed, tmp_path)] == ["sweep.json", "sweep.md"]
    assert "No trial came to an end." in (tmp_path / "sweep.md").read_text()
    assert json.loads((tmp_path / "sweep.json").read_text())["best"] is None


def test_the_numbers_of_the_heat_map_are_those_of_the_table() -> None:
    whole = report()
    maps = heat_maps(whole)
    assert [one.title for one in maps] == ["distillation_loss: mse", "distillation_loss: kl_div"]
    failed = tuple(whole.trials[3].parameters.values())
    for one in maps:
        assert (one.columns, one.rows) == (list(TEMPERATURES), list(WEIGHTS))
        loss = one.title.rpartition(" ")[2]
        for row, w in zip(one.cells, WEIGHTS, strict=True):
            for cell, t in zip(row, TEMPERATURES, strict=True):
                assert cell == (None if (t, w, loss) == failed else worth(t, w, loss))


def luminance(color: Any) -> float:
    """As WCAG 2.2 defines it."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in map(float, color)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("lower", [False, True])
def test_each_cell_is_drawn_with_its_number_and_the_best_is_framed(lower: bool) -> None:
    whole = report(lower_is_better=lower)
    figure = sweep_figure(whole)
    panels = figure.axes[:2]
    framed = []
    for panel, one in zip(panels, heat_maps(whole), strict=True):
        assert panel.get_title() == one.title
        assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2", "8"]
        assert panel.get_xlabel() == "temperature"
        drawn = {(int(t.get_position()[0]), int(t.get_position()[1])): t for t in panel.texts}
        (image,) = panel.images
        colors = image.to_rgba(image.get_array())
        for y, row in enumerate(one.cells):
            for x, cell in enumerate(row):
                if cell is None:
                    assert (x, y) not in drawn
                    continue
                text = drawn[(x, y)]
                assert text.get_text() == f"{cell:.2f}"
                of_cell = luminance(colors[y, x, :3])
                lower_one, higher = sorted((of_cell, luminance(to_rgb(text.get_color()))))
                assert (higher + 0.05) / (lower_one + 0.05) > 4  # it can be read
        frames = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
        framed += [(one, int(p.get_x() + 0.5), int(p.get_y() + 0.5)) for p in frames]
    heights = [label.get_text() for label in panels[0].get_yticklabels()]
    assert heights == ["0", "0.25", "0.5", "1"]
    bottom, top = panels[0].get_ylim()
    assert bottom < top  # small numbers are at the bottom
    ((one, x, y),) = framed
    best = whole.best()
    assert best is not None and one.cells[y][x] == best.value
    assert figure.axes[0].get_ylabel() == "distillation_loss_weight"
    assert ("lower is better" in figure.get_suptitle()) is lower


def test_what_is_no_axis_is_averaged() -> None:
    trials = [
        TrialReport(i, {"a": a, "b": b, "rate": rate}, (a + 10 * b + 100 * rate,))
        for i, (a, b, rate) in enumerate(itertools.product((1, 2, 3), (1, 2, 3), (0.1, 0.5)))
    ]
    whole = report(trials=trials, parameters=["rate", "a", "b"])
    axes, split = axes_of(whole)
    assert [axis.name for axis in axes] == ["a", "b"] and split is None
    (one,) = heat_maps(whole)
    assert one.cells[2][0] == pytest.approx(1 + 30 + 100 * 0.3)
    assert "mean over rate" in sweep_figure(whole).get_suptitle()


def test_of_equally_many_values_numbers_are_axes() -> None:
    trials = [
        TrialReport(i, {"loss": loss, "t": t, "w": w}, (float(i),))
        for i, (loss, t, w) in enumerate(itertools.product("ab", (1, 2), (0, 1)))
    ]
    axes, split = axes_of(report(trials=trials, parameters=["loss", "t", "w"]))
    assert [axis.name for axis in axes] == ["t", "w"]
    assert split is not None and split.values == ["a", "b"]


@pytest.mark.parametrize(
    "values",
    [[1, 2, 4], [1e-5, 1e-4, 1e-3], ["kl_div", "mse", None], [True, False], [3.0]],
    ids=str,
)
@pytest.mark.parametrize("lower", [False, True])
def test_one_option_is_a_line(values: list[Any], lower: bool, tmp_path: Path) -> None:
    whole = of(values, lower_is_better=lower)
    panel = sweep_figure(whole).axes[0]
    (line,) = panel.lines
    assert list(line.get_ydata()) == [trial.value for trial in whole.trials]
    assert panel.get_xlabel() == "option" and panel.get_ylabel() == "f1"
    assert panel.get_xscale() == ("log" if values[0] == 1e-5 else "linear")
    best = whole.best()
    assert best is not None and best.value is not None
    (circle,) = panel.collections
    assert circle.get_offsets()[0][1] == best.value
    assert plot_sweep(whole, tmp_path / "one.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="two options"):
        heat_maps(whole)


def test_values_from_a_range_are_points() -> None:
    trials = [
        TrialReport(i, {"rate": 1e-5 * 1.3**i, "w": (i * 7 % 20) / 20}, (float(i),))
        for i in range(20)
    ]
    panel = sweep_figure(report(trials=trials, parameters=["rate", "w"])).axes[0]
    points, circle = panel.collections
    assert points.get_offsets().tolist() == [list(t.parameters.values()) for t in trials]
    assert points.get_array().tolist() == [trial.value for trial in trials]
    assert circle.get_offsets().tolist() == [list(trials[-1].parameters.values())]
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "linear")


def test_of_equals_one_alone_is_framed() -> None:
    trials = [
        TrialReport(i, {"a": a, "b": b}, (float(b == 2),))
        for i, (a, b) in enumerate(itertools.product((1, 2, 3), (1, 2, 3)))
    ]
    panel = sweep_figure(report(trials=trials, parameters=["a", "b"])).axes[0]
    (frame,) = (patch for patch in panel.patches if isinstance(patch, Rectangle))
    assert (frame.get_x() + 0.5, frame.get_y() + 0.5) == (0, 1)


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_where_a_metric_is_not_defined_in_a_resample_nothing_is_known_of_noise(
    undefined: float | None,
) -> None:
    """A correlation has no value in a resample of equal rows; JSON has null for it."""
    known = [1.0, 2.0, 3.0]
    trials = [
        TrialReport(0, {"temperature": 1.0}, (0.9,), replicates=known),
        TrialReport(1, {"temperature": 2.0}, (0.8,), replicates=[1.0, undefined, 3.0]),  # type: ignore[list-item]
        TrialReport(2, {"temperature": 4.0}, (0.9,), replicates=[undefined] * 3),  # type: ignore[list-item]
        TrialReport(3, {"temperature": 8.0}, (0.7,), replicates=known),
    ]
    made = report(trials=trials, parameters=["temperature"])
    assert [one.number for one in made.equals()] == [2, 3]
    assert "95% interval" in made.to_markdown()


def test_searched_paths_are_named_by_their_last_part(tmp_path: Path) -> None:
    values = [str(tmp_path / "a"), str(tmp_path / "b")]
    trials = [TrialReport(n, {"student_model": v}, (n + 1.0,)) for n, v in enumerate(values)]
    made = report(trials=trials, parameters=["student_model"])
    for text in (made.to_markdown(), made.headline(), json.dumps(made.to_dict())):
        assert str(tmp_path) not in text and "b" in text
