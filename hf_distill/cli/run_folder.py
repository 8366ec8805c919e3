"""What a training run keeps in its folder, and where a run that was stopped can go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from hf_distill.cli.tasks import say

INTERMEDIATE = "intermediate"
"""The folder of the first of two stages, in that of the run."""
SAMPLES = "samples"
"""The folder of recorded samples, in that of a stage."""
PICTURES = "pictures"
"""The folder of pictures, in that of the run."""

# What an earlier run leaves behind, which a new one would overwrite or mistake for its own.
_RUN_FILES = (
    "config.json", "*.safetensors", "checkpoint-*", "metrics.json", "predictions.json",
    f"{INTERMEDIATE}/*", f"{SAMPLES}/*",
)  # fmt: skip
_CHECKPOINT = "checkpoint-"
_STATE = "trainer_state.json"
_DONE = "metrics.json"


class Start(NamedTuple):
    """Where a run begins."""

    checkpoint: str | None = None
    """Of the run, or of the last of its stages."""
    first_stage_done: bool = False
    first_stage_checkpoint: str | None = None


def check_unused(folder: Path) -> None:
    """Refuse a folder that holds an earlier run.

    Raises:
        ValueError: names what is there and what can be done.
    """
    found = sorted(
        str(path.relative_to(folder)) for name in _RUN_FILES for path in folder.glob(name)
    )
    if found:
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ValueError(
            f"--output_dir {folder} holds an earlier run ({shown}). Choose another folder, "
            "go on with that run (--resume_from_checkpoint last), or replace it "
            "(--overwrite_output_dir)."
        )


def find_start(folder: Path, wanted: str, *, two_stages: bool) -> Start:
    """Where ``--resume_from_checkpoint`` says that a run goes on.

    Args:
        folder: of the run.
        wanted: ``last``, ``true`` or a checkpoint's folder.
        two_stages: the run has a first stage, in a folder of its own.

    Raises:
        ValueError: there is nothing to go on from, or it is another run's.
    """
    first = folder / INTERMEDIATE
    done = two_stages and first_stage_summary(folder) is not None
    if wanted.lower() not in ("last", "true"):
        path = Path(wanted).expanduser()
        if not (path / _STATE).is_file():
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: this is no checkpoint (no {_STATE}); name a "
                f"folder {_CHECKPOINT}…, or `last` for the last one in --output_dir."
            )
        if two_stages and path.resolve().parent == first.resolve():
            return Start(first_stage_checkpoint=str(path))
        start = Start(str(path), done)
    else:
        start = Start(last_checkpoint(folder), done)
        if two_stages and start.checkpoint is None and first.is_dir():
            return start if done else Start(first_stage_checkpoint=last_checkpoint(first))
        if start.checkpoint is None:
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: there is no checkpoint in --output_dir "
                f"{folder}; leave the option out to begin anew."
            )
    if two_stages and not done:
        raise ValueError(
            f"--resume_from_checkpoint {wanted}: {start.checkpoint} is of a run whose "
            f"intermediate stage is not in {first}. Leave out --intermediate_epochs (and "
            "--intermediate_max_steps) to go on with it, or choose another --output_dir."
        )
    return start


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was saved to its end; ``None`` if there is none."""
    found = []
    for path in folder.glob(f"{_CHECKPOINT}*"):
        number = path.name.removeprefix(_CHECKPOINT)
        if path.is_dir() and number.isdigit():
            found.append((int(number), path))
    for _, path in sorted(found, reverse=True):
        # Trainer writes it last.
        if (path / _STATE).is_file():
            return str(path)
        say(f"{path} is incomplete: the run was stopped while it was saved. It is left out.")
    return None


def first_stage_summary(folder: Path) -> dict[str, Any] | None:
    """What the first of two stages wrote when it was done; ``None`` before.

    Args:
        folder: of the run.
    """
    try:
        content: dict[str, Any] = json.loads((folder / INTERMEDIATE / _DONE).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return content


def forget_steps(folder: Path) -> None:
    """Delete the steps of an earlier run: checkpoints, samples, losses. Another one begins."""
    for earlier in folder.glob(f"{_CHECKPOINT}*"):
        if earlier.is_dir():
            shutil.rmtree(earlier)
    for sample in (folder / SAMPLES).glob("step-*.safetensors"):
        sample.unlink()
    (folder / _STATE).unlink(missing_ok=True)


def forget_first_stage(folder: Path, *, steps: bool) -> None:
    """Delete what says that the first stage is done.

    Args:
        folder: of the run.
        steps: its checkpoints and samples, too.
    """
    (folder / INTERMEDIATE / _DONE).unlink(missing_ok=True)
    if steps:
        forget_steps(folder / INTERMEDIATE)
