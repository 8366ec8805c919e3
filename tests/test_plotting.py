from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from hf_distill.plotting import add_loss_plot, plot_losses


@pytest.fixture
def panels(saved_figure: Any, tmp_path: Path) -> Any:
    """Draws a log and returns the visible panels by the loss that they show."""

    def draw(log_history: list[dict[str, float]]) -> dict[str, Axes]:
        with saved_figure() as figures:
            path = plot_losses(log_history, tmp_path / "losses.png")
        assert imread(path).shape[0] > 300
        axes = [panel for panel in figures[0].axes if panel.get_visible()]
        return {panel.get_title().split(":")[0]: panel for panel in axes}

    return draw


def curves(panel: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        line.get_label(): list(zip(*map(list, line.get_data()), strict=True))
        for line in panel.lines
    }


def test_each_part_over_the_steps(panels: Any) -> None:
    log = [
        {"step": 5, "loss": 4.0, "loss_task": 1.0, "loss_hidden_states": 3.0, "loss_attention": 2.0,
         "learning_rate": 0.1},
        {"step": 10, "eval_loss": 9.0, "eval_loss_task": 1.5, "eval_loss_hidden_states": 3.5},
        {"step": 10, "loss": 3.0, "loss_task": 0.5, "loss_hidden_states": 2.0,
         "loss_attention": 1.0},
        {"step": 10, "train_runtime": 3.0, "train_loss": 2.0},
    ]  # fmt: skip
    drawn = panels(log)
    assert {name: curves(panel) for name, panel in drawn.items()} == {
        "loss": {"training": [(5, 4.0), (10, 3.0)]},
        "loss_task": {"training": [(5, 1.0), (10, 0.5)], "evaluation": [(10, 1.5)]},
        "loss_hidden_states": {"training": [(5, 3.0), (10, 2.0)], "evaluation": [(10, 3.5)]},
        "loss_attention": {"training": [(5, 2.0), (10, 1.0)]},
    }
    for panel in drawn.values():
        assert panel.get_xlabel() == "step" and panel.get_xlim()[0] == 0
        assert panel.get_yscale() == "linear"


@pytest.mark.parametrize(("last", "scale"), [(0.001, "log"), (0.5, "linear"), (-1.0, "linear"),
                                             (0.0, "linear")])  # fmt: skip
def test_scale_is_logarithmic_where_a_loss_falls_by_far(
    panels: Any, last: float, scale: str
) -> None:
    log = [{"step": 1, "loss_hidden_states": 1.0}, {"step": 2, "loss_hidden_states": last}]
    assert panels(log)["loss_hidden_states"].get_yscale() == scale


def test_evaluation_alone_is_drawn(panels: Any) -> None:
    drawn = panels([{"step": 0, "eval_loss": 2.0, "eval_loss_prediction": 1.0}])
    assert {name: curves(panel) for name, panel in drawn.items()} == {
        "loss_prediction": {"evaluation": [(0, 1.0)]}
    }


@pytest.mark.parametrize("log", [[], [{"step": 3, "train_loss": 1.0, "eval_loss": 1.0}]])
def test_nothing_to_draw(tmp_path: Path, log: list[dict[str, float]]) -> None:
    with pytest.raises(ValueError, match="log_history has no loss.*logging_steps"):
        plot_losses(log, tmp_path / "losses.png")
    assert not list(tmp_path.iterdir())


def test_a_sum_of_one_part_is_not_drawn_twice(panels: Any) -> None:
    log = [{"step": step, "loss": 4.0 / step, "loss_prediction": 4.0 / step} for step in (1, 2)]
    assert list(panels(log)) == ["loss_prediction"]


def test_a_model_card_can_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = [{"step": 1, "loss": 2.0}]
    add_loss_plot([{"step": 3, "train_loss": 1.0}], tmp_path / "losses.png")
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patches:
        patches.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r'pip install "hf-distill\[plots\]"'):
            plot_losses(log, tmp_path / "losses.png")
        add_loss_plot(log, tmp_path / "losses.png")
    assert not list(tmp_path.iterdir()) and "no losses.png" in caplog.text
    add_loss_plot(log, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").is_file()
