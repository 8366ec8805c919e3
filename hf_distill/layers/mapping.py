"""Which layer of the teacher each layer of the student learns from.

Layers are numbered as in transformers' ``hidden_states``: 0 is the embedding output, i the output
of layer i.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LAYER_MAPPINGS = ("uniform", "last", "first")
# Similarities that differ by less are equal: the last digits of a sum depend on the machine.
_ROUNDING = 1e-9


class LayerPair(NamedTuple):
    """A layer of the student and the teacher's layer that it learns from; 0 is the embeddings."""

    student: int
    teacher: int


def layer_pairs(
    mapping: str | Sequence[int] | Mapping[Any, int], *, student_layers: int, teacher_layers: int
) -> list[LayerPair]:
    """The layers that learn from each other, by increasing student layer.

    With M layers in the student and N in the teacher, student layer i = 1 … M learns from

    - ``"uniform"``: i·N/M (TinyBERT, Jiao et al. 2020, §3.2), rounded to the nearest, half up,
      where M does not divide N: 12 → 5 gives 2, 5, 7, 10, 12;
    - ``"last"``: i + N − M, the teacher's last layers;
    - ``"first"``: i, the teacher's first layers;
    - a list ``[2, 4, 6]`` or ``"2,4,6"``: one teacher layer for each student layer, in order;
    - a dict ``{1: 2, 3: 6}`` or ``"1:2,3:6"``: student layer to teacher layer, for some of them.

    The pair of the embedding outputs (0, 0) comes first, except that a dict says all there is: it
    has that pair only with ``0: 0`` in it. Lists and dicts may name a teacher layer twice and in
    any order. Text may also be JSON: ``"[2, 4, 6]"``, ``'{"1": 2}'``.

    Args:
        mapping: one of the above.
        student_layers: M, without the embeddings; at least 1.
        teacher_layers: N, without the embeddings; at least 1.

    Raises:
        ValueError: if the mapping cannot be read; if a named one is asked for a student with more
            layers than the teacher; if a list has not M entries; if a layer does not exist, or
            a pair is of embeddings and a layer.

    Example::

        >>> layer_pairs("1:2,3:6", student_layers=3, teacher_layers=6)
        [LayerPair(student=1, teacher=2), LayerPair(student=3, teacher=6)]
    """
    for name, layers in (("student_layers", student_layers), ("teacher_layers", teacher_layers)):
        if layers < 1:
            raise ValueError(f"{name} must be at least 1, but it is {layers}.")
    if isinstance(mapping, str) and mapping.strip() in LAYER_MAPPINGS:
        return _named(mapping.strip(), student_layers, teacher_layers)
    explicit = _parse(mapping) if isinstance(mapping, str) else mapping
    if isinstance(explicit, Mapping):
        pairs = sorted(
            LayerPair(_layer(student, mapping), _layer(teacher, mapping))
            for student, teacher in explicit.items()
        )
        if len({pair.student for pair in pairs}) < len(pairs):
            raise ValueError(f"layer_mapping={mapping!r} names a student layer twice.")
    elif isinstance(explicit, Sequence):
        if len(explicit) != student_layers:
            raise ValueError(
                f"layer_mapping={mapping!r} names {len(explicit)} teacher layers, but the student "
                f"has {student_layers} layers: name one for each, without the embeddings, or "
                f"those that you want as student:teacher, such as '{student_layers}:"
                f"{teacher_layers}'."
            )
        pairs = [LayerPair(0, 0)]
        pairs += [LayerPair(i, _layer(layer, mapping)) for i, layer in enumerate(explicit, start=1)]
    else:
        raise _unreadable(mapping)
    if not pairs:
        raise ValueError(f"layer_mapping={mapping!r} names no layer: name at least one pair.")
    _check_range(pairs, mapping, student_layers, teacher_layers)
    return pairs


def describe(
    pairs: Sequence[LayerPair],
    mapping: object = None,
    *,
    student_layers: int,
    teacher_layers: int,
) -> str:
    """One line for the log: the pairs, and whether ``uniform`` had to round.

    Args:
        pairs: from ``layer_pairs``.
        mapping: what they were made from.
        student_layers: M, without the embeddings.
        teacher_layers: N, without the embeddings.
    """
    listed = ", ".join(f"{pair.student} from {pair.teacher}" for pair in pairs)
    text = f"Student layers learn from teacher layers (0 is the embedding output): {listed}."
    if mapping == "uniform" and teacher_layers % student_layers:
        text += (
            f" The teacher's {teacher_layers} layers do not divide by the student's "
            f"{student_layers}, so each is the nearest one."
        )
    return text


def _named(name: str, student_layers: int, teacher_layers: int) -> list[LayerPair]:
    if student_layers > teacher_layers:
        nearest = [max(1, _nearest(i, student_layers, teacher_layers))
                   for i in range(1, student_layers + 1)]  # fmt: skip
        raise ValueError(
            f"layer_mapping={name!r} needs a teacher with at least as many layers as the student, "
            f"but the teacher has {teacher_layers} and the student {student_layers}: name the "
            f"teacher layers yourself, layer_mapping='{','.join(map(str, nearest))}', or only some "
            f"pairs, layer_mapping='{student_layers}:{teacher_layers}'."
        )
    layers = range(student_layers + 1)
    if name == "uniform":
        return [LayerPair(i, _nearest(i, student_layers, teacher_layers)) for i in layers]
    shift = teacher_layers - student_layers if name == "last" else 0
    return [LayerPair(i, i + shift if i else 0) for i in layers]


def _nearest(layer: int, student_layers: int, teacher_layers: int) -> int:
    """``layer · N/M``, rounded half up, in integers."""
    return (2 * layer * teacher_layers + student_layers) // (2 * student_layers)


def _parse(text: str) -> object:
    stripped = text.strip()
    try:
        if stripped.startswith(("[", "{")):
            return json.loads(stripped, object_pairs_hook=_distinct)
        parts = [part.strip() for part in stripped.split(",")]
        if all(":" in part for part in parts):
            return _distinct([(int(a), int(b)) for a, b in (part.split(":") for part in parts)])
        return [int(part) for part in parts]
    except ValueError as error:
        raise _unreadable(text) from error


def _distinct(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
    if len(dict(items)) < len(items):
        raise ValueError("a layer is named twice")
    return dict(items)


def _layer(value: object, mapping: object) -> int:
    """The number of a layer: an int, or the text that JSON has for the key of an object."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError as error:
            raise _unreadable(mapping) from error
    if isinstance(value, bool) or not isinstance(value, int):
        raise _unreadable(mapping)
    return value


def _unreadable(mapping: object) -> ValueError:
    return ValueError(
        f"layer_mapping={mapping!r} is no layer mapping: use one of "
        f"{', '.join(map(repr, LAYER_MAPPINGS))}, a teacher layer for each student layer, as "
        "'2,4,6', or student:teacher pairs, each student layer once, as '1:2,3:6'."
    )


def _check_range(
    pairs: Sequence[LayerPair], mapping: object, student_layers: int, teacher_layers: int
) -> None:
    for pair in pairs:
        for who, layer, layers in (
            ("student", pair.student, student_layers),
            ("teacher", pair.teacher, teacher_layers),
        ):
            if not 0 <= layer <= layers:
                raise ValueError(
                    f"layer_mapping={mapping!r} names layer {layer} of the {who}, which has layers "
                    f"1 to {layers}, and 0 for the embedding output."
                )
        if (pair.student == 0) != (pair.teacher == 0):
            raise ValueError(
                f"layer_mapping={mapping!r} pairs student layer {pair.student} with teacher layer "
                f"{pair.teacher}: 0 is the embedding output, which pairs only with the other "
                "model's embedding output."
            )


def linear_cka(x: Tensor, y: Tensor) -> float:
    """How alike two representations of the same tokens are, from 0 to 1: linear CKA.

    ``‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)``, Frobenius norms, X and Y centred (Kornblith et al. 2019, §3). Blind
    to rotation, to isotropic scaling and to shifts; the widths may differ. With not many more
    tokens than the width even unrelated representations are well above 0: ``LayerSimilarity`` has
    an estimate without that bias.

    Args:
        x: ``(tokens, width_x)``.
        y: ``(tokens, width_y)``.

    Returns:
        The similarity; 0 if one of the two is the same for all tokens. In float64.

    Raises:
        ValueError: if they are no matrices of equally many tokens.
    """
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        raise ValueError(
            "x and y must be (tokens, width) of the same tokens, but their shapes are "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    x, y = (_double(values) - _double(values).mean(0) for values in (x, y))
    own = (x.mT @ x).norm() * (y.mT @ y).norm()
    return float((x.mT @ y).square().sum() / own) if own > 0 else 0.0


class LayerSimilarity:
    """Linear CKA of each layer of the student with each layer of the teacher, over many batches.

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


def _double(values: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).detach().double()


def _centred_products(layers: Sequence[Tensor], group: Tensor) -> Tensor:
    """``X Xᵀ`` of some tokens, U-centred: ``(layers, tokens²)``.

    The inner product of two such rows, over n (n − 3), is the unbiased estimate (Székely and
    Rizzo 2014, eq. 2.2 and 2.3).
    """
    size = len(group)
    products = []
    for states in layers:
        x = _double(states.flatten(0, -2)[group.to(states.device)])
        x = x - x.mean(0)
        gram = x @ x.mT
        gram.fill_diagonal_(0.0)
        sums = gram.sum(-1) / (size - 2)
        gram -= sums[:, None] + sums - sums.sum() / (size - 1)
        products.append(gram.fill_diagonal_(0.0).flatten())
    return torch.stack(products)
