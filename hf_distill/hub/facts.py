"""``distillation.json``: how a student was made, for machines. The model card is made of it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from hf_distill._version import __version__
from hf_distill.files import read_json, write_json
from hf_distill.tasks.bootstrap import TIMINGS

FACTS_FILE = "distillation.json"
_FORMAT = 1
_LIBRARIES = ("transformers", "torch", "datasets", "accelerate")
_TRAINING = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim",
    "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "bf16", "fp16",
    "label_smoothing_factor",
)  # fmt: skip
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def hub_id(name: str | os.PathLike[str] | None) -> str | None:
    """Return a name if it is that of a repository on the Hub and not a folder here."""
    text = "" if name is None else os.fspath(name)
    is_id = _HUB_ID.fullmatch(text) and not text.startswith(".") and not Path(text).exists()
    return text if is_id else None


def training_facts(args: TrainingArguments) -> dict[str, Any]:
    """Return the settings of a training that do not depend on a teacher."""
    return {name: _plain(getattr(args, name)) for name in _TRAINING}


def stage_facts(
    args: TrainingArguments, state: TrainerState, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how one stage was trained."""
    progress = {
        "processes": args.world_size,
        "steps": state.global_step,
        "epochs": state.epoch,
    }
    return {"settings": dict(settings), "training": {**training_facts(args), **progress}}


def student_facts(model: Any, task: str | None, state: TrainerState) -> dict[str, Any]:
    """Return what the student is, and its scores."""
    config = getattr(model, "config", None)
    return {
        "format": _FORMAT,
        "hf_distill_version": __version__,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "task": task,
        "student": {
            "architecture": type(model).__name__,
            "base_model": hub_id(getattr(config, "_name_or_path", None)),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "scores": scores_of(state.log_history, state.best_global_step),
    }


def scores_of(
    log_history: list[dict[str, float]], best_global_step: int | None = None
) -> dict[str, float]:
    """Return the last evaluation, or that of the best step, whose weights are kept."""
    evaluations = [entry for entry in log_history if any(k.startswith("eval_") for k in entry)]
    best = [entry for entry in evaluations if entry.get("step") == best_global_step]
    chosen = (best or evaluations or [{}])[-1]
    return {
        name.removeprefix("eval_"): value
        for name, value in chosen.items()
        if name.startswith("eval_")
        and not name.endswith(TIMINGS)
        and isinstance(value, int | float)
        and math.isfinite(value)
    }


def read_facts(folder: Path) -> dict[str, Any]:
    """Read what ``write_facts`` wrote.

    Raises:
        ValueError: there is none, or it is damaged or of another version.
    """
    path = folder / FACTS_FILE
    try:
        facts = read_json(path, "restore it, or train the student again")
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} is not the folder of a finished run: it has no {FACTS_FILE}, which "
            "`hf-distill train` and trainer.push_to_hub write at their end."
        ) from error
    if facts.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {facts.get('format')!r:.80}, and this version of hf_distill reads "
            f"format {_FORMAT}; train the student again, or use the version that wrote it."
        )
    return facts


def write_facts(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write ``distillation.json``, atomically."""
    return write_json(folder / FACTS_FILE, facts)


def _plain(value: Any) -> Any:
    """Return a value of the arguments as JSON has it."""
    return getattr(value, "value", value)
