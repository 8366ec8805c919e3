"""Taps: what the attention functions and the layers of a model are given, while they run.

Queries, keys and values are taken at the entrance of the model's own attention function, which
then runs as always (SDPA, flash attention, …): no attention map is made for them. transformers'
``output_attentions=True`` gives nothing under SDPA, and under eager attention probabilities after
dropout, which is neither what TinyBERT compares nor the same in two runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from hf_distill.heads import without_adapters
from hf_distill.objectives import AttentionInputs

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"


@dataclass
class AttentionCall:
    """What one attention layer was given."""

    inputs: AttentionInputs
    causal: bool
    """Whether a token sees only those before it."""
    pair_mask: Tensor | None
    """Bool, ``(batch or 1, heads or 1, length, length)``: which pairs are visible, where that
    depends on their distance (local attention); else ``None``."""


@dataclass
class Recording:
    """Hidden states and attentions of one forward pass, by layer.

    Layers are numbered as in the ``hidden_states`` of transformers: 0 is the embedding output, and
    i the output (and the attention) of layer i.
    """

    hidden_layers: frozenset[int]
    attention_layers: frozenset[int]
    hidden_states: dict[int, Tensor] = field(default_factory=dict)
    """``(batch, length, width)``."""
    attentions: dict[int, AttentionCall] = field(default_factory=dict)
    attention_maps: dict[int, Tensor] = field(default_factory=dict)
    """``(batch, heads, length, length)``, probabilities; of families whose queries and keys cannot
    be recorded."""
    calls: int = 0
    """Attention layers that ran so far."""

    def clear(self) -> None:
        """Forget the forward pass."""
        self.hidden_states.clear()
        self.attentions.clear()
        self.attention_maps.clear()
        self.calls = 0

    def take_outputs(self, outputs: Mapping[str, Any], who: str) -> None:
        """Keep the chosen layers of a model's outputs.

        Args:
            outputs: with ``hidden_states``, and ``attentions`` where maps are needed.
            who: teacher or student, for messages.

        Raises:
            ValueError: the outputs lack what is to be recorded.
        """
        if self.hidden_layers:
            places = {layer: layer for layer in self.hidden_layers}
            weight = "hidden_states_loss_weight"
            self.hidden_states |= _taken(outputs, "hidden_states", places, weight, who)
        missing = self.attention_layers - self.attentions.keys()
        if missing:
            places = {layer: layer - 1 for layer in missing}
            weight = "attention_loss_weight"
            self.attention_maps |= _taken(outputs, "attentions", places, weight, who)


def _taken(
    outputs: Mapping[str, Any], name: str, places: Mapping[int, int], weight: str, who: str
) -> dict[int, Tensor]:
    """What layers gave, from its places in the outputs."""
    values = outputs.get(name) if isinstance(outputs, Mapping) else None
    if not values or any(values[place] is None for place in places.values()):
        raise ValueError(
            f"The {who} returned no {name}, so there is nothing to compare. Set {weight}=0, or "
            "use a model of transformers that has them."
        )
    return {layer: values[place] for layer, place in places.items()}


class _Active:
    """The recording that attention functions write to at the moment."""

    recording: Recording | None = None


@contextmanager
def recording_attention(recording: Recording) -> Iterator[None]:
    """Queries, keys and values of attention layers that run inside go to ``recording``.

    Recomputation by activation checkpointing happens outside, in the backward pass, and is not
    recorded again.
    """
    before = _Active.recording
    _Active.recording = recording
    try:
        yield
    finally:
        _Active.recording = before


class AttentionTaps:
    """Puts a recording function in front of the attention functions that some models use.

    Outside ``recording_attention`` they only pass on what they are given.
    """

    def __init__(self) -> None:
        self._taps: list[_Tap] = []

    def attach(self, *models: nn.Module) -> None:
        """Tap the attention functions of ``models``; does nothing if that was done before."""
        if self._taps:
            return
        places = {
            (id(interface), name): interface
            for model in models
            for interface in _interfaces(model)
            for name in _implementations(model)
        }
        for (_, name), interface in places.items():
            tap = interface.get(name)
            if not isinstance(tap, _Tap):
                if tap is None and name != "eager":
                    continue
                tap = _Tap(interface, name)
            tap.users += 1
            self._taps.append(tap)

    def detach(self) -> None:
        """Put everything back as it was, if nobody else uses it."""
        while self._taps:
            tap = self._taps.pop()
            tap.users -= 1
            if tap.users == 0:
                tap.remove()


class _Tap:
    """An attention function that records what it is given and leaves the rest to the original."""

    def __init__(self, interface: AttentionInterface, name: str) -> None:
        self.users = 0
        self._interface, self._name = interface, name
        # transformers' own functions are in a table that all interfaces share.
        self._own = interface._local_mapping.get(name)
        self._original: Callable[..., Any] | None = interface.get(name)
        interface[name] = self

    def remove(self) -> None:
        """Put the original back."""
        if self._own is None:
            del self._interface[self._name]
        else:
            self._interface[self._name] = self._own

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> Any:
        recording = _Active.recording
        if recording is not None:
            recording.calls += 1
            if recording.calls in recording.attention_layers:
                inputs = (query, key, value, attention_mask)
                recording.attentions[recording.calls] = _call(module, *inputs, options)
        # Eager attention is no entry of the table but a function beside the model.
        original = self._original or sys.modules[type(module).__module__].eager_attention_forward
        return original(module, query, key, value, attention_mask, **options)


def _call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> AttentionCall:
    if options.get("position_bias") is not None:
        raise ValueError(
            f"{type(module).__name__} adds a position bias to its attention scores, which is not "
            "recorded. Set attention_loss_weight=0."
        )
    scaling = options.get("scaling")
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    local = options.get("sliding_window") is not None
    pair_mask = None
    if local:
        if mask is not None and mask.dim() == 4:
            pair_mask = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            pair_mask = pair_mask[..., : key.shape[-2]]
        elif query.shape[-2] > int(options["sliding_window"]):
            raise ValueError(
                f"{type(module).__name__} has local attention, whose mask is only known under the "
                "attention implementations sdpa and eager; load teacher and student with one of "
                "them (teacher_attn_implementation='sdpa')."
            )
    return AttentionCall(
        AttentionInputs(
            query, key, value, float(query.shape[-1] ** -0.5 if scaling is None else scaling)
        ),
        causal=bool(causal),
        pair_mask=pair_mask,
    )


def has_attention_taps(model: nn.Module) -> bool:
    """Whether a model's attention runs through transformers' table of attention functions."""
    return bool(_interfaces(model))


def _interfaces(model: nn.Module) -> list[AttentionInterface]:
    """The tables of attention functions of a model's source files; most share one."""
    found: dict[int, AttentionInterface] = {}
    for module in without_adapters(model).modules():
        interface = getattr(sys.modules.get(type(module).__module__), _INTERFACE, None)
        if isinstance(interface, AttentionInterface):
            found[id(interface)] = interface
    return list(found.values())


def _implementations(model: nn.Module) -> set[str]:
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    names = {getattr(config, "_attn_implementation", None) for config in configs.values()}
    return {name for name in names if isinstance(name, str)}
