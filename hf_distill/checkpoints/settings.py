"""Settings of a distillation: compared when a run resumes, and listed in the model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hf_distill.files import as_json, differences
from hf_distill.layers.mapping import LayerPairs, as_lists
from hf_distill.teachers import TeacherIdentity
from hf_distill.training_args import DistillationTrainingArguments

_LOGITS = (
    "distillation_loss", "distillation_loss_weight", "distillation_loss_weight_schedule",
    "distillation_loss_weight_end", "temperature", "temperature_schedule", "temperature_end",
)  # fmt: skip
_LAYERS = (
    "hidden_states_loss", "hidden_states_loss_weight", "attention_loss", "attention_loss_weight",
    "relation_heads", "layer_mapping",
)  # fmt: skip
_NOT_COMPARED = ("layer_pairs", "teachers")
"""Pairs are chosen by ``auto``; teachers are compared by their weights."""


def distillation_settings(
    args: DistillationTrainingArguments,
    teachers: Sequence[TeacherIdentity],
    *,
    custom_loss: Callable[..., Any] | None = None,
    layer_pairs: LayerPairs | None = None,
) -> dict[str, Any]:
    """Return all that a distillation depends on, ready for JSON and without paths.

    Returns:
        Only what has an effect: nothing at all without a teacher.
    """
    if not args.needs_teacher:
        return {}
    settings: dict[str, Any] = {
        "stage": args.stage,
        "teachers": [asdict(teacher) for teacher in teachers],
    }
    if len(teachers) > 1:
        settings["teacher_weights"] = args.teacher_weights
        settings["teacher_combination"] = args.teacher_combination
    if args.uses_logits_loss:
        settings |= {name: getattr(args, name) for name in _LOGITS}
        if custom_loss is not None:
            module, name = (getattr(custom_loss, n, "") for n in ("__module__", "__qualname__"))
            settings["distillation_loss"] = f"{module}.{name or type(custom_loss).__qualname__}"
    if args.uses_layer_losses:
        settings |= {name: getattr(args, name) for name in _LAYERS}
        weights = args.intermediate_weights
        settings |= {f"{name}_loss_weight": weight for name, weight in weights.items()}
        settings["attention_loss"] = args.attention_comparison if weights["attention"] else None
        settings["layer_pairs"] = as_lists(layer_pairs or [])
    found: dict[str, Any] = as_json(settings)
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between two runs' settings; nothing if one can resume the other."""
    found = _teachers_that_differ(before.get("teachers", []), now.get("teachers", []))
    return found + differences(before, now, ignore=_NOT_COMPARED, absent="not used")


def _teachers_that_differ(then: Sequence[Any], today: Sequence[Any]) -> list[str]:
    if len(then) != len(today):
        return differences({"teacher_model": len(then)}, {"teacher_model": len(today)})
    found = []
    for old, new in zip(then, today, strict=True):
        # A teacher may have moved, so its weights are compared where they are known.
        known = old["weights"] is not None and new["weights"] is not None
        compared = "weights" if known else "name"
        if old[compared] != new[compared]:
            which = [f"{t['name']!r} (weights {str(t['weights'])[:12]}…)" for t in (old, new)]
            found.append(f"teacher_model was {which[0]} and is now {which[1]}")
        else:
            found += differences({"top_k": old["top_k"]}, {"top_k": new["top_k"]}, absent="all")
    return found
