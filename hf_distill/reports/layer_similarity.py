"""Similarity of the layers of teacher and student: a table and a heat map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from hf_distill.files import write_atomically
from hf_distill.layers.mapping import LayerPair
from hf_distill.plotting import draw_cells, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In more cells than this figures cannot be read.
_MOST_FIGURES = 400


def similarity_table(similarity: Tensor, pairs: Sequence[LayerPair] = ()) -> str:
    """Return a line for each student layer, ``*`` at the chosen pairs; all are equally long."""
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
    """Write ``similarity_figure`` to ``path``, whose ending is the format, and return it."""
    return write_atomically(path, similarity_figure(similarity, pairs).savefig)


def similarity_figure(similarity: Tensor, pairs: Sequence[LayerPair]) -> Figure:
    """Draw linear CKA as a heat map, with a frame around the chosen pairs.

    ``similarity`` is ``(student layers + 1, teacher layers + 1)``, at most 1; row and column 0 are
        the embedding outputs.
    """
    rows, columns = similarity.shape
    readable = similarity.numel() <= _MOST_FIGURES
    cell = 0.5 if readable else 0.3
    figure = new_figure(2.6 + cell * columns, 1.9 + cell * rows)
    panel = figure.subplots()
    text = "{:.2f}".format if readable else None
    framed = [(pair.teacher, pair.student) for pair in pairs]
    image = draw_cells(panel, similarity.tolist(), text, framed, cmap="viridis", vmin=0.0, vmax=1.0)
    panel.set_xlabel("teacher layer (0: embedding output)")
    panel.set_ylabel("student layer")
    panel.set_xticks(range(columns))
    panel.set_yticks(range(rows))
    title = "similarity of layers (linear CKA)"
    panel.set_title(f"{title}, chosen pairs framed" if pairs else title, fontsize=10)
    figure.colorbar(image, ax=panel)
    return figure
