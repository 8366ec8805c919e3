"""Taps: what the attention functions and the layers of a model are given, while they run.

Queries, keys and values are taken at the entrance of the model's own attention function, which
then runs as always (SDPA, flash attention, …): no attention map is made for them. transformers'
``output_attentions=True`` gives nothing under SDPA, and under eager attention probabilities after
dropout, which is neither what TinyBERT compares nor the same in two runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from hf_distill.heads import unwrap_peft
from hf_distill.losses import AttentionInputs

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"


@dataclass
class AttentionCall:
    """What one attention layer was given."""

    inputs: AttentionInputs
    causal: bool
    """Whether the layer hides later tokens where its mask does not say otherwise."""
    mask: Tensor | None = None
    """``(batch or 1, heads or 1, queries, keys)`` as the attention function got it: bool, True
    where a query sees a key, or added to the scores; ``None`` if there is none."""
    beyond: frozenset[str] = frozenset()
    """What makes its probabilities in addition to queries and keys: keys of ``BEYOND``."""
    implementation: str = "sdpa"
    """The name of the attention function."""


BEYOND = {
    "position_bias": "a position bias",
    "softcap": "a soft-cap (attn_logit_softcapping)",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "indices": "a choice of keys (sparse attention)",
    "block_indices": "a choice of keys (sparse attention)",
}
"""Options of attention functions that change what queries and keys alone would give."""


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
    dropped: frozenset[int] = frozenset()
    """Layers that LayerDrop skipped."""
    calls: int = 0
    """Attention layers that ran so far."""
    running: int | None = None
    """The layer that runs at the moment, of a model whose layers ``LayerTaps`` found."""
    ran: dict[int, Any] = field(default_factory=dict)
    """What each of these layers returned, ``None`` where its hidden states are not wanted."""

    def clear(self) -> None:
        """Forget the forward pass."""
        for kept in (self.hidden_states, self.attentions, self.attention_maps, self.ran):
            kept.clear()
        self.dropped, self.calls, self.running = frozenset(), 0, None

    def take_outputs(self, outputs: Mapping[str, Any], who: str, model: nn.Module) -> None:
        """Keep the chosen layers of a model's outputs.

        Args:
            outputs: with ``hidden_states``, and ``attentions`` where maps are needed.
            who: teacher or student, for messages.
            model: the model that ran.

        Raises:
            ValueError: the outputs lack what is to be recorded.
        """
        self.dropped = self._find_dropped(who, model)
        if self.hidden_layers:
            weight = "hidden_states_loss_weight"
            places = {layer: layer for layer in self.hidden_layers - self.dropped}
            if self.dropped:
                # Outputs may lack the places of dropped layers; first and last are what they were.
                states = outputs.get("hidden_states")
                if not states:
                    self.dropped |= {0}
                ends = {0: 0, max(self.dropped | self.ran.keys()): -1}
                places = {k: ends[k] for k in places if k in ends and k not in self.dropped}
                self.hidden_states |= {
                    layer: state for layer, state in self.ran.items() if state is not None
                }
            if places:
                self.hidden_states |= _taken(outputs, "hidden_states", places, weight, who)
        missing = self.attention_layers - self.attentions.keys() - self.dropped
        if missing:
            maps = outputs.get("attentions") or ()
            shortened = bool(self.dropped) and len(maps) == len(self.ran)
            order = sorted(self.ran) if shortened else range(1, max(missing) + 1)
            places = {layer: place for place, layer in enumerate(order) if layer in missing}
            weight = "attention_loss_weight"
            self.attention_maps |= _taken(outputs, "attentions", places, weight, who)

    def _find_dropped(self, who: str, model: nn.Module) -> frozenset[int]:
        """The layers that did not run, if LayerDrop explains it."""
        config: Any = getattr(model, "config", None)
        if not self.ran:  # all are dropped, or the model has no layers that can be followed
            return frozenset(_numbers(layer_stack(model)) if drops_layers(model) else ())
        missing = frozenset(range(1, config.num_hidden_layers + 1)) - self.ran.keys()
        wanted = missing & (self.hidden_layers | self.attention_layers)
        if wanted and not drops_layers(model):
            raise ValueError(
                f"Layer {min(wanted)} of the {who} did not run, and it is not LayerDrop that "
                "skipped it: there is nothing to compare. Name other layers in layer_mapping."
            )
        return missing


def layer_stack(model: nn.Module) -> list[nn.Module]:
    """The layers of a model in their order, if each is a module that runs once.

    Empty where that is not so: ALBERT's layers are one module.
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            parts = (type(part).__name__.lower() for layer in module for part in layer.modules())
            if any("attention" in name for name in parts):
                return list(module)
    return []


def _numbers(layers: Sequence[nn.Module]) -> range:
    return range(1, len(layers) + 1)


def drops_layers(model: nn.Module) -> bool:
    """Whether a model skips layers at random at the moment (LayerDrop)."""
    if not model.training:
        return False
    configs = [config for config in (getattr(model, "config", None),) if config is not None]
    return any(
        "layerdrop" in name and isinstance(value, int | float) and value > 0
        for holder in (*model.modules(), *configs)
        for name, value in vars(holder).items()
    )


def _taken(
    outputs: Mapping[str, Any], name: str, places: Mapping[int, int], weight: str, who: str
) -> dict[int, Tensor]:
    """What layers gave, from its places in the outputs."""
    values = outputs.get(name) if isinstance(outputs, Mapping) else None
    if (
        not values
        or len(values) <= max(places.values())
        or any(values[place] is None for place in places.values())
    ):
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
            followed = recording.running is not None or recording.ran
            layer = recording.running if followed else recording.calls
            if layer in recording.attention_layers and layer not in recording.attentions:
                inputs = (query, key, value, attention_mask)
                recording.attentions[layer] = _call(module, *inputs, options, self._name)
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
    implementation: str,
) -> AttentionCall:
    scaling = options.get("scaling")
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    # Flash attention has a mask of tokens, flex attention one of blocks.
    pairs = mask if isinstance(mask, Tensor) and mask.dim() == 4 else None
    if pairs is not None and pairs.shape[-1] > key.shape[-2]:
        pairs = pairs[..., : key.shape[-2]]
    local = options.get("sliding_window")
    if local is not None and pairs is None and query.shape[-2] > int(local):
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
        mask=pairs,
        beyond=frozenset(name for name in BEYOND if options.get(name) is not None),
        implementation=implementation,
    )


class LayerTaps:
    """Lets a recording know which layer of a model runs.

    Attention calls alone cannot tell: LayerDrop skips layers, some have no attention, and attention
    may run outside them.
    """

    def __init__(self) -> None:
        self._hooks: list[Any] = []

    def attach(self, *models: nn.Module) -> None:
        """Follow the layers of ``models``; does nothing if that was done before."""
        if self._hooks:
            return
        for model in models:
            layers = layer_stack(model)
            for number, layer in zip(_numbers(layers), layers, strict=True):
                self._hooks.append(layer.register_forward_pre_hook(partial(_enter, number)))
                self._hooks.append(layer.register_forward_hook(partial(_leave, number)))

    def detach(self) -> None:
        """Take all hooks away."""
        while self._hooks:
            self._hooks.pop().remove()


def _enter(number: int, module: nn.Module, args: Any) -> None:
    recording = _Active.recording
    if recording is not None:
        if recording.running is None and not recording.ran:
            recording.attentions.clear()  # what ran before the first layer belongs to none
        recording.running = number


def _leave(number: int, module: nn.Module, args: Any, output: Any) -> None:
    recording = _Active.recording
    if recording is not None:
        recording.running = None
        state = output[0] if isinstance(output, tuple | list) else output
        recording.ran[number] = state if number in recording.hidden_layers else None


def has_attention_taps(model: nn.Module) -> bool:
    """Whether a model's attention runs through transformers' table of attention functions."""
    return bool(_interfaces(model))


def _interfaces(model: nn.Module) -> list[AttentionInterface]:
    """The tables of attention functions of a model's source files; most share one."""
    found: dict[int, AttentionInterface] = {}
    for module in unwrap_peft(model).modules():
        interface = getattr(sys.modules.get(type(module).__module__), _INTERFACE, None)
        if isinstance(interface, AttentionInterface):
            found[id(interface)] = interface
    return list(found.values())


def _implementations(model: nn.Module) -> set[str]:
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    names = {getattr(config, "_attn_implementation", None) for config in configs.values()}
    return {name for name in names if isinstance(name, str)}
