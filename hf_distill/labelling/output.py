"""The file with the labels, its manifest, and what a run finds there of an earlier one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distill.augmentation.tables import write_table
from hf_distill.files import file_hash, read_json, write_json
from hf_distill.labelling.work import changes, stored_manifest
from hf_distill.tasks.tables import load_table
from hf_distill.tasks.text_files import ending
from hf_distill.teachers.caching.fingerprints import data_hash

_REMEDY = "Name another output_path, or delete the file."
_WRITTEN = ("table_sha256", "output_sha256")
"""Recorded when the file is whole."""
_RESULTS = ("cut", "calibration", "probabilities_sha256", *_WRITTEN)


def check_output_path(path: Path) -> None:
    """Check the name of a file to write.

    Raises:
        ValueError: it is of another kind.
    """
    if ending(path) not in (".jsonl", ".parquet") or path.name.lower().endswith(".parquet.gz"):
        raise ValueError(
            f"output_path={str(path)!r} must end in .jsonl, .jsonl.gz or .parquet: no other file "
            "holds an object of label and probability per row."
        )


def manifest_path(target: Path) -> Path:
    """Return where the manifest of a labelled file is."""
    return target.with_name(f"{target.name}.manifest.json")


def parts_path(target: Path) -> Path:
    """Return the folder of an unfinished run's parts."""
    return target.with_name(f".{target.name}.parts")


def date_of(target: Path | None) -> datetime:
    """Return the date for a chat template to show: that of the run to resume, else today's."""
    before: Any = None
    if target is not None:
        before = _written_manifest(target) or stored_manifest(parts_path(target))
    with suppress(KeyError, TypeError, ValueError):  # no run, or without a date
        return datetime.fromisoformat(before["prompt"]["date"])
    return datetime.now()


def _written_manifest(target: Path) -> dict[str, Any] | None:
    """Return the manifest of a file that was written before; ``None`` without a file.

    Raises:
        ValueError: the file has no manifest.
    """
    if not target.exists():
        return None
    path = manifest_path(target)
    if not path.exists():
        raise ValueError(f"output_path {target.name} exists, without a {path.name}. {_REMEDY}")
    return read_json(path, "delete it and the file next to it to begin again")


def finished(target: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a file that this run has written before; ``None`` without a file.

    Raises:
        ValueError: the file is of another run, or was altered.
    """
    before = _written_manifest(target)
    if before is None:
        return None
    runs = ({k: v for k, v in one.items() if k not in _RESULTS} for one in (before, manifest))
    changed = changes(*runs)
    if _altered(target, before):
        changed = ["it was altered after it was written"]
    if changed:
        raise ValueError(
            f"output_path {target.name} holds other probabilities: {'; '.join(changed)}. {_REMEDY}"
        )
    return before


def _altered(target: Path, manifest: Mapping[str, Any]) -> bool:
    if "output_sha256" in manifest:
        return bool(manifest["output_sha256"] != file_hash(target))
    # A run was killed while it wrote: other columns are of that run, or of the one before.
    probabilities = load_table(target).select_columns([manifest["column"]])
    return data_hash(probabilities) != manifest["probabilities_sha256"]


def write_labelled(target: Path, dataset: Dataset, manifest: dict[str, Any]) -> None:
    """Write data with its probabilities and the manifest, and remove the parts.

    Killed at any moment, the next run finds the parts, or a file whose probabilities it knows.

    Args:
        target: the file.
        dataset: the data.
        manifest: of the run; the hashes of what is written are added.

    Raises:
        OSError: the disk is full.
    """
    manifest["probabilities_sha256"] = data_hash(dataset.select_columns([manifest["column"]]))
    begun = {name: value for name, value in manifest.items() if name not in _WRITTEN}
    write_json(manifest_path(target), begun)
    write_table(dataset, target)
    with suppress(FileNotFoundError):  # other columns of a finished file: all parts are gone
        shutil.rmtree(parts_path(target))
    manifest["output_sha256"] = file_hash(target)
    write_json(manifest_path(target), manifest)
