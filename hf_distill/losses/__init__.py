"""Losses: pure functions of tensors of student and teacher and of masks; registries by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from hf_distill.losses.attention import AttentionInputs
from hf_distill.losses.attention_probabilities import (
    attention_maps_loss,
    probabilities_loss,
    relations_loss,
)
from hf_distill.losses.attention_scores import scores_loss
from hf_distill.losses.hidden_states import HIDDEN_STATES_LOSSES, hidden_states_loss
from hf_distill.losses.logits import LogitsLoss, js_div, kl_div, mse, reverse_kl, skew_kl

__all__ = [
    "ATTENTION_LOSSES",
    "HIDDEN_STATES_LOSSES",
    "LOGITS_LOSSES",
    "AttentionInputs",
    "AttentionLoss",
    "LogitsLoss",
    "attention_maps_loss",
    "get_logits_loss",
    "hidden_states_loss",
    "js_div",
    "kl_div",
    "mse",
    "probabilities_loss",
    "relations_loss",
    "reverse_kl",
    "scores_loss",
    "skew_kl",
]

LOGITS_LOSSES: dict[str, LogitsLoss] = {
    "kl_div": kl_div,
    "reverse_kl": reverse_kl,
    "js_div": js_div,
    "skew_kl": skew_kl,
    "mse": mse,
}
"""The losses between logits by the name that ``distillation_loss`` takes."""


@dataclass(frozen=True)
class AttentionLoss:
    """A loss between the attentions of two layers, and what has to be known to use it."""

    compare: Callable[..., Tensor]
    """``(student, teacher, *, token_mask, causal, pair_mask)``; see the module ``attention``."""
    sums_over: Literal["tokens", "pairs"]
    """What the result is a sum over: valid tokens, or pairs of tokens that see each other."""
    divergence_of_maps: str | None = None
    """How full attention maps are compared instead; ``None`` if queries and keys are needed."""
    not_changed_by: frozenset[str] = frozenset()
    """Options of attention functions that leave what is compared as it is."""
    compares_crossed: bool = True
    """Whether it can compare the attention of one text to another."""


ATTENTION_LOSSES = {
    "scores": AttentionLoss(scores_loss, "pairs", not_changed_by=frozenset({"s_aux", "sinks"})),
    "probabilities": AttentionLoss(probabilities_loss, "tokens", "kl_div"),
    "probabilities_mse": AttentionLoss(
        partial(probabilities_loss, divergence="mse"), "pairs", "mse"
    ),
    "relations": AttentionLoss(relations_loss, "tokens", compares_crossed=False),
}
"""The losses between attentions by the name that ``attention_loss`` takes; ``relations`` also needs
``relation_heads``."""


def get_logits_loss(name: str) -> LogitsLoss:
    """Return a loss between logits by its name, a key of ``LOGITS_LOSSES``.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in LOGITS_LOSSES:
        raise ValueError(
            f"distillation_loss must be one of {', '.join(sorted(LOGITS_LOSSES))}, but it is "
            f"{name!r}."
        )
    return LOGITS_LOSSES[name]
