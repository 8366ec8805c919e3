"""How alike the layers of teacher and student are: a table and a heat map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hf_distill.files import write_atomically
from hf_distill.layers.mapping import LayerPair
from hf_distill.plotting import new_figure

# In more cells than this figures cannot be read.
_MOST_FIGURES = 400


def similarity_table(similarity: Tensor, pairs: Sequence[LayerPair] = ()) -> str:
    """The similarities as text: a line for each student layer, ``*`` at the chosen pairs.

    Args:
        similarity: ``(student layers + 1, teacher layers + 1)``; row and column 0 are the
            embedding outputs.
        pairs: the chosen pairs.

    Returns:
        Lines of equal length, with a header.
    """
    rows, columns = similarity.shape
    marked = {tuple(pair) for pair in pairs}
    header = "student \\ teacher" + "".join(f"{layer:>6} " for layer in range(columns))
    lines = [header]
    for student in range(rows):
        cells = "".join(
            f"{float(similarity[student, teacher]):>6.2f}"
            + ("*" if (student, teacher) in marked else " ")
            for teacher in range(columns)
        )
        lines.append(f"{student:>17}{cells}")
    return "\n".join(lines)


def plot_layer_similarity(
    similarity: Tensor, pairs: Sequence[LayerPair], path: str | os.PathLike[str]
) -> Path:
    """Draw the similarities as a heat map, with a frame around the chosen pairs.

    Args:
        similarity: ``(student layers + 1, teacher layers + 1)``, linear CKA, at most 1; row and
            column 0 are the embedding outputs.
        pairs: the chosen pairs.
        path: the image to write, replaced if it is there. The ending says the format (.png, .svg).

    Returns:
        ``path``.

    Raises:
        OSError: if it cannot be written.
    """
    rows, columns = similarity.shape
    values = similarity.double().cpu().numpy()
    cell = 0.5 if values.size <= _MOST_FIGURES else 0.3
    figure = new_figure(2.6 + cell * columns, 1.9 + cell * rows)
    panel = figure.subplots()
    image = panel.imshow(
        values, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest"
    )
    if values.size <= _MOST_FIGURES:
        for student in range(rows):
            for teacher in range(columns):
                value = values[student, teacher]
                color = "black" if value > 0.6 else "white"
                panel.text(
                    teacher, student, f"{value:.2f}", ha="center", va="center", color=color,
                    fontsize=8,
                )  # fmt: skip
    from matplotlib.patches import Rectangle

    for pair in pairs:
        corner = (pair.teacher - 0.5, pair.student - 0.5)
        panel.add_patch(
            Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5, clip_on=False)
        )
    panel.set_xlabel("teacher layer (0: embedding output)")
    panel.set_ylabel("student layer")
    panel.set_xticks(range(columns))
    panel.set_yticks(range(rows))
    title = "similarity of layers (linear CKA)"
    panel.set_title(f"{title}, chosen pairs framed" if pairs else title, fontsize=10)
    figure.colorbar(image, ax=panel)
    return write_atomically(path, figure.savefig)
