"""The files of stored outputs: each written whole or not at all, and known by its checksum."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from datasets import Dataset, Features
from numpy.typing import NDArray

from hf_distill.files import file_hash, is_temporary, temporary_path

_MOST_ROWS = 4096
_MOST_BYTES = 64 * 2**20
_IDENTITY = b"hf_distill"


class Part(NamedTuple):
    """A range of rows of the data set; its outputs are in one file."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Return how its file is called, without checksum."""
        return f"part-{self.number:05d}"


def part_starts(lengths: NDArray[Any], bytes_per_token: int) -> list[int]:
    """Cut a data set into parts that one process can hold.

    Args:
        lengths: tokens per row.
        bytes_per_token: how much is stored per token.

    Returns:
        The first row of each part.
    """
    starts: list[int] = []
    sizes = np.cumsum(lengths * bytes_per_token)
    start, before = 0, 0
    while start < len(lengths):
        starts.append(start)
        stop = int(np.searchsorted(sizes, before + _MOST_BYTES, side="right"))
        stop = min(max(stop, start + 1), start + _MOST_ROWS)
        before, start = int(sizes[stop - 1]), stop
    return starts


class PartFiles:
    """The files of the parts, ``part-00000.CHECKSUM.arrow`` and so on, in one folder.

    Args:
        folder: where they are.
        parts: all of them.
        features: the columns.
        key: tells the outputs of this cache from all others. It stands in each file, with the rows
            that the file is of, so that one which was copied from elsewhere is noticed.
    """

    def __init__(self, folder: Path, parts: Sequence[Part], features: Features, key: str) -> None:
        self._folder = folder
        self._parts = parts
        self._features = features
        self._key = key

    def find(self, part: Part) -> Path | None:
        """Return the file of a part, if it is there; its content is not looked at."""
        found = self._files(part)
        return found[0] if found else None

    def write(self, part: Part, columns: dict[str, pyarrow.Array]) -> None:
        """Write the file of a part.

        Raises:
            OSError: it cannot be written; nothing is left of it then.
        """
        schema = self._features.arrow_schema
        schema = schema.with_metadata({**schema.metadata, _IDENTITY: self._identity(part)})
        table = pyarrow.table([columns[name] for name in schema.names], schema=schema)
        try:
            with temporary_path(self._folder / part.name) as temporary:
                with temporary.open("wb") as file:
                    with pyarrow.ipc.new_stream(file, schema) as writer:
                        writer.write_table(table)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self._folder / f"{part.name}.{_checksum(temporary)}.arrow")
        except OSError as error:
            raise OSError(
                error.errno,
                f"The teacher's outputs for rows {part.start} to {part.stop - 1} cannot be written "
                f"to {self._folder.name} ({error.strerror or error}). The parts before are kept: "
                "make room, and run the same again to continue",
            ) from error

    def read(self, part: Part) -> Dataset:
        """Return the rows of a part, memory-mapped.

        Raises:
            ValueError: the file is missing, cut short, altered, or of another cache.
        """
        paths = self._files(part)
        if not paths:
            raise ValueError(
                f"Rows {part.start} to {part.stop - 1} have no file ({part.name}) in "
                f"{self._folder.name}: caching was not finished. Run it again to finish it."
            )
        for path in paths:
            fault = self._fault(part, path)
            if fault is not None:
                raise ValueError(
                    f"{path.name} in {self._folder.name} cannot be used: {fault}. Run the caching "
                    "again: it computes this part again and keeps the others."
                )
        return Dataset.from_file(str(paths[0]))

    def missing(self) -> list[Part]:
        """Return the parts that have no file."""
        return [part for part in self._parts if self.find(part) is None]

    def faults(self) -> dict[Path, str]:
        """Return the files that cannot be used, and why not."""
        found = {
            path: self._fault(part, path) for part in self._parts for path in self._files(part)
        }
        return {path: fault for path, fault in found.items() if fault is not None}

    def remove_unfinished(self) -> None:
        """Delete what interrupted runs left behind."""
        for path in self._folder.iterdir():
            if is_temporary(path):
                path.unlink(missing_ok=True)

    def unknown_files(self, known: Collection[str]) -> list[Path]:
        """Return what is neither a whole part, nor unfinished, nor of a known name."""
        ours = {path for part in self._parts for path in self._files(part)} - set(self.faults())
        if not self._folder.is_dir():
            return []
        return [
            path
            for path in sorted(self._folder.iterdir())
            if path not in ours and path.name not in known and not is_temporary(path)
        ]

    def _files(self, part: Part) -> list[Path]:
        return sorted(self._folder.glob(f"{part.name}.*.arrow"))

    def _identity(self, part: Part) -> bytes:
        return f"{self._key} {part.start} {part.stop}".encode()

    def _fault(self, part: Part, path: Path) -> str | None:
        if path.name.split(".")[1] != _checksum(path):
            return "it is damaged, cut short or altered after it was written"
        with pyarrow.OSFile(str(path)) as file:
            schema = pyarrow.ipc.open_stream(file).schema
        if (schema.metadata or {}).get(_IDENTITY) != self._identity(part):
            return "it is of another cache, or of other rows"
        return None


def _checksum(path: Path) -> str:
    return file_hash(path)[:16]
