"""Can the intermediate layers of two models be compared? Said before training."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_distill.layers.recording import has_attention_taps
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """What intermediate layers of a model look like."""

    layers: int
    width: int
    heads: int | None
    """``None`` for a family without attention."""

    @classmethod
    def of(cls, model: nn.Module, who: str) -> Sizes:
        """Read them from a model's configuration.

        Raises:
            ValueError: it is not a stack of equal layers.
        """
        config: Any = getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"The {who} is a {type(model).__name__}, an encoder with a decoder; their "
                "intermediate layers cannot be compared yet. Use stage='prediction' with "
                "hidden_states_loss_weight=0 and attention_loss_weight=0."
            )
        layers = getattr(config, "num_hidden_layers", None)
        width = getattr(config, "hidden_size", None)
        if not isinstance(layers, int) or not isinstance(width, int):
            raise ValueError(
                f"The {who} is a {type(model).__name__}, whose configuration has no "
                "num_hidden_layers and hidden_size: it is no stack of equal layers. Use "
                "stage='prediction' with hidden_states_loss_weight=0 and attention_loss_weight=0."
            )
        heads = getattr(config, "num_attention_heads", None)
        return cls(layers, width, heads if isinstance(heads, int) else None)


def check_attention(
    args: DistillationTrainingArguments, teacher: nn.Module, student: nn.Module
) -> None:
    """Refuse an attention loss that this pair cannot have.

    Raises:
        ValueError: says what to use instead.
    """
    sizes = {"teacher": Sizes.of(teacher, "teacher"), "student": Sizes.of(student, "student")}
    for who, size in sizes.items():
        if size.heads is None:
            raise ValueError(
                f"The {who} has no attention; set attention_loss_weight=0 and compare hidden "
                "states alone."
            )
    heads = {who: size.heads for who, size in sizes.items()}
    loss = args.attention_comparison
    if loss == "relations":
        relation_heads = args.relation_heads or heads["teacher"] or 1
        for who, size in sizes.items():
            if size.width % relation_heads:
                raise ValueError(
                    f"relation_heads={relation_heads} does not divide the {who}'s width "
                    f"{size.width}; choose one that divides both widths."
                )
    elif heads["teacher"] != heads["student"]:
        raise ValueError(
            f"attention_loss={loss!r} compares head by head, but the teacher has "
            f"{heads['teacher']} heads and the student {heads['student']}; use "
            "attention_loss='relations'."
        )
    tapped = {who: has_attention_taps(m) for who, m in (("teacher", teacher), ("student", student))}
    if all(tapped.values()):
        return
    names = {"teacher": type(teacher).__name__, "student": type(student).__name__}
    if any(tapped.values()):
        raise ValueError(
            f"Of teacher ({names['teacher']}) and student ({names['student']}) only one has "
            "attention whose queries and keys can be recorded. Set attention_loss_weight=0."
        )
    if not loss.startswith("probabilities"):
        raise ValueError(
            f"Queries and keys of {names['student']} cannot be recorded, as "
            f"attention_loss={loss!r} needs; use attention_loss='probabilities'."
        )
    dropout = _attention_dropout(student)
    if dropout and loss == "probabilities":
        raise ValueError(
            f"Of {names['student']} transformers gives attention probabilities only after dropout "
            f"({dropout}), which makes some of them 0. Set it to 0 in the student's configuration, "
            "or use attention_loss='probabilities_mse'."
        )
    logger.warning(
        "The attention of %s is compared by its full maps (eager attention): transformers gives "
        "nothing else of this family, so memory grows with the square of the length%s.",
        names["student"],
        f", and dropout ({dropout}) makes them noisy" if dropout else "",
    )


def _attention_dropout(model: nn.Module) -> float:
    config = getattr(model, "config", None)
    names = ("attention_probs_dropout_prob", "attention_dropout")
    return max(float(getattr(config, name, 0.0) or 0.0) for name in names)


def check_checkpointing(student: nn.Module) -> None:
    """Refuse reentrant activation checkpointing: what is recorded inside has no gradient.

    Raises:
        RuntimeError: says how to switch it.
    """
    for module in student.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if getattr(module, "gradient_checkpointing", False) and (
            getattr(function, "keywords", {}).get("use_reentrant")
        ):
            raise RuntimeError(
                "Reentrant activation checkpointing gives recorded queries and keys no gradient, "
                "so the attention loss would train nothing. Set use_reentrant=False in "
                "activation_checkpointing_kwargs (gradient_checkpointing_kwargs)."
            )
