"""Check, before training, that the attentions of two models can be compared."""

from __future__ import annotations

import logging

from torch import nn

from hf_distill.layers.recording import has_attention_taps
from hf_distill.layers.stacks import stacks_of
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


def check_attention(
    args: DistillationTrainingArguments, teacher: nn.Module, student: nn.Module
) -> None:
    """Refuse an attention loss that this pair cannot have.

    Raises:
        ValueError: says what to use instead.
    """
    ours, theirs = stacks_of(student, "student"), stacks_of(teacher, "teacher")
    loss = args.attention_comparison
    for name, stack in ours.items():
        sizes, of = {"teacher": theirs[name], "student": stack}, f"'s {name}" if name else ""
        for who, size in sizes.items():
            if size.heads is None:
                raise ValueError(
                    f"The {who}{of} has no attention; set attention_loss_weight=0 and compare "
                    "hidden states alone."
                )
        if loss == "relations":
            relation_heads = args.relation_heads or theirs[name].heads or 1
            for who, size in sizes.items():
                if size.attention_width % relation_heads:
                    raise ValueError(
                        f"relation_heads={relation_heads} does not divide the {who}{of}'s width "
                        f"{size.attention_width}; choose one that divides both widths."
                    )
        elif theirs[name].heads != stack.heads:
            raise ValueError(
                f"attention_loss={loss!r} compares head by head, but the teacher{of} has "
                f"{theirs[name].heads} heads and the student{of} {stack.heads}; use "
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
    if "" not in ours:
        raise ValueError(
            f"Queries and keys of {names['student']} cannot be recorded, as the attention losses "
            "of encoders with decoders need; set attention_loss_weight=0."
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
