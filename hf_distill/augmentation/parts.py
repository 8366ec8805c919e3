"""The candidates of all texts of a data set, computed in parts that survive a kill.

A folder next to the output holds the distinct texts and, part by part, their candidates. A part is
always made of the same texts in the same batches, whichever process computes it; it is written
whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hf_distill.augmentation.drawing import WordCandidates
from hf_distill.augmentation.substitution import Places, WordSubstituter
from hf_distill.files import (
    differences,
    file_hash,
    read_json,
    temporary_path,
    write_json,
    write_text,
)

# A part has no more characters than this, unless it is one text.
PART_CHARACTERS = 32_768
PART_TEXTS = 256
_PLACE_BITS = 40
_FORMAT = 2
_MANIFEST, _TEXTS = "manifest.json", "texts.jsonl"
_REMEDY = "leave resume out to begin again"


class Item(NamedTuple):
    """A text, and the places of its words if they are known."""

    text: str
    spans: Places | None = None

    @property
    def line(self) -> bytes:
        """The text and the places as a line of JSON, in ASCII."""
        content: list[Any] = [self.text, self.spans and [list(span) for span in self.spans]]
        return json.dumps(content).encode() + b"\n"


def _key(line: bytes) -> bytes:
    return blake2b(line, digest_size=16).digest()


class Parts:
    """A folder of texts and their candidates, written by ``Parts.create``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_json(folder / _MANIFEST, _REMEDY)
        self.options: dict[str, Any] = manifest["options"]
        self._starts: list[int] = manifest["starts"]

    def __len__(self) -> int:
        return len(self._starts) - 1

    @classmethod
    def create(
        cls, folder: Path, items: Iterable[Item], options: Mapping[str, Any], *, resume: bool
    ) -> Parts:
        """Write the distinct texts into a folder, which is made if need be.

        Args:
            folder: the folder.
            items: the texts.
            options: everything that the candidates depend on.
            resume: keep the parts of an earlier run with the same texts and options.

        Raises:
            ValueError: the folder is of a run with other texts or options.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_path(folder / _TEXTS) as texts:
            starts = _write_texts(texts, items)
            manifest = {"format": _FORMAT, "options": dict(options), "texts": file_hash(texts)}
            if resume and (folder / _MANIFEST).is_file():
                before = read_json(folder / _MANIFEST, _REMEDY)
                changed = differences(before, manifest, ignore=["starts"])
                if changed:
                    raise ValueError(
                        f"resume: the run to resume is another one: {'; '.join(changed)}. Leave "
                        "resume out to begin again, or pass what it was started with."
                    )
                return cls(folder)
            for old in (*folder.glob("part-*"), folder / _MANIFEST):
                old.unlink(missing_ok=True)
            texts.replace(folder / _TEXTS)
        write_json(folder / _MANIFEST, {**manifest, "starts": starts})
        return cls(folder)

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not there yet."""
        return [part for part in range(len(self)) if not self.path(part).is_file()]

    def compute(self, part: int, substituter: WordSubstituter) -> None:
        """Compute the candidates of a part and write them."""
        texts, spans = zip(*map(json.loads, self.lines(part)), strict=True)
        found = substituter.candidates(texts, spans)
        lines = (json.dumps([[s, e, list(w)] for s, e, w in one]) + "\n" for one in found)
        write_text(self.path(part), "".join(lines))

    def path(self, part: int) -> Path:
        """Return the file of a part's candidates."""
        return self.folder / f"part-{part:05d}.jsonl"

    def lines(self, part: int) -> list[bytes]:
        """Read the lines of a part's texts."""
        start, end = self._starts[part : part + 2]
        with (self.folder / _TEXTS).open("rb") as file:
            file.seek(start)
            return file.read(end - start).splitlines(keepends=True)


class StoredCandidates:
    """Candidates by text, read from the parts when asked for."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._part = -1
        self._file: BinaryIO = BytesIO()
        self._places: dict[bytes, int] = {}
        for part in range(len(parts)):
            self._open(part)
            place = 0
            for text, line in zip(parts.lines(part), self._file, strict=True):
                self._places[_key(text)] = part << _PLACE_BITS | place
                place += len(line)

    def __call__(self, item: Item) -> list[WordCandidates]:
        """Read the candidates of a text.

        Raises:
            KeyError: it is not one of the texts.
        """
        part, place = divmod(self._places[_key(item.line)], 1 << _PLACE_BITS)
        if part != self._part:
            self._open(part)
        self._file.seek(place)
        return [WordCandidates(*word) for word in json.loads(self._file.readline())]

    def close(self) -> None:
        """Close the file that is open."""
        self._file.close()

    def _open(self, part: int) -> None:
        """Open the file of a part, and no other: there may be more than a process may open."""
        self.close()
        self._part = part
        self._file = self._parts.path(part).open("rb")


def _write_texts(path: Path, items: Iterable[Item]) -> list[int]:
    """Write each text once; return where each part starts, and where the last one ends."""
    starts: list[int] = []
    seen: set[bytes] = set()
    texts = characters = 0
    with path.open("wb") as file:
        for item in items:
            line = item.line
            key = _key(line)
            if key in seen:
                continue
            seen.add(key)
            size = len(item.text)
            if not starts or texts == PART_TEXTS or characters + size > PART_CHARACTERS:
                starts.append(file.tell())
                texts = characters = 0
            file.write(line)
            texts += 1
            characters += size
        return [*starts, file.tell()]
