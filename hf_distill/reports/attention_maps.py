"""Pictures of the attention of teacher and student."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from hf_distill.files import write_atomically
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.samples import RecordedSample, Who
from hf_distill.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# More tokens than this cannot be read next to a map.
_MOST_LABELS = 48


def plot_attention(
    sample: RecordedSample,
    pair: LayerPair,
    path: str | os.PathLike[str],
    *,
    head: int | None = None,
) -> Path:
    """Write the picture of ``attention_figure``.

    Args:
        sample: with the attention of both layers.
        pair: which layers; from 1.
        path: the image, which is returned; its ending is the format (.png, .svg).
        head: the head of both models, from 0; ``None`` is the mean of all heads.

    Raises:
        ValueError: the attention of a layer was not recorded, or has no such head.
    """
    return write_atomically(path, attention_figure(sample, pair, head=head).savefig)


def attention_figure(sample: RecordedSample, pair: LayerPair, *, head: int | None = None) -> Figure:
    """Draw the attention maps of a layer pair, teacher and student side by side, on one scale.

    A row is a token that looks, a column one that is looked at. For small weights to be visible,
    the colour goes with the square root, and up to the largest weight of most rows: of 95 % of
    them. Rows and columns carry the tokens, evenly spaced ones if there are more than 48.

    Raises:
        ValueError: the attention of a layer was not recorded, or has no such head.
    """
    maps = {who: sample.attention(who, getattr(pair, who)) for who in get_args(Who)}
    chosen = {who: _chosen(attention, head, who) for who, attention in maps.items()}
    length = chosen["teacher"].shape[-1]
    labels = sample.tokens or [str(number) for number in sample.input_ids.tolist()]
    side = 2.2 + 0.14 * min(length, _MOST_LABELS)
    figure = new_figure(2 * side + 1.0, side + 0.6)
    panels = figure.subplots(1, 2, sharey=True)
    from matplotlib import colors

    peaks = torch.cat([attention.amax(-1) for attention in chosen.values()])
    norm = colors.PowerNorm(0.5, vmin=0.0, vmax=float(peaks.quantile(0.95)))
    images = []
    for panel, (who, attention) in zip(panels, chosen.items(), strict=True):
        images.append(_draw(panel, attention, labels, norm))
        heads = len(maps[who])
        shown = f"mean of {heads} heads" if head is None else f"head {head} of {heads}"
        panel.set_title(f"{who}, layer {getattr(pair, who)} ({shown})", fontsize=10)
    panels[0].set_ylabel("from")
    figure.colorbar(images[0], ax=panels, label="attention", fraction=0.04, pad=0.02, extend="max")
    figure.suptitle(f"attention at step {sample.step:,}", fontsize=11)
    return figure


def _chosen(attention: Tensor, head: int | None, who: str) -> Tensor:
    if head is None:
        return attention.mean(0)
    if not 0 <= head < len(attention):
        raise ValueError(
            f"head={head}: the {who} has the heads 0 to {len(attention) - 1} in this layer; "
            "None is the mean of all."
        )
    return attention[head]


def _draw(panel: Axes, attention: Tensor, labels: list[str], norm: Normalize) -> AxesImage:
    image = panel.imshow(attention.cpu().numpy(), norm=norm, cmap="Blues", interpolation="nearest")
    panel.set_xlabel("to")
    places = range(0, len(labels), -(-len(labels) // _MOST_LABELS))
    # A dollar sign is a token like any other, not a formula.
    style: dict[str, Any] = {"fontsize": 7, "parse_math": False}
    shown = [labels[place] for place in places]
    panel.set_xticks(places, shown, rotation=90, **style)
    panel.set_yticks(places, shown, **style)
    panel.tick_params(length=0 if len(places) == len(labels) else 2)
    return image
