"""Recording: what the layers and the attention functions of a model get and return as it runs.

Queries, keys and values are taken at the entrance of the model's own attention function, which
then runs as always (SDPA, flash attention, …): no attention map is made for them. transformers'
``output_attentions=True`` returns nothing under SDPA, and under eager attention probabilities after
dropout, which is neither what TinyBERT compares nor the same in two runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, make_dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.utils.generic import ModelOutput

from hf_distill.heads import unwrap_peft
from hf_distill.layers.attention_calls import AttentionCall
from hf_distill.layers.stacks import PARTS, layer_stacks, name_of

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_LOSSES = "intermediate_losses"


@dataclass
class Recording:
    """Hidden states and attentions of one part of a model in one forward pass, by layer.

    Layers are numbered as in the ``hidden_states`` of transformers: 0 is the embedding output, and
    i the output (and the attention) of layer i.
    """

    hidden_layers: frozenset[int] = frozenset()
    attention_layers: frozenset[int] = frozenset()
    part: str = ""
    """Of ``STACKS``."""
    followed: int = 0
    """How many layers there are, if each is a module whose calls are followed; otherwise 0."""
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
    """The followed layer that runs at the moment."""
    ran: dict[int, Any] = field(default_factory=dict)
    """The output of each followed layer, ``None`` where its hidden states are not wanted."""

    def clear(self) -> None:
        """Forget the forward pass."""
        for kept in (self.hidden_states, self.attentions, self.attention_maps, self.ran):
            kept.clear()
        self.dropped, self.calls, self.running = frozenset(), 0, None

    def record_outputs(self, outputs: Mapping[str, Any], who: str, model: nn.Module) -> None:
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
            name, weight = name_of(self.part, "hidden_states"), "hidden_states_loss_weight"
            places = {layer: layer for layer in self.hidden_layers - self.dropped}
            if self.dropped:
                # Outputs may lack the places of dropped layers; first and last are what they were.
                if not outputs.get(name):
                    self.dropped |= {0}
                ends = {0: 0, max(self.dropped | self.ran.keys()): -1}
                places = {k: ends[k] for k in places if k in ends and k not in self.dropped}
                self.hidden_states |= {
                    layer: state for layer, state in self.ran.items() if state is not None
                }
            if places:
                self.hidden_states |= _chosen(outputs, name, places, weight, who)
        missing = self.attention_layers - self.attentions.keys() - self.dropped
        if missing and self.part:
            raise ValueError(
                f"The {self.part} attention of layer {min(missing)} of the {who} could not be "
                "recorded: it does not run through transformers' attention functions. Set "
                "attention_loss_weight=0, or name other layers in layer_mapping."
            )
        if missing:
            maps = outputs.get("attentions") or ()
            shortened = bool(self.dropped) and len(maps) == len(self.ran)
            order = sorted(self.ran) if shortened else range(1, max(missing) + 1)
            places = {layer: place for place, layer in enumerate(order) if layer in missing}
            weight = "attention_loss_weight"
            self.attention_maps |= _chosen(outputs, "attentions", places, weight, who)

    def _find_dropped(self, who: str, model: nn.Module) -> frozenset[int]:
        """Return the followed layers that did not run, if LayerDrop explains it."""
        missing = frozenset(range(1, self.followed + 1)) - self.ran.keys()
        wanted = missing & (self.hidden_layers | self.attention_layers)
        if not self.ran and not drops_layers(model):
            return frozenset()  # the outputs of a cached teacher
        if wanted and not drops_layers(model):
            raise ValueError(
                f"Layer {min(wanted)} of the {self.part or who} did not run"
                f"{f' in the {who}' if self.part else ''}, and it is not LayerDrop that skipped "
                "it: there is nothing to compare. Name other layers in layer_mapping."
            )
        return missing


def drops_layers(model: nn.Module) -> bool:
    """Whether a model skips layers at random at the moment (LayerDrop)."""
    if not model.training:
        return False
    config = getattr(model, "config", None)
    return any(
        "layerdrop" in name and isinstance(value, int | float) and value > 0
        for holder in (*model.modules(), *([] if config is None else [config]))
        for name, value in vars(holder).items()
    )


def _chosen(
    outputs: Mapping[str, Any], name: str, places: Mapping[int, int], weight: str, who: str
) -> dict[int, Tensor]:
    """Return what layers gave, from its places in the outputs."""
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
    """The recordings, by part, that taps write to at the moment."""

    recordings: Mapping[str, Recording] = MappingProxyType({})


@contextmanager
def recorded(recordings: Mapping[str, Recording]) -> Iterator[None]:
    """Write what a tapped model computes inside to its recordings, by part.

    Recomputation by activation checkpointing happens outside, in the backward pass, and is not
    recorded again.
    """
    before = _Active.recordings
    _Active.recordings = recordings
    try:
        yield
    finally:
        _Active.recordings = before


@contextmanager
def tapped(*models: nn.Module) -> Iterator[None]:
    """Tap the attention functions and the layers of models inside.

    Outside ``recorded`` taps only pass on what they get. Attention calls alone cannot tell which
    layer runs: LayerDrop skips layers, some have no attention, and attention may run outside them.
    """
    functions = {
        (id(interface), name): (interface, name)
        for model in models
        for interface in _interfaces(model)
        for name in _implementations(model)
        if name == "eager" or interface.get(name) is not None
    }
    with ExitStack() as stack:
        for interface, name in functions.values():
            tap = interface.get(name)
            if not isinstance(tap, _Tap):
                tap = _Tap(interface, name)
            tap.users += 1
            stack.callback(tap.release)
        for model in models:
            for name, layers in layer_stacks(model).items():
                for number, layer in enumerate(layers, start=1):
                    before, after = (partial(f, PARTS[name], number) for f in (_enter, _leave))
                    stack.callback(layer.register_forward_pre_hook(before).remove)
                    stack.callback(layer.register_forward_hook(after).remove)
        yield


class _Tap:
    """An attention function that records what it is given and leaves the rest to the original."""

    def __init__(self, interface: AttentionInterface, name: str) -> None:
        self.users = 0
        self._interface, self._name = interface, name
        # transformers' own functions are in a table that all interfaces share.
        self._own = interface._local_mapping.get(name)
        self._original: Callable[..., Any] | None = interface.get(name)
        interface[name] = self

    def release(self) -> None:
        """Put the original back after the last user."""
        self.users -= 1
        if self.users:
            return
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
        inputs = (module, query, key, value, attention_mask)
        for recording in _Active.recordings.values():
            recording.calls += 1
            layer = recording.running if recording.followed else recording.calls
            # Of a decoder's layer the first call is its self-attention, the second to the encoder.
            if layer in recording.attention_layers and layer not in recording.attentions:
                recording.attentions[layer] = AttentionCall.of(*inputs, options, self._name)
                break
        # Eager attention is not an entry of the table but a function next to the model.
        original = self._original or sys.modules[type(module).__module__].eager_attention_forward
        return original(*inputs, **options)


def _enter(parts: tuple[str, ...], number: int, module: nn.Module, args: Any) -> None:
    for part in parts:
        if part in _Active.recordings:
            _Active.recordings[part].running = number


def _leave(parts: tuple[str, ...], number: int, module: nn.Module, args: Any, output: Any) -> None:
    state = output[0] if isinstance(output, tuple | list) else output
    for part in parts:
        if part in _Active.recordings:
            recording = _Active.recordings[part]
            recording.running = None
            recording.ran[number] = state if number in recording.hidden_layers else None


def has_attention_taps(model: nn.Module) -> bool:
    """Return whether attention runs through transformers' table of attention functions."""
    return bool(_interfaces(model))


def _interfaces(model: nn.Module) -> list[AttentionInterface]:
    """Return the tables of attention functions of a model's source files; most share one."""
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


def pop_losses(outputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a student's own outputs, and the losses that ``add_losses`` put there."""
    return _without(outputs, _LOSSES), outputs[_LOSSES]


def add_losses(
    outputs: Any, losses: Callable[[], dict[str, Tensor]], model: nn.Module
) -> ModelOutput:
    """Return a student's outputs with losses, without layers that were only asked for to compare.

    Inside the forward pass: DDP and FSDP see the losses and nothing bigger.

    Raises:
        ValueError: the student does not return a ``ModelOutput``.
    """
    if not isinstance(outputs, ModelOutput):
        raise ValueError(
            f"The student returned a {type(outputs).__name__}; intermediate layers need a "
            "model whose forward returns a ModelOutput (return_dict=True)."
        )
    config = getattr(model, "config", None)
    ours = ("hidden_states", "attentions")
    kept = _without(outputs, *(n for n in ours if not getattr(config, f"output_{n}", False)))
    return _with_losses(type(outputs))(**kept, **{_LOSSES: losses()})


def _without(outputs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    left_out = {part + name for name in names for part in ("", "encoder_", "decoder_")}
    return {name: value for name, value in outputs.items() if name not in left_out}


@cache
def _with_losses(output_class: type[ModelOutput]) -> type[ModelOutput]:
    """Return the class of a model's outputs with one more entry.

    Declared, because DDP takes outputs apart and puts them together again by their fields.
    """
    fields = [(_LOSSES, "dict[str, Tensor] | None", None)]
    return make_dataclass(f"{output_class.__name__}WithLosses", fields, bases=(output_class,))
