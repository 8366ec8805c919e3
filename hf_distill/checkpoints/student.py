"""Compare the student of a checkpoint with that of the run that resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_distill.files import as_json, differences, read_json
from hf_distill.heads import unwrapped

_CONFIG = "config.json"
_LABELS = "id2label"
_NOT_COMPARED = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "_attn_implementation", "_attn_implementation_internal", "attn_implementation",
    "_experts_implementation", "output_attentions", "output_hidden_states", "return_dict",
    "label2id", "chunk_size_feed_forward", "initializer_range", "initializer_factor", "auto_map",
    "task_specific_params", "tokenizer_class", "gradient_checkpointing", "quantization_config",
}  # fmt: skip
"""Settings of which weights do not depend, and ``label2id``, which repeats ``id2label``."""
_OF_TRAINING = ("dropout", "drop", "_prob", "_prob_end", "_token_id")
"""Endings of settings that matter in training alone, and of tokens that Trainer takes over."""


def changes_of_student(folder: Path, student: Any) -> list[str]:
    """Name what makes a student another one than that of a checkpoint.

    Args:
        folder: the checkpoint. One without a configuration (of adapters, or of a module that is
            not transformers') is not compared.
        student: the student; ``None`` is not compared.
    """
    config = getattr(unwrapped(student), "config", None) if student is not None else None
    if not isinstance(config, PreTrainedConfig) or not (folder / _CONFIG).is_file():
        return []
    stored = read_json(folder / _CONFIG, "resume from another checkpoint")
    kind = {"model_type": stored.get("model_type")}, {"model_type": config.model_type}
    if kind[0] != kind[1]:
        return differences({"student": kind[0]}, {"student": kind[1]})
    # Of the class, because a file leaves out what is usual.
    before = as_json(type(config).from_dict(stored).to_dict())
    now = as_json(config.to_dict())
    before["architectures"] = stored.get("architectures")
    now["architectures"] = [type(unwrapped(student)).__name__]
    both = _compared(before, now), _compared(now, before)
    return differences({"student": both[0]}, {"student": both[1]})


def _compared(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that both sides know and that the weights depend on."""
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        other = others.get(name)
        if name in _NOT_COMPARED or name.endswith(_OF_TRAINING) or None in (value, other):
            continue
        if name != _LABELS and isinstance(value, dict) and isinstance(other, dict):
            value = _compared(value, other)
        kept[name] = value
    return kept
