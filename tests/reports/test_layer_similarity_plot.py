from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from hf_distill.layers.mapping import LayerPair
from hf_distill.reports.layer_similarity import plot_layer_similarity, similarity_table

PAIRS = [LayerPair(0, 0), LayerPair(1, 2)]
SIMILARITY = torch.tensor([[1.0, 0.5, -0.02], [0.25, 0.75, 0.875]], dtype=torch.float64)


@pytest.mark.parametrize("pairs", [PAIRS, []])
def test_heat_map(saved_figure: Any, tmp_path: Path, pairs: list[LayerPair]) -> None:
    path = tmp_path / "similarity.png"
    with saved_figure() as figures:
        assert plot_layer_similarity(SIMILARITY, pairs, path) == path
    assert imread(path).shape[0] > 300
    panel = figures[0].axes[0]
    (image,) = panel.images
    assert torch.equal(torch.as_tensor(image.get_array()), SIMILARITY)
    assert "teacher" in panel.get_xlabel() and "student" in panel.get_ylabel()
    frames = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
    middles = {(frame.get_x() + 0.5, frame.get_y() + 0.5) for frame in frames}
    assert middles == {(pair.teacher, pair.student) for pair in pairs}
    assert ("framed" in panel.get_title()) == bool(pairs)
    figures_at = {text.get_position(): text.get_text() for text in panel.texts}
    assert figures_at[(2, 1)] == "0.88" and len(figures_at) == 6


def test_big_maps_have_no_figures(saved_figure: Any, tmp_path: Path) -> None:
    with saved_figure() as figures:
        plot_layer_similarity(torch.rand(17, 33), PAIRS, tmp_path / "similarity.png")
    assert not figures[0].axes[0].texts


def test_table() -> None:
    assert similarity_table(SIMILARITY, PAIRS).splitlines() == [
        "student \\ teacher     0      1      2 ",
        "                0  1.00*  0.50  -0.02 ",
        "                1  0.25   0.75   0.88*",
    ]
    assert "*" not in similarity_table(SIMILARITY)
