"""A folder of stored outputs: its manifest, its parts, and the data set it belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from hf_distill.caching.fingerprints import data_hash, row_lengths
from hf_distill.caching.parts import Part, PartFiles, plan_parts
from hf_distill.reporting.files import write_json
from hf_distill.signals import SignalDescription

MANIFEST = "manifest.json"
FORMAT = 1
_INFORMATIVE = ("versions", "batch_size")
"""Recorded for the reader; outputs may differ by them in the last bits."""
# (And the preprocessing, as long as the data that came out of it is the same.)


def load_teacher_outputs(
    dataset: Dataset,
    output_dir: str | os.PathLike[str],
    *,
    preprocessing: Mapping[str, Any] | None = None,
) -> Dataset:
    """A data set with the outputs that ``cache_teacher_outputs`` computed for it before.

    The teacher is not needed. Every file is compared with its checksum, and the data set with the
    one that the outputs were computed for.

    Args:
        dataset: the data, as it was then.
        output_dir: the folder.
        preprocessing: as for ``cache_teacher_outputs``, to say what changed if something did.

    Returns:
        ``dataset`` with the teacher columns.

    Raises:
        ValueError: there is no (finished) cache in the folder, it is of other data, or a file is
            damaged.
    """
    folder = Path(output_dir)
    manifest = finished_manifest(folder)
    before = manifest["data"]
    missing = [name for name in before["columns"] if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The teacher outputs in {folder.name} were computed from the column {missing[0]!r}, "
            f"which the data lacks (it has: {', '.join(dataset.column_names)})."
        )
    now = describe_data(dataset.select_columns(before["columns"]))
    if before != now:
        prepared = manifest["preprocessing"]
        found = changes(
            {"data": before, "preprocessing": prepared},
            {"data": now, "preprocessing": prepared if preprocessing is None else preprocessing},
        )
        raise ValueError(
            f"The teacher outputs in {folder.name} are of other data: {'; '.join(found)}. Cache "
            "them again, into another folder."
        )
    return join(dataset, folder, manifest)


def cached_teacher(output_dir: str | os.PathLike[str]) -> SignalDescription:
    """What is known of the teacher whose outputs are in a folder.

    Raises:
        ValueError: there are none.
    """
    return description_of(finished_manifest(Path(output_dir)))


def finished_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of stored outputs.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(
            f"{folder.name} holds no teacher outputs (no {MANIFEST}); make them with "
            "cache_teacher_outputs or `hf-distill cache`."
        )
    return manifest


def join(dataset: Dataset, folder: Path, manifest: Mapping[str, Any]) -> Dataset:
    """The columns of a finished cache beside those of its data set."""
    description = description_of(manifest)
    files = PartFiles(folder, description.features())
    stored = [files.read(part) for part in parts_of(manifest)]
    return concatenate_datasets([dataset, concatenate_datasets(stored)], axis=1)


def description_of(manifest: Mapping[str, Any]) -> SignalDescription:
    """What the columns mean."""
    content = dict(manifest["signal"])
    return SignalDescription(**{**content, "hidden_layers": tuple(content["hidden_layers"])})


def parts_of(manifest: Mapping[str, Any]) -> list[Part]:
    """The ranges of rows."""
    starts = [*manifest["parts"], manifest["data"]["rows"]]
    return [Part(i, starts[i], starts[i + 1]) for i in range(len(starts) - 1)]


def part_starts(dataset: Dataset, bytes_a_token: int) -> list[int]:
    """Where the parts begin."""
    return [part.start for part in plan_parts(row_lengths(dataset), bytes_a_token)]


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What a manifest says of the data."""
    lengths = row_lengths(dataset)
    return {
        "rows": len(dataset),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "columns": sorted(dataset.column_names),
        "sha256": data_hash(dataset),
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; ``None`` without one.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{MANIFEST} in {folder.name} is damaged ({error}); cache into another folder."
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{folder.name} was written with format {version}, and this version of hf_distill "
            f"reads format {FORMAT}; cache the teacher's outputs again."
        )
    return content


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of a folder, which is made if need be."""
    write_json(folder / MANIFEST, content)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two manifests, in words."""
    found = []
    for group in {**before, **now}:
        if group in _INFORMATIVE:
            continue
        if group == "preprocessing" and before.get("data") == now.get("data"):
            continue
        old, new = before.get(group), now.get(group)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [
                f"{group}.{name} was {_shown(old.get(name))} and is now {_shown(new.get(name))}"
                for name in {**old, **new}
                if old.get(name) != new.get(name)
            ]
        elif old != new:
            found.append(f"{group} was {_shown(old)} and is now {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
