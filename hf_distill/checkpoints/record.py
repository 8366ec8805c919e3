"""Records of checkpoints: written last, they list its files and the run that it belongs to."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distill._version import __version__
from hf_distill.checkpoints.settings import changes
from hf_distill.checkpoints.student import changes_of_student
from hf_distill.files import read_json, write_json

logger = logging.getLogger(__name__)

RECORD_FILE = "distillation_checkpoint.json"
UNFINISHED_FILE = "distillation_checkpoint.unfinished"
"""Lies in a checkpoint while it is written."""
_FORMAT = 1
# Lies in a checkpoint of `enable_jit_checkpoint` while it is written.
_PASSING = "checkpoint-is-incomplete.txt"
_REMEDY = "resume from another checkpoint"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_INDEX = "model.safetensors.index.json"


def write_record(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    evaluation_left_out: bool = False,
    passes: int = 0,
) -> None:
    """Mark a checkpoint as complete, when everything else in it is written.

    Args:
        folder: the checkpoint.
        settings: ``distillation_settings`` of the run.
        evaluation_left_out: an evaluation was due and is to be made up.
        passes: how many passes over data without a length the run had begun.
    """
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (RECORD_FILE, UNFINISHED_FILE, _PASSING)
    }
    content = {
        "format": _FORMAT,
        "hf_distill_version": __version__,
        "settings": dict(settings),
        "evaluation_left_out": evaluation_left_out,
        "passes": passes,
        "files": files,
    }
    write_json(folder / RECORD_FILE, content)


def read_record(folder: Path) -> dict[str, Any] | str:
    """Return the record of a checkpoint if that is whole; otherwise what is wrong with it."""
    try:
        record = read_json(folder / RECORD_FILE, _REMEDY)
        files, found_format, _ = dict(record["files"]), record["format"], record["settings"]
    except FileNotFoundError:
        return (
            f"it was not saved to its end (it has no {RECORD_FILE}), or by a plain Trainer, whose "
            "checkpoints a distillation can only begin with: load it as the student of a new run"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{RECORD_FILE} cannot be read ({error})"
    if found_format != _FORMAT:
        return (
            f"{RECORD_FILE} has the format {found_format!r:.80}, of another version of hf_distill"
        )
    weights = [name for name in files if _WEIGHTS.fullmatch(name)]
    if weights and not any((folder / name).exists() for name in weights):
        wrong = _other_weights(folder)
        if wrong is not None:
            return f"{weights[0]} is missing" if wrong == _INDEX else wrong
        logger.warning(f"The weights in {folder} were divided into other files since it was saved.")
        files = {k: v for k, v in files.items() if k not in weights and k != _INDEX}
    for name, size in files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} of {size:,} bytes"
    return record


def _other_weights(folder: Path) -> str | None:
    """Return what is wrong with a model's weights in files that the record does not know.

    ``None`` if they can be loaded, and the name of the index if there are none.
    """
    try:
        shards: dict[str, str] = dict(read_json(folder / _INDEX, _REMEDY)["weight_map"])
    except FileNotFoundError:
        return _INDEX
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_INDEX} cannot be read ({error})"
    for name in sorted(set(shards.values())):
        try:
            with safe_open(folder / name, framework="pt") as file:
                lacking = {k for k, shard in shards.items() if shard == name} - set(file.keys())
        except (OSError, SafetensorError) as error:
            return f"{name}, which {_INDEX} names, cannot be read ({error})"
        if lacking:
            return f"{name} lacks {min(lacking)}"
    return None


def is_of_plain_trainer(folder: Path) -> bool:
    """Return whether a checkpoint was saved by a plain ``Trainer``, which writes its state last."""
    if (folder / RECORD_FILE).exists() or (folder / UNFINISHED_FILE).exists():
        return False
    try:
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        return False
    return True


def last_complete_checkpoint(
    folder: str | os.PathLike[str], *, of_plain_trainer: bool = False
) -> str | None:
    """Find the newest checkpoint of a run that is whole, and warn of newer ones that are not.

    Args:
        folder: the run's output directory.
        of_plain_trainer: also take those that a plain ``Trainer`` saved.
    """
    found = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if path.is_dir() and number.isdigit():
            found.append((int(number), path))
    for _, path in sorted(found, reverse=True):
        record = read_record(path)
        if not isinstance(record, str) or (of_plain_trainer and is_of_plain_trainer(path)):
            return str(path)
        logger.warning(f"{path} is left out: {record}.")
    return None


def check_checkpoint(
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    student: Any = None,
) -> dict[str, Any]:
    """Check that a run can resume from a checkpoint.

    Args:
        folder: the checkpoint.
        settings: ``distillation_settings`` of the run; not compared if ``None``. A run without a
            teacher also resumes from what a plain ``Trainer`` saved, which has no record.
        student: the model that the run trains; not compared if ``None``.

    Returns:
        The record; empty without one.

    Raises:
        ValueError: it is incomplete, or of a run with other settings or another student.
    """
    path = Path(folder)
    record: dict[str, Any] | str = {}
    ours = any((path / name).exists() for name in (RECORD_FILE, UNFINISHED_FILE))
    if settings is not None and not settings and not ours:
        if is_of_plain_trainer(path):
            logger.warning(f"{path} was saved by a plain Trainer; without a teacher it is resumed.")
        # Trainer reports whatever else is wrong with it.
    else:
        record = read_record(path)
    if isinstance(record, str):
        whole = last_complete_checkpoint(path.parent) if path.is_dir() else None
        instead = "There is no complete one next to it"
        if whole is not None:
            instead = f"The last complete one is {whole}: set resume_from_checkpoint=True"
        raise ValueError(f"resume_from_checkpoint={os.fspath(folder)!r}: {record}. {instead}.")
    changed = changes(record["settings"], settings) if record and settings is not None else []
    kind = "distillation" if changed or settings else "training"
    changed += changes_of_student(path, student)
    if changed:
        listed = "\n".join(f"  - {line}" for line in changed)
        raise ValueError(
            f"resume_from_checkpoint={os.fspath(folder)!r} is of another {kind}:\n{listed}\n"
            "Change these back to go on with it, or start a new run, in another output_dir, with "
            "the checkpoint as the student."
        )
    return record
