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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.utils.generic import ModelOutput

from hf_distill.heads import unwrap_peft
from hf_distill.heads.base import as_visible
from hf_distill.losses import AttentionInputs

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_LOSSES = "intermediate_losses"

BEYOND = {
    "position_bias": "a position bias",
    "softcap": "a soft-cap (attn_logit_softcapping)",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "indices": "a choice of keys (sparse attention)",
    "block_indices": "a choice of keys (sparse attention)",
}
"""Options of attention functions that change what queries and keys alone would give."""


class Visible(NamedTuple):
    """Which pairs of tokens, padding apart, see each other."""

    causal: bool
    """A query sees no later key."""
    pair_mask: Tensor | None
    """Bool, ``(batch or 1, heads or 1, length, length)``: True where a query sees a key; ``None``
    if ``causal`` tells all."""
    biased: bool = False
    """Whether the mask adds something to the scores of pairs that see each other."""


@dataclass
class AttentionCall:
    """The arguments of one attention layer."""

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

    @classmethod
    def of(
        cls,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: Mapping[str, Any],
        implementation: str,
    ) -> AttentionCall:
        """Keep what an attention function was called with.

        Raises:
            ValueError: attention is local, and its mask is not known.
        """
        scaling, causal = options.get("scaling"), options.get("is_causal")
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
        scaling = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
        return cls(
            AttentionInputs(query, key, value, scaling),
            causal=bool(causal),
            mask=pairs,
            beyond=frozenset(name for name in BEYOND if options.get(name) is not None),
            implementation=implementation,
        )

    def visible_pairs(self, token_mask: Tensor | None) -> Visible:
        """Return what the mask hides or shows beyond padding and causality.

        Args:
            token_mask: bool, ``(batch, length)``: False is padding; ``None`` if there is none.
        """
        mask = self.mask
        if mask is None:
            return Visible(self.causal, None)
        seen = as_visible(mask)
        everything = torch.ones(seen.shape[-2:], dtype=torch.bool, device=seen.device)
        told = everything.tril() if self.causal else everything
        counts = everything
        if token_mask is not None:
            counts = token_mask[:, None, None] & token_mask[:, None, :, None]
        adds = seen & (mask != 0) if mask.is_floating_point() else ~everything
        biased = (adds & counts).any()
        more, less = (seen & ~told & counts).any(), (told & ~seen & counts).any()
        # One wait for the device; transformers waits for it when it makes the mask.
        shows_more, shows_less, is_biased = torch.stack([more, less, biased]).tolist()
        pair_mask = seen if shows_more or shows_less else None
        return Visible(self.causal and not shows_more, pair_mask, is_biased)


@dataclass
class Recording:
    """Hidden states and attentions of one forward pass, by layer.

    Layers are numbered as in the ``hidden_states`` of transformers: 0 is the embedding output, and
    i the output (and the attention) of layer i.
    """

    hidden_layers: frozenset[int] = frozenset()
    attention_layers: frozenset[int] = frozenset()
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
    """The layer that runs at the moment, of a model whose layers ``layer_stack`` found."""
    ran: dict[int, Any] = field(default_factory=dict)
    """The output of each of these layers, ``None`` where its hidden states are not wanted."""

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
                self.hidden_states |= _chosen(outputs, "hidden_states", places, weight, who)
        missing = self.attention_layers - self.attentions.keys() - self.dropped
        if missing:
            maps = outputs.get("attentions") or ()
            shortened = bool(self.dropped) and len(maps) == len(self.ran)
            order = sorted(self.ran) if shortened else range(1, max(missing) + 1)
            places = {layer: place for place, layer in enumerate(order) if layer in missing}
            weight = "attention_loss_weight"
            self.attention_maps |= _chosen(outputs, "attentions", places, weight, who)

    def _find_dropped(self, who: str, model: nn.Module) -> frozenset[int]:
        """Return the layers that did not run, if LayerDrop explains it."""
        config: Any = getattr(model, "config", None)
        if not self.ran:  # all are dropped, or the model has no layers that can be followed
            return frozenset(range(1, 1 + len(layer_stack(model))) if drops_layers(model) else ())
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
    """The recording that taps write to at the moment."""

    recording: Recording | None = None


@contextmanager
def recorded(recording: Recording) -> Iterator[None]:
    """Write what tapped models compute inside to ``recording``.

    Recomputation by activation checkpointing happens outside, in the backward pass, and is not
    recorded again.
    """
    before = _Active.recording
    _Active.recording = recording
    try:
        yield
    finally:
        _Active.recording = before


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
            for number, layer in enumerate(layer_stack(model), start=1):
                hook = layer.register_forward_pre_hook(partial(_enter, number))
                stack.callback(hook.remove)
                stack.callback(layer.register_forward_hook(partial(_leave, number)).remove)
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
        recording = _Active.recording
        if recording is not None:
            recording.calls += 1
            followed = recording.running is not None or recording.ran
            layer = recording.running if followed else recording.calls
            if layer in recording.attention_layers and layer not in recording.attentions:
                recording.attentions[layer] = AttentionCall.of(*inputs, options, self._name)
        # Eager attention is not an entry of the table but a function next to the model.
        original = self._original or sys.modules[type(module).__module__].eager_attention_forward
        return original(*inputs, **options)


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
