"""The students of the SQuAD benchmarks: what each begins with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

STUDENTS = {
    "cut": "6-layer encoder cut to layers 0, 2, 4",
    "small": "3-layer encoder",
    "narrow": "layers 0, 2, 4, cut to half their width",
    "six-heads": "layers 0, 2, 4, their 12 heads joined to 6",
}
_CUT_LAYERS = (0, 2, 4)


def student(name: str, encoder: str, small_encoder: str, *, hidden_dropout: float) -> nn.Module:
    """An encoder with a new head, drawn with the present seed.

    Args:
        name: one of ``STUDENTS``, or ``teacher`` for the whole encoder.
        encoder: the folder of the big encoder.
        small_encoder: that of the small one.
        hidden_dropout: as in the model's configuration.
    """
    model = AutoModelForQuestionAnswering.from_pretrained(
        small_encoder if name == "small" else encoder,
        attn_implementation="eager",
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=hidden_dropout,
    )
    if name in ("cut", "narrow", "six-heads"):
        layers = model.base_model.encoder.layer
        model.base_model.encoder.layer = nn.ModuleList(layers[i] for i in _CUT_LAYERS)
        model.config.num_hidden_layers = len(_CUT_LAYERS)
    if name == "narrow":
        return _narrowed(model, model.config.hidden_size // 2)
    if name == "six-heads":
        for module in model.modules():
            if hasattr(module, "num_attention_heads"):
                module.num_attention_heads //= 2
                module.attention_head_size *= 2
                module.scaling = module.attention_head_size**-0.5
        model.config.num_attention_heads //= 2
    return model


def _narrowed(model: PreTrainedModel, width: int) -> nn.Module:
    """A model of another width that begins with the first units of each weight of this one."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.intermediate_size = config.intermediate_size * width // config.hidden_size
    config.hidden_size = width
    narrow = AutoModelForQuestionAnswering.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for small, big in _shared(narrow, model):
            small.copy_(big[tuple(slice(size) for size in small.shape)])
    return narrow


def _shared(narrow: nn.Module, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    big = dict(model.named_parameters())
    for name, small in narrow.named_parameters():
        if not name.startswith("qa_outputs"):
            yield small, big[name]
