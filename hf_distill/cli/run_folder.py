"""Contents of a training run's folder, and where an interrupted run resumes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from hf_distill.files import read_json

INTERMEDIATE = "intermediate"
"""The folder of the first of two stages, in that of the run."""
SAMPLES = "samples"
"""The folder of recorded samples, in that of a stage."""
PICTURES = "pictures"
"""The folder of pictures, in that of the run."""
REPLICATES = "replicates.json"
"""The metrics in resamples of the validation data, by which runs can be compared."""

# What an earlier run leaves behind, which a new one would overwrite or mistake for its own.
_RUN_FILES = (
    "config.json", "*.safetensors", "checkpoint-*", "metrics.json", "predictions.json",
    REPLICATES, f"{INTERMEDIATE}/*", f"{SAMPLES}/*",
)  # fmt: skip
_STATE = "trainer_state.json"
LOCK = ".train.lock"
"""Locked while a run is at work."""
METRICS = "metrics.json"
"""The report of a run, which it writes last."""
COMPARED = "comparison.json"
"""The figures of a comparison."""
PLAN_FILE = "shrink.json"
"""The plan of `shrink`, and what came of it."""
SWEPT = "sweep.json"
"""The trials of a sweep."""
EVALUATED = "evaluation.json"
"""The scores of a model."""

_RESULTS = {METRICS: "train", COMPARED: "compare", PLAN_FILE: "shrink", SWEPT: "sweep"}
"""The file by which the results of each command with a report are known."""
_REPLACED = ("checkpoint-*", INTERMEDIATE)
"""Folders of a run in which a new one replaces or deletes everything."""
# A run that was stopped early leaves these behind; some are there before it begins.
_OF_A_BEGINNING = (
    ".*", "checkpoint-*", INTERMEDIATE, SAMPLES, PICTURES, "runs", "*.log", "*.out", "*.err",
)  # fmt: skip


class Start(NamedTuple):
    """Where a run begins."""

    checkpoint: str | None = None
    """Of the run, or of the last of its stages."""
    first_stage_done: bool = False
    first_stage_checkpoint: str | None = None


def check_unused(folder: Path, names: Sequence[str] = _RUN_FILES) -> None:
    """Refuse a folder that holds such files of an earlier run."""
    found = sorted(str(path.relative_to(folder)) for name in names for path in folder.glob(name))
    if found:
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ValueError(
            f"--output_dir {folder} holds an earlier run ({shown}). Choose another folder, "
            "resume that run (--resume), or replace it (--overwrite_output_dir)."
        )


def check_kind(folder: Path, own: str) -> None:
    """Refuse a folder with results of another command than that which leaves the file ``own``."""
    for name, command in _RESULTS.items():
        if name != own and (folder / name).is_file():
            raise ValueError(
                f"--output_dir {folder} holds the results of `hf-distill {command}` ({name}), "
                "whose files would be replaced; name another folder."
            )


def check_strangers(
    folder: Path, mark: str, is_own: Callable[[Path], bool] | None = None, remedy: str = ""
) -> None:
    """Refuse a folder with files of no run: it has others, and no file ``mark``.

    Args:
        folder: it need not exist.
        mark: what an earlier run of the same command has left.
        is_own: whether such a run may leave this before; by default what is hidden.
        remedy: what can be done instead of naming a new folder.
    """
    if not folder.is_dir() or (folder / mark).exists():
        return
    is_own = is_own or (lambda path: path.name.startswith("."))
    strangers = sorted(path.name for path in folder.iterdir() if not is_own(path))
    if strangers:
        raise ValueError(
            f"--output_dir {folder} holds other files ({', '.join(strangers[:3])}) and no {mark}; "
            f"name a new folder{remedy}."
        )


def check_sources(
    folder: Path,
    sources: Mapping[str, Sequence[str] | str | None],
    is_replaced: Callable[[Path], bool] = lambda _: True,
) -> None:
    """Refuse to read what the run itself replaces or deletes.

    Args:
        folder: of the run.
        sources: models and files by the names of their options; Hub ids are left out.
        is_replaced: of a path in that folder, whether it is.
    """
    whole = folder.resolve()
    for name, given in sources.items():
        for source in [given] if isinstance(given, str) else given or ():
            path = Path(source).expanduser()
            # Also a link in the folder, which is deleted itself.
            for place in (path.resolve(), path.parent.resolve() / path.name):
                inside = path.exists() and place.is_relative_to(whole)
                if inside and is_replaced(place.relative_to(whole)):
                    raise ValueError(
                        f"--{name} {source} is in --output_dir {folder}, where it would be "
                        "replaced or deleted; name another folder."
                    )


def is_of_a_run(path: Path) -> bool:
    """Return whether a path in a run's folder, or that folder itself, is the run's to replace."""
    return not path.parts or any(fnmatch(path.parts[0], name) for name in _REPLACED)


def is_of_a_beginning(path: Path) -> bool:
    """Return whether a run may leave this before its first checkpoint."""
    return any(fnmatch(path.name, name) for name in _OF_A_BEGINNING)


def make_output_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder before the work whose results are to go there, or refuse it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output_dir {folder} cannot be made ({error.strerror}); name another folder."
        ) from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--output_dir {folder} cannot be written to; name another folder.")


def find_start(folder: Path, wanted: str | None, *, two_stages: bool) -> Start:
    """Find where a run resumes, or refuse what is not there or another run's.

    Args:
        folder: of the run.
        wanted: ``last``, ``true`` or a checkpoint's folder (``--resume_from_checkpoint``); ``None``
            to resume from the last one if there is one, and to begin otherwise (``--resume``).
        two_stages: the run has a first stage, in its own folder.
    """
    from hf_distill.checkpoints import check_checkpoint, last_complete_checkpoint

    first = folder / INTERMEDIATE
    done = two_stages and first_stage_summary(folder) is not None
    if wanted is not None and wanted.lower() not in ("last", "true"):
        path = Path(wanted).expanduser()
        if not (path / _STATE).is_file():
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: this is not a checkpoint (no {_STATE}); name "
                "a folder checkpoint-…, or `last` for the last one in --output_dir."
            )
        check_checkpoint(path)
        if two_stages and path.resolve().parent == first.resolve():
            return Start(first_stage_checkpoint=str(path))
        start = Start(str(path), done)
    else:
        start = Start(last_complete_checkpoint(folder), done)
        if start.checkpoint is None:
            if two_stages and first.is_dir():
                checkpoint = None if done else last_complete_checkpoint(first)
                return Start(first_stage_done=done, first_stage_checkpoint=checkpoint)
            if wanted is None:
                check_unused(folder, ("config.json", "*.safetensors"))
                check_strangers(folder, METRICS, is_of_a_beginning)
                return start
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: there is no complete checkpoint in "
                f"--output_dir {folder}; leave the option out to begin again."
            )
    if two_stages and not done:
        raise ValueError(
            f"--output_dir {folder}: {start.checkpoint} is of a run whose "
            f"intermediate stage is not in {first}. Leave out --intermediate_epochs (and "
            "--intermediate_max_steps) to resume it, or choose another --output_dir."
        )
    return start


def is_finished(folder: Path) -> bool:
    """Return whether a run has written its report, which it does last."""
    return (folder / METRICS).is_file()


def first_stage_summary(folder: Path) -> dict[str, Any] | None:
    """Read the figures of a run's first stage; ``None`` before it is done."""
    if not is_finished(folder / INTERMEDIATE):
        return None
    return read_json(folder / INTERMEDIATE / METRICS, "run the first stage again")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the trainer's log of a run or a checkpoint; empty without one."""
    history: list[dict[str, Any]] = read_state(folder).get("log_history", [])
    return history


def read_state(folder: Path) -> dict[str, Any]:
    """Read the trainer's state of a run or a checkpoint; empty without one."""
    file = folder / _STATE
    if not file.is_file():
        return {}
    remedy = "copy it again, or delete it"
    state: dict[str, Any] = read_json(file, remedy)
    if "log_history" not in state:
        raise ValueError(f"{file} is not a state of Trainer; {remedy}.")
    return state


def recorded_samples(stage: Path) -> dict[int, Path]:
    """Return the recorded samples of a run or a stage by their steps, in order."""
    files = (stage / SAMPLES).glob("step-*.safetensors")
    return dict(sorted((int(file.stem.removeprefix("step-")), file) for file in files))


def delete_steps(folder: Path) -> None:
    """Delete the steps of an earlier run: checkpoints, samples, losses. Another one begins."""
    (folder / METRICS).unlink(missing_ok=True)
    for earlier in folder.glob("checkpoint-*"):
        if earlier.is_symlink():
            earlier.unlink()
        elif earlier.is_dir():
            shutil.rmtree(earlier)
    for sample in (folder / SAMPLES).glob("step-*.safetensors"):
        sample.unlink()
    (folder / _STATE).unlink(missing_ok=True)


def delete_first_stage(folder: Path, *, steps: bool) -> None:
    """Make the first stage of a run count as not done; with ``steps``, delete its steps as well."""
    (folder / INTERMEDIATE / METRICS).unlink(missing_ok=True)
    if steps:
        delete_steps(folder / INTERMEDIATE)
