"""Similarity of layers by linear CKA, and the pairs that it suggests (``layer_mapping="auto"``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_distill.layers.mapping import LayerPair
from hf_distill.least_squares import as_float64

# Similarities that differ by less are equal: the last digits of a sum depend on the machine.
_ROUNDING = 1e-9


class LayerSimilarity:
    """Linear CKA of each layer of the student with each layer of the teacher, over many batches.

    From 0 to 1, blind to rotation, isotropic scaling and shifts; widths may differ (Kornblith et
    al. 2019, §3). By its plain formula even unrelated layers are well above 0 with not many more
    tokens than the width.
    The tokens of a batch are compared in random groups of up to ``group_size``, each by the
    unbiased estimate of the Hilbert–Schmidt independence criterion (Song et al. 2012, eq. 5), and
    the means of those over the groups make the CKA (Nguyen et al. 2021, §2). So unrelated layers
    are near 0 however few the tokens are, and nothing but ``(layers, layers)`` sums is kept
    between batches; one batch needs ``group_size²`` float64 a layer.

    Args:
        group_size: tokens that are compared with each other; at least 4.
    """

    def __init__(self, group_size: int = 512) -> None:
        if group_size < 4:
            raise ValueError(f"group_size must be at least 4, but it is {group_size}.")
        self.group_size = group_size
        self.tokens = 0
        """Tokens compared so far."""
        self._cross: Tensor | None = None
        self._own: dict[str, Tensor] = {}
        # Groups of neighbours would be of one sentence; a fixed order is the same on all processes.
        self._random = torch.Generator().manual_seed(0)

    def add(
        self,
        student_hidden_states: Sequence[Tensor],
        teacher_hidden_states: Sequence[Tensor],
        *,
        token_mask: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            student_hidden_states: ``(batch, length, width)`` each, the embedding output first.
            teacher_hidden_states: the teacher's for the same tokens.
            token_mask: ``(batch, length)`` bool, True for valid tokens; ``None``: all are.

        Raises:
            ValueError: if batch or length are not the same everywhere, or a valid token's values
                are not finite.
        """
        models = {"student": student_hidden_states, "teacher": teacher_hidden_states}
        shapes = {tuple(states.shape[:-1]) for layers in models.values() for states in layers}
        if len(shapes) != 1:
            raise ValueError(
                "student_hidden_states and teacher_hidden_states must be of the same tokens in all "
                f"layers, but their (batch, length) are {sorted(shapes)}: use another "
                "layer_mapping than 'auto'."
            )
        (shape,) = shapes
        mask = torch.ones(shape, dtype=torch.bool) if token_mask is None else token_mask.cpu()
        valid = mask.flatten().nonzero()[:, 0]
        valid = valid[torch.randperm(len(valid), generator=self._random)]
        for group in valid.chunk(max(1, -(-len(valid) // self.group_size))):
            if len(group) < 4:
                continue
            centred = {who: _centred_products(layers, group) for who, layers in models.items()}
            # Each product weighs as much as the group has tokens.
            weight = 1.0 / (len(group) - 3)
            cross = weight * (centred["student"] @ centred["teacher"].mT).cpu()
            if not torch.isfinite(cross).all():
                raise ValueError("the hidden states of a valid token are NaN or infinite.")
            self._cross = cross if self._cross is None else self._cross + cross
            for who, rows in centred.items():
                own = weight * rows.square().sum(-1).cpu()
                self._own[who] = self._own[who] + own if who in self._own else own
            self.tokens += len(group)

    def matrix(self) -> Tensor:
        """The similarities.

        Returns:
            ``(student layers + 1, teacher layers + 1)`` float64 on the CPU, at most 1, about 0
            for unrelated layers. A layer that is the same for all tokens has 0.

        Raises:
            ValueError: if no batch with at least 4 valid tokens was added.
        """
        if self._cross is None:
            raise ValueError("no batch with at least 4 valid tokens was added: add more data.")
        own = self._own["student"].sqrt()[:, None] * self._own["teacher"].sqrt()
        return torch.where(own > 0, self._cross / own, 0.0)


def suggest_layer_pairs(similarity: Tensor) -> list[LayerPair]:
    """The pairs that are most alike in total, of all that rise in both models.

    What counts for a teacher layer is how much more a student layer resembles it than the student's
    layers, embeddings included, do on average: the first layers of a trained teacher resemble all
    layers more than its last ones do, and without that every student would get ``"first"``.

    Args:
        similarity: ``(student layers + 1, teacher layers + 1)``, as ``LayerSimilarity.matrix``
            gives it.

    Returns:
        A pair for each student layer, after that of the embedding outputs; of equally good ones
        those with the teacher's earlier layers.

    Raises:
        ValueError: if the student has more layers than the teacher, or a similarity is not finite.
    """
    students, teachers = (size - 1 for size in similarity.shape)
    if not 1 <= students <= teachers:
        raise ValueError(
            "layer_mapping='auto' needs a teacher with at least as many layers as the student, and "
            f"at least 1, but the teacher has {teachers} and the student {students}: name the "
            "pairs yourself."
        )
    if not torch.isfinite(similarity).all():
        raise ValueError("similarity must be finite, but it has NaN or infinite entries.")
    scores = (similarity - similarity.mean(0)).tolist()
    # By teacher layer: the best total, and its teacher layers, of the student's first layers when
    # they end there or before.
    best: list[tuple[float, list[int]]] = [(0.0, [])] * (teachers + 1)
    for student in range(1, students + 1):
        longer: list[tuple[float, list[int]]] = [(-float("inf"), [])]
        for teacher in range(1, teachers + 1):
            total, chosen = best[teacher - 1]
            total += scores[student][teacher]
            better = total > longer[-1][0] + _ROUNDING
            longer.append((total, [*chosen, teacher]) if better else longer[-1])
        best = longer
    return [LayerPair(0, 0), *(LayerPair(i, g) for i, g in enumerate(best[-1][1], start=1))]


def _centred_products(layers: Sequence[Tensor], group: Tensor) -> Tensor:
    """``X Xᵀ`` of some tokens, U-centred: ``(layers, tokens²)``.

    The inner product of two such rows, over n (n − 3), is the unbiased estimate (Székely and
    Rizzo 2014, eq. 2.2 and 2.3).
    """
    size = len(group)
    products = []
    for states in layers:
        x = as_float64(states.flatten(0, -2)[group.to(states.device)])
        x = x - x.mean(0)
        gram = x @ x.mT
        gram.fill_diagonal_(0.0)
        sums = gram.sum(-1) / (size - 2)
        gram -= sums[:, None] + sums - sums.sum() / (size - 1)
        products.append(gram.fill_diagonal_(0.0).flatten())
    return torch.stack(products)
