"""The stacks of layers of a model: one, or those of an encoder and of its decoder.

Everything here is kept by part: ``""`` is the only stack of a model; ``"encoder"`` and
``"decoder"`` are stacks with their self-attentions; ``"cross"`` is the attention of a decoder's
layers to the encoder's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_distill.heads import unwrapped

PARTS = {"": ("",), "encoder": ("encoder",), "decoder": ("decoder", "cross")}
"""The parts of each stack."""

STACKS = {part: stack for stack, parts in PARTS.items() for part in parts}
"""The stack of each part."""


def name_of(part: str, kind: str) -> str:
    """What transformers calls the ``hidden_states`` or ``attentions`` of a part."""
    return f"{part}_{kind}" if part else kind


@dataclass(frozen=True)
class Stack:
    """What the layers of a stack look like."""

    depth: int
    """How many layers there are."""
    width: int
    """Of hidden states."""
    heads: int | None
    """``None`` for a family without attention."""
    attention_width: int
    """Of queries, all heads together."""
    layers: list[nn.Module]
    """In their order, if each is a module that runs once; empty where that is not so."""


def stacks_of(model: nn.Module, who: str) -> dict[str, Stack]:
    """Return the stacks of a model by their names.

    Args:
        model: a model of transformers.
        who: teacher or student, for messages.

    Raises:
        ValueError: its layers are not stacks of equal ones.
    """
    found = {}
    for name, tower in _towers(model).items():
        config: Any = getattr(tower, "config", None)
        layers = layers_of(tower, None if name else getattr(config, "num_hidden_layers", None))
        depth = len(layers) if name else getattr(config, "num_hidden_layers", None)
        width = getattr(config, "hidden_size", None)
        if not isinstance(depth, int) or not isinstance(width, int) or depth < 1:
            raise ValueError(
                f"The {who} is a {type(model).__name__}, whose {name or 'configuration'} has no "
                "num_hidden_layers and hidden_size: it is no stack of equal layers. Use "
                "stage='prediction' with hidden_states_loss_weight=0 and attention_loss_weight=0."
            )
        names = (f"{name}_attention_heads", f"{name}_num_attention_heads", "num_attention_heads")
        heads = next((n for x in names if isinstance(n := getattr(config, x, None), int)), None)
        head_dim = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
        attention_width = heads * head_dim if heads and isinstance(head_dim, int) else width
        found[name] = Stack(depth, width, heads, attention_width, layers)
    return found


def layer_stacks(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the layers of each stack that can be followed."""
    towers = _towers(model)
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    return {name: layers_of(tower, None if name else depth) for name, tower in towers.items()}


def layers_of(model: nn.Module, depth: int | None) -> list[nn.Module]:
    """Return the layers of a stack in their order, if each is a module that runs once.

    Empty where that is not so: ALBERT's layers are one module.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and (depth is None or len(module) == depth):
            parts = (type(part).__name__.lower() for layer in module for part in layer.modules())
            if any("attention" in name for name in parts):
                return list(module)
    return []


def _towers(model: nn.Module) -> dict[str, nn.Module]:
    """Return encoder and decoder; the model itself if it is not both."""
    inner: Any = unwrapped(model)
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return {"": model}
    names = ("encoder", "decoder")
    encoder, decoder = (getattr(inner, f"get_{name}", lambda: None)() for name in names)
    if not isinstance(encoder, nn.Module) or not isinstance(decoder, nn.Module):
        return {"": model}
    # Of T5ForTokenClassification, an encoder alone, transformers gives the whole as the decoder.
    if any(module is encoder for module in decoder.modules()):
        return {"": model}
    return {"encoder": encoder, "decoder": decoder}
