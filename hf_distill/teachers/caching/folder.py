"""A folder of stored outputs: its manifest, its parts, and the data set it belongs to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from hf_distill.files import differences, json_hash, read_json, write_json
from hf_distill.teachers.caching.fingerprints import data_hash, row_lengths
from hf_distill.teachers.caching.parts import Part, PartFiles
from hf_distill.teachers.columns import SignalDescription

logger = logging.getLogger(__name__)

MANIFEST, LOCK, TOKENIZER = "manifest.json", ".lock", "teacher_tokenizer"
FORMAT = 2
_MOST_DIFFERENCES = 8
_INFORMATIVE = ("versions", "batch_size", "parts")
"""Recorded; outputs may differ by them in the last bits."""
# (And the preprocessing, as long as the data that came out of it is the same.)
_NAMES = ("signal.teacher", "teachers.names")
"""The same teacher may be somewhere else today: its weights tell."""


class DamagedManifestError(ValueError):
    """The manifest of a cache was cut short or altered."""


class CacheFolder:
    """A manifest, and the files of the parts that it lists."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        signal = manifest["signal"]
        layers = tuple(signal["hidden_layers"])
        self.description = SignalDescription(**{**signal, "hidden_layers": layers})
        starts = [*manifest["parts"], manifest["data"]["rows"]]
        self.parts = [Part(number, *rows) for number, rows in enumerate(pairwise(starts))]
        self.files = PartFiles(path, self.parts, self.description.features(), self.key)

    @classmethod
    def open(cls, path: Path) -> CacheFolder | None:
        """Read the manifest of a folder; ``None`` without one.

        Raises:
            DamagedManifestError: it was cut short or altered.
            ValueError: it is of another version.
        """
        try:
            manifest = read_json(path / MANIFEST, "run the caching again")
            whole = manifest.pop("checksum") == json_hash(manifest)
            version = manifest["format"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError):
            whole = False
        if not whole:
            raise DamagedManifestError(
                f"{MANIFEST} in {path.name} is damaged, cut short or altered after it was written. "
                "Run the caching again: it writes it again if the other files are whole."
            )
        if version != FORMAT:
            raise ValueError(
                f"{path.name} was written with format {version}, and this version of hf_distill "
                f"reads format {FORMAT}; cache the teacher's outputs again."
            )
        return cls(path, manifest)

    @classmethod
    def open_finished(cls, path: Path) -> CacheFolder:
        """Read the manifest of a folder that must have one."""
        folder = cls.open(path)
        if folder is None:
            raise ValueError(
                f"{path.name} holds no teacher outputs (no {MANIFEST}); make them with "
                "cache_teacher_outputs or `hf-distill cache`."
            )
        return folder

    @property
    def key(self) -> str:
        """Hash of what decides the outputs."""
        kept = {}
        for group, content in self.manifest.items():
            if isinstance(content, Mapping):
                content = {k: v for k, v in content.items() if f"{group}.{k}" not in _NAMES}
            if group not in (*_INFORMATIVE, "preprocessing"):
                kept[group] = content
        return json_hash(kept)

    def write_manifest(self) -> None:
        """Write the manifest, and make the folder if need be."""
        content = {**self.manifest, "checksum": json_hash(self.manifest)}
        write_json(self.path / MANIFEST, content)

    def is_finished(self) -> bool:
        """Return whether all is there and whole: nothing is then written, many may look at once."""
        try:
            before = self.open(self.path)
        except DamagedManifestError:
            return False
        if before is None or changes(before.manifest, self.manifest):
            return False
        return not before.files.missing() and not before.files.faults()

    def begin(self) -> None:
        """Begin a cache, or check that the one that is there is the same one.

        Raises:
            ValueError: it is another one, or damaged.
        """
        name = self.path.name
        try:
            before = self.open(self.path)
        except DamagedManifestError as error:
            before, unknown = None, self.unknown_files()
            if unknown:
                raise ValueError(
                    f"{MANIFEST} in {name} is damaged, and {unknown[0].name} is damaged as well or "
                    "of another run; name another folder."
                ) from error
            logger.warning(
                "%s was damaged; it is written again, and whole parts are kept.", MANIFEST
            )
        if before is None:
            self.write_manifest()
            before = self
        changed = changes(before.manifest, self.manifest)
        if changed:
            raise ValueError(
                f"output_dir {name} holds the outputs of another run: {'; '.join(changed)}. Name "
                "another folder, or delete this one."
            )
        before.files.remove_unfinished()
        for path, fault in before.files.faults().items():
            logger.warning("%s is computed again: %s.", path.name, fault)
            path.unlink()

    def unknown_files(self) -> list[Path]:
        """Return everything in the folder that is not of this cache."""
        return self.files.unknown_files((MANIFEST, LOCK, TOKENIZER))

    def join(self, dataset: Dataset) -> Dataset:
        """Return the data set with the columns of a finished cache."""
        stored = [self.files.read(part) for part in self.parts]
        return concatenate_datasets([dataset, concatenate_datasets(stored)], axis=1)


def describe_data(dataset: Dataset, positions_of: Sequence[str] = ()) -> dict[str, Any]:
    """Describe data for a manifest.

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


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between two manifests."""
    # Other data comes of another preparation; of other data a collator makes other batches.
    implied = "preprocessing" if before.get("data") == now.get("data") else "data_collator"
    found = differences(before, now, ignore=(*_INFORMATIVE, *_NAMES, implied))
    if len(found) > _MOST_DIFFERENCES:
        found[_MOST_DIFFERENCES:] = [f"and {len(found) - _MOST_DIFFERENCES} more"]
    return found
