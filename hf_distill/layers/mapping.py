"""Which layer of the teacher each layer of the student learns from.

Layers are numbered as in transformers' ``hidden_states``: 0 is the embedding output, i the output
of layer i.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LAYER_MAPPINGS = ("uniform", "last", "first")

_NAMED = ("encoder", "decoder")

Mappings = str | Sequence[int] | Mapping[Any, Any]


class LayerPair(NamedTuple):
    """A layer of the student and the teacher's layer that it learns from; 0 is the embeddings."""

    student: int
    teacher: int


LayerPairs = list[LayerPair] | dict[str, list[LayerPair]]
"""Those of a model; of one with encoder and decoder those of each, by their names."""


def as_lists(pairs: LayerPairs) -> Any:
    """Return layer pairs as JSON has them."""
    if isinstance(pairs, dict):
        return {stack: as_lists(found) for stack, found in pairs.items()}
    return [list(pair) for pair in pairs]


def mapping_by_stack(mapping: Mappings, stacks: Sequence[str]) -> dict[str, Mappings]:
    """Return the mapping of each stack that is compared.

    One mapping is that of every stack. Encoder and decoder may have mappings of their own:
    ``"encoder=uniform;decoder=1:2,3:6"``, or a dict or JSON
    ``{"encoder": "uniform", "decoder": {1: 2, 3: 6}}``. They say all there is: a stack that is not
    named is not compared.

    Args:
        mapping: as the argument ``layer_mapping``.
        stacks: their names; ``""`` is the only one of a model.

    Raises:
        ValueError: the mapping names a stack that there is not.
    """
    named: Any = mapping
    if isinstance(mapping, str) and ("=" in mapping or mapping.strip().startswith("{")):
        named = _parse(mapping)
    if not isinstance(named, Mapping) or not any(name in _NAMED for name in named):
        return dict.fromkeys(stacks, mapping)
    unknown = [name for name in named if name not in stacks]
    if unknown:
        has, example = " and ".join(stacks), "encoder=2,4,6;decoder=1:2"
        if "" in stacks:
            has, example = "one stack of layers", "2,4,6"
        raise ValueError(
            f"layer_mapping={mapping!r} names {unknown[0]!r}, but the models have {has}: use a "
            f"mapping such as {example!r}."
        )
    return {stack: named[stack] for stack in stacks if stack in named}


def layer_pairs(mapping: Mappings, *, student_layers: int, teacher_layers: int) -> list[LayerPair]:
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
    stack: str = "",
    *,
    student_layers: int,
    teacher_layers: int,
) -> str:
    """Return a line for the log: the pairs, and whether ``uniform`` had to round."""
    listed = ", ".join(f"{pair.student} from {pair.teacher}" for pair in pairs)
    of_stack = f" of the {stack}" if stack else ""
    text = f"Student layers{of_stack} learn from teacher layers (0 is the embedding output): "
    text += f"{listed}."
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
        if "=" in stripped:
            named = [part.partition("=") for part in stripped.split(";")]
            return _distinct([(name.strip(), mapping) for name, _, mapping in named])
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
        "'2,4,6', or student:teacher pairs, each student layer once, as '1:2,3:6'; for encoder "
        "and decoder apart 'encoder=2,4,6;decoder=1:2,3:6'."
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
