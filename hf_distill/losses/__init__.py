"""Objectives: pure functions that compare what student and teacher say."""

from __future__ import annotations

from hf_distill.losses.attention import AttentionInputs
from hf_distill.losses.attention_probabilities import probabilities_loss
from hf_distill.losses.attention_relations import relations_loss
from hf_distill.losses.attention_scores import scores_loss
from hf_distill.losses.hidden_states import hidden_states_loss
from hf_distill.losses.logits import (
    LogitsLoss,
    js_div,
    kl_div,
    mse,
    reverse_kl,
    skew_kl,
)

LOGITS_LOSSES: dict[str, LogitsLoss] = {
    "kl_div": kl_div,
    "reverse_kl": reverse_kl,
    "js_div": js_div,
    "skew_kl": skew_kl,
    "mse": mse,
}
"""The losses between logits by the name that ``distillation_loss`` takes."""

__all__ = [
    "LOGITS_LOSSES",
    "AttentionInputs",
    "LogitsLoss",
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


def get_logits_loss(name: str) -> LogitsLoss:
    """The loss between logits of that name.

    Args:
        name: a key of ``LOGITS_LOSSES``.

    Raises:
        ValueError: if there is none; the message lists the names.
    """
    if name not in LOGITS_LOSSES:
        raise ValueError(
            f"distillation_loss must be one of {', '.join(sorted(LOGITS_LOSSES))}, but it is "
            f"{name!r}."
        )
    return LOGITS_LOSSES[name]
