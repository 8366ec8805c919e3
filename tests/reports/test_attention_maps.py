from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread

from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.samples import RecordedLayers, RecordedSample
from hf_distill.reports.attention_maps import plot_attention

PAIR = LayerPair(1, 3)


def sample(length: int = 6, *, tokens: list[str] | None = None) -> RecordedSample:
    def layers(layer: int, heads: int) -> RecordedLayers:
        scores = torch.randn(heads, length, length, generator=torch.Generator().manual_seed(layer))
        return RecordedLayers(attention={layer: scores.mul(2).softmax(-1)})

    return RecordedSample(
        1500, [PAIR], torch.arange(length), layers(3, heads=4), layers(1, heads=2), tokens
    )


@pytest.fixture
def panels(saved_figure: Any, tmp_path: Path) -> Any:
    """Draws a sample and returns the teacher's and the student's panel."""

    def draw(what: RecordedSample, **options: Any) -> list[Axes]:
        path = tmp_path / "attention.png"
        with saved_figure() as figures:
            assert plot_attention(what, PAIR, path, **options) == path
        assert imread(path).shape[0] > 400
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        teacher, student, _ = figures[0].axes
        return [teacher, student]

    return draw


@pytest.mark.parametrize("head", [None, 1])
def test_each_panel_shows_its_model(panels: Any, head: int | None) -> None:
    what = sample()
    for panel, who, layer in zip(panels(what, head=head), ("teacher", "student"), (3, 1),
                                 strict=True):  # fmt: skip
        attention = what.attention(who, layer)
        expected = attention.mean(0) if head is None else attention[1]
        torch.testing.assert_close(torch.as_tensor(panel.images[0].get_array()), expected)
        title = panel.get_title()
        assert f"{who}, layer {layer}" in title
        assert (f"mean of {len(attention)}" if head is None else f"head 1 of {len(attention)}") in (
            title
        )


def test_one_scale_for_both_that_an_outlier_does_not_spoil(panels: Any) -> None:
    what = sample(40)
    what.teacher.attention[3][:, 0] = 0.0
    what.teacher.attention[3][:, 0, 0] = 1.0
    teacher, student = (panel.images[0].norm for panel in panels(what))
    assert (teacher.vmin, teacher.vmax) == (student.vmin, student.vmax)
    others = (what.attention("teacher", 3).mean(0)[1:], what.attention("student", 1).mean(0))
    assert 0.1 < teacher.vmax <= max(float(other.max()) for other in others) < 1


def test_peaked_heads_keep_their_scale(panels: Any) -> None:
    """Few cells of a long map are not 0, and those are all that there is to see."""
    what = sample(60)
    what.teacher.attention[3] = torch.eye(60).repeat(4, 1, 1)
    assert panels(what)[0].images[0].norm.vmax == 1.0


def test_tokens_are_written_as_they_are(panels: Any) -> None:
    tokens = ["[CLS]", "$", "a_b", "$", "##ing", "\\frac"]
    teacher, student = panels(sample(tokens=tokens))
    for labels in (
        teacher.get_yticklabels(),  # the student's rows are the same
        teacher.get_xticklabels(),
        student.get_xticklabels(),
    ):
        assert [label.get_text() for label in labels] == tokens
        assert not any(label.get_parse_math() for label in labels)


def test_long_sentences_carry_evenly_spaced_tokens(panels: Any) -> None:
    for panel in panels(sample(100, tokens=[f"word{i}" for i in range(100)])):
        ticks = dict(zip(panel.get_xticks(), panel.get_xticklabels(), strict=True))
        assert {place: text.get_text() for place, text in ticks.items()} == {
            place: f"word{place}" for place in range(0, 100, 3)
        }


def test_without_texts_the_token_ids_are_shown(panels: Any) -> None:
    what = sample(6)
    for panel in panels(what):
        assert [t.get_text() for t in panel.get_xticklabels()] == [
            str(number) for number in what.input_ids.tolist()
        ]


@pytest.mark.parametrize(
    ("pair", "head", "message"),
    [
        (PAIR, 2, "head=2: the student has the heads 0 to 1"),
        (PAIR, -1, "head=-1: the teacher has the heads 0 to 3"),
        (LayerPair(1, 2), None, r"layer=2.*teacher.*\[3\]"),
    ],
)
def test_what_is_not_there(tmp_path: Path, pair: LayerPair, head: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_attention(sample(), pair, tmp_path / "attention.png", head=head)
    assert not list(tmp_path.iterdir())
