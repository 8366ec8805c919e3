"""The files of stored outputs: each written whole or not at all, and known by its checksum."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from datasets import Dataset, Features
from numpy.typing import NDArray

_MOST_ROWS = 4096
_MOST_BYTES = 64 * 2**20
_BLOCK = 1 << 20


class Part(NamedTuple):
    """A range of rows of the data set; its outputs are in one file."""

    number: int
    start: int
    stop: int


def plan_parts(lengths: NDArray[Any], bytes_a_token: int) -> list[Part]:
    """Cut a data set into parts that one process can hold.

    Args:
        lengths: tokens of each row.
        bytes_a_token: what is stored of one.
    """
    parts: list[Part] = []
    sizes = np.cumsum(lengths * bytes_a_token)
    start, before = 0, 0
    while start < len(lengths):
        stop = int(np.searchsorted(sizes, before + _MOST_BYTES, side="right"))
        stop = min(max(stop, start + 1), start + _MOST_ROWS)
        parts.append(Part(len(parts), start, stop))
        before, start = int(sizes[stop - 1]), stop
    return parts


class PartFiles:
    """The files of the parts, ``part-00000.CHECKSUM.arrow`` and so on, in one folder.

    Args:
        folder: where they are.
        features: the columns.
    """

    def __init__(self, folder: Path, features: Features) -> None:
        self._folder = folder
        self._features = features

    def find(self, part: Part) -> Path | None:
        """The file of a part, if it is there; its content is not looked at."""
        found = sorted(self._folder.glob(f"part-{part.number:05d}.*.arrow"))
        return found[0] if found else None

    def write(self, part: Part, columns: dict[str, pyarrow.Array]) -> None:
        """Write the file of a part.

        Raises:
            OSError: it cannot be written; nothing is left of it then.
        """
        schema = self._features.arrow_schema
        table = pyarrow.table([columns[name] for name in schema.names], schema=schema)
        temporary = self._folder / f"part-{part.number:05d}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                with pyarrow.ipc.new_stream(file, schema) as writer:
                    writer.write_table(table)
                file.flush()
                os.fsync(file.fileno())
            name = f"part-{part.number:05d}.{_checksum(temporary)}.arrow"
            os.replace(temporary, self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, part: Part) -> Dataset:
        """The rows of a part, memory-mapped.

        Raises:
            ValueError: the file is missing, cut short or altered.
        """
        path = self.find(part)
        if path is None:
            raise ValueError(
                f"Rows {part.start} to {part.stop - 1} have no file (part-{part.number:05d}) in "
                f"{self._folder.name}: caching was not finished. Run it again to finish it."
            )
        self.check(path)
        rows = Dataset.from_file(str(path))
        if rows.features.arrow_schema != self._features.arrow_schema or len(rows) != (
            part.stop - part.start
        ):
            raise ValueError(f"{path.name} is a file of another cache; delete it and run again.")
        return rows

    @staticmethod
    def check(path: Path) -> None:
        """Compare a file with the checksum in its name.

        Raises:
            ValueError: it was cut short or altered.
        """
        if path.name.split(".")[1] != _checksum(path):
            raise ValueError(
                f"{path.name} is damaged: it was cut short or altered after it was written. Run "
                "the caching again: it computes this part anew and keeps the others."
            )

    def damaged(self, parts: Sequence[Part]) -> list[Path]:
        """The files that are cut short or altered."""
        found = []
        for part in parts:
            path = self.find(part)
            if path is not None:
                try:
                    self.check(path)
                except ValueError:
                    found.append(path)
        return found

    def remove_unfinished(self) -> None:
        """Delete what interrupted runs left behind."""
        for path in self._folder.glob("part-*.tmp"):
            path.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]
