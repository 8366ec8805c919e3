"""A folder of stored outputs: its manifest, its parts, and the data set it belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from hf_distill.files import differences, json_hash, read_json, write_json
from hf_distill.teachers.caching.fingerprints import data_hash, row_lengths
from hf_distill.teachers.caching.parts import Part, PartFiles, plan_parts
from hf_distill.teachers.columns import SignalDescription

MANIFEST = "manifest.json"
FORMAT = 1
_MOST_DIFFERENCES = 8
_INFORMATIVE = ("versions", "batch_size", "parts")
"""Recorded; outputs may differ by them in the last bits."""
# (And the preprocessing, as long as the data that came out of it is the same.)
_NAMES = ("signal.teacher", "teachers.names")
"""The same teacher may be somewhere else today: its weights tell."""


class DamagedManifestError(ValueError):
    """The manifest of a cache was cut short or altered."""


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
    folder = Path(output_dir).expanduser()
    manifest = finished_manifest(folder)
    before = manifest["data"]
    missing = [name for name in before["columns"] if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The teacher outputs in {folder.name} were computed from the column {missing[0]!r}, "
            f"which the data lacks (it has: {', '.join(dataset.column_names)})."
        )
    now = describe_data(dataset.select_columns(before["columns"]), before["positions_of"])
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
    return description_of(finished_manifest(Path(output_dir).expanduser()))


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
    files = part_files(folder, manifest)
    stored = [files.read(part) for part in parts_of(manifest)]
    return concatenate_datasets([dataset, concatenate_datasets(stored)], axis=1)


def description_of(manifest: Mapping[str, Any]) -> SignalDescription:
    """What the columns mean."""
    content = dict(manifest["signal"])
    return SignalDescription(**{**content, "hidden_layers": tuple(content["hidden_layers"])})


def part_files(folder: Path, manifest: Mapping[str, Any]) -> PartFiles:
    """The files of a cache, which know what it was computed from."""
    return PartFiles(folder, description_of(manifest).features(), cache_key(manifest))


def cache_key(manifest: Mapping[str, Any]) -> str:
    """A hash of what decides the outputs."""
    kept = {}
    for group, content in manifest.items():
        if isinstance(content, Mapping):
            content = {k: v for k, v in content.items() if f"{group}.{k}" not in _NAMES}
        if group not in (*_INFORMATIVE, "preprocessing"):
            kept[group] = content
    return json_hash(kept)


def parts_of(manifest: Mapping[str, Any]) -> list[Part]:
    """The ranges of rows."""
    starts = [*manifest["parts"], manifest["data"]["rows"]]
    return [Part(i, starts[i], starts[i + 1]) for i in range(len(starts) - 1)]


def part_starts(dataset: Dataset, bytes_a_token: int) -> list[int]:
    """Where the parts begin."""
    return [part.start for part in plan_parts(row_lengths(dataset), bytes_a_token)]


def describe_data(dataset: Dataset, positions_of: Sequence[str] = ()) -> dict[str, Any]:
    """What a manifest says of the data.

    Args:
        dataset: the columns that the outputs are computed from.
        positions_of: those of labels, of which it only matters where they count.
    """
    lengths = row_lengths(dataset)
    return {
        "rows": len(dataset),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "columns": sorted(dataset.column_names),
        "positions_of": sorted(positions_of),
        "sha256": data_hash(dataset, positions_of),
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; ``None`` without one.

    Raises:
        DamagedManifestError: it was cut short or altered.
        ValueError: it is of another version.
    """
    try:
        content = read_json(folder / MANIFEST, "run the caching again")
        whole = content.pop("checksum") == json_hash(content)
        version = content["format"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        whole = False
    if not whole:
        raise DamagedManifestError(
            f"{MANIFEST} in {folder.name} is damaged, cut short or altered after it was written. "
            "Run the caching again: it writes it anew if the other files are whole."
        )
    if version != FORMAT:
        raise ValueError(
            f"{folder.name} was written with format {version}, and this version of hf_distill "
            f"reads format {FORMAT}; cache the teacher's outputs again."
        )
    return content


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of a folder, which is made if need be."""
    write_json(folder / MANIFEST, {**content, "checksum": json_hash(content)})


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between two manifests."""
    # Other data comes of another preparation; of other data a collator makes other batches.
    implied = "preprocessing" if before.get("data") == now.get("data") else "data_collator"
    found = differences(before, now, ignore=(*_INFORMATIVE, *_NAMES, implied))
    if len(found) > _MOST_DIFFERENCES:
        found[_MOST_DIFFERENCES:] = [f"and {len(found) - _MOST_DIFFERENCES} more"]
    return found
