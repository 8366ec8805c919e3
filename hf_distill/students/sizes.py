"""The sizes of a student: what was asked for, what follows from it, and what cannot be made."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from hf_distill.students.families import Family


@dataclass(frozen=True)
class Sizes:
    """Width, units and layers of a model."""

    hidden_size: int
    intermediate_size: int
    heads: int
    groups: int
    """Heads of keys and values; each is shared by ``heads // groups`` queries."""
    head_size: int

    @classmethod
    def of(cls, config: PreTrainedConfig, family: Family) -> Sizes:
        """Read the sizes of a model."""
        values: Any = config
        width, heads = int(values.hidden_size), int(values.num_attention_heads)
        neurons = getattr(values, family.intermediate_size)
        free = family.free_head_size and getattr(values, family.free_head_size, None)
        return cls(
            hidden_size=width,
            intermediate_size=int(4 * width if neurons is None else neurons),
            heads=heads,
            groups=int(getattr(values, "num_key_value_heads", None) or heads),
            head_size=int(free or width // heads),
        )


def is_between(value: Any, least: int, most: int) -> bool:
    """Return whether a value is an integer in a range, both ends included."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def student_sizes(
    teacher: Sizes,
    *,
    hidden_size: int | None,
    intermediate_size: int | None,
    num_attention_heads: int | None,
    head_size_is_free: bool,
) -> Sizes:
    """Return the sizes of a student; those that are not given fall with the hidden size.

    Raises:
        ValueError: a size is larger than the teacher's, or does not go with another.
    """
    for name, value, most in (
        ("hidden_size", hidden_size, teacher.hidden_size),
        ("intermediate_size", intermediate_size, teacher.intermediate_size),
        ("num_attention_heads", num_attention_heads, teacher.heads),
    ):
        if value is not None and not is_between(value, 1, most):
            raise ValueError(f"{name}={value!r} is not an integer from 1 to the teacher's {most}.")
    width = hidden_size or teacher.hidden_size
    share = width / teacher.hidden_size
    size = teacher.head_size
    per_group = teacher.heads // teacher.groups
    if head_size_is_free:
        heads = num_attention_heads or max(1, round(teacher.groups * share)) * per_group
        if heads % per_group:
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of {per_group}, the number of "
                "heads of the teacher that share keys and values: they stay or go together."
            )
    else:
        heads = num_attention_heads or width // size
        if num_attention_heads is None and width % size:
            nearest = max(1, round(width / size))
            raise ValueError(
                f"hidden_size={width} is not a multiple of {size}, the size of the teacher's "
                f"heads, which are kept whole: choose hidden_size={nearest * size}, with "
                f"num_attention_heads={nearest}."
            )
        if heads * size != width:
            raise ValueError(
                f"hidden_size={width} is not num_attention_heads={heads} times {size}, the size "
                "of the teacher's heads, which are kept whole: choose "
                f"hidden_size={max(1, round(width / size)) * size} and leave out "
                "num_attention_heads."
            )
    return Sizes(
        hidden_size=width,
        intermediate_size=intermediate_size or max(1, round(teacher.intermediate_size * share)),
        heads=heads,
        groups=heads // per_group,
        head_size=size,
    )


def student_config(
    teacher: PreTrainedConfig,
    family: Family,
    sizes: Sizes,
    layers: list[int],
    decoder_layers: list[int] | None = None,
) -> PreTrainedConfig:
    """Return the teacher's configuration with the sizes of the student.

    Raises:
        ValueError: the family does not have such models.
    """
    config: Any = copy.deepcopy(teacher)
    moves = layers != list(range(len(layers)))
    if moves and family.place_matters and getattr(config, family.place_matters):
        raise ValueError(
            f"layers={layers} moves layers to other places, but with {family.place_matters} a "
            "layer depends on its place: choose layers='first'."
        )
    before = Sizes.of(teacher, family)
    for name in family.width_names:
        if getattr(config, name, None) == before.hidden_size:
            setattr(config, name, sizes.hidden_size)
    config.hidden_size = sizes.hidden_size
    config.num_attention_heads = sizes.heads
    if sizes.groups != before.groups:
        config.num_key_value_heads = sizes.groups
    after = Sizes.of(config, family)
    if after.intermediate_size != sizes.intermediate_size:
        setattr(config, family.intermediate_size, sizes.intermediate_size)
    if family.free_head_size and after.head_size != sizes.head_size:
        setattr(config, family.free_head_size, sizes.head_size)
    if sizes != before:
        for name, decoders in family.same_sizes:
            setattr(config, decoders, getattr(config, name))
    for name in family.per_layer:
        entries = getattr(config, name, None)
        if isinstance(entries, list):
            setattr(config, name, [entries[index] for index in layers])
    config.num_hidden_layers = len(layers)
    if decoder_layers is not None:
        setattr(config, family.decoder_layers, len(decoder_layers))
    if hasattr(config, "validate_architecture"):
        try:
            config.validate_architecture()
        except ValueError as error:
            raise ValueError(
                f"hidden_size={sizes.hidden_size} and num_attention_heads={sizes.heads} do not go "
                f"together in a {config.model_type} model: {error} Choose another of them."
            ) from error
    return config


def check_dropout(dropout: float | None) -> None:
    """Check a probability of dropout.

    Raises:
        ValueError: it is not from 0 to below 1.
    """
    is_number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
    if dropout is not None and not (is_number and 0 <= dropout < 1):
        raise ValueError(f"dropout={dropout!r} is not a number from 0 to below 1.")


def set_dropout(config: PreTrainedConfig, dropout: float | None) -> None:
    """Set every probability of dropout in a configuration that is a number.

    Args:
        config: of a model that is still to be made.
        dropout: ``None`` leaves all as they are.
    """
    if dropout is None:
        return
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, dropout)
