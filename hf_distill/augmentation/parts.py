"""The candidates of all texts of a data set, computed in parts that survive a kill.

A folder beside the output holds the distinct texts and, part by part, their candidates. A part is
always made of the same texts in the same batches, whichever process computes it; it is written
whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

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
_FORMAT = 1
_MANIFEST, _TEXTS = "manifest.json", "texts.jsonl"
_REMEDY = "leave resume out to begin again"


class Item(NamedTuple):
    """A text, and the places of its words if they are known."""

    text: str
    spans: Places | None = None

    @property
    def key(self) -> bytes:
        """Identifies the text and the places."""
        return blake2b(self.line.encode(), digest_size=16).digest()

    @property
    def line(self) -> str:
        """The text and the places as a line of JSON, in ASCII."""
        return json.dumps([self.text, self.spans and [list(span) for span in self.spans]])


class Parts:
    """A folder of texts and their candidates.

    Args:
        folder: written by ``Parts.create``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_json(folder / _MANIFEST, _REMEDY)
        self.options: dict[str, Any] = manifest["options"]
        self._starts: list[int] = manifest["starts"]

    def __len__(self) -> int:
        return len(self._starts)

    @classmethod
    def create(
        cls, folder: Path, items: Iterable[Item], options: Mapping[str, Any], *, resume: bool
    ) -> Parts:
        """Write the distinct texts into a folder.

        Args:
            folder: the folder to make.
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

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)

    def missing(self) -> list[int]:
        """The parts that are not there yet."""
        return [part for part in range(len(self)) if not self._path(part).is_file()]

    def compute(self, part: int, substituter: WordSubstituter) -> None:
        """Compute the candidates of a part and write them."""
        items = list(self._items(part))
        found = substituter.candidates([i.text for i in items], [i.spans for i in items])
        lines = (json.dumps([[s, e, list(w)] for s, e, w in one]) + "\n" for one in found)
        write_text(self._path(part), "".join(lines))

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.jsonl"

    def _items(self, part: int) -> Iterator[Item]:
        with (self.folder / _TEXTS).open("rb") as file:
            file.seek(self._starts[part])
            end = self._starts[part + 1] if part + 1 < len(self) else None
            while end is None or file.tell() < end:
                line = file.readline()
                if not line:
                    return
                text, spans = json.loads(line)
                yield Item(text, None if spans is None else [tuple(span) for span in spans])


class StoredCandidates:
    """The candidates of texts by text, read when asked for.

    Args:
        parts: a folder with all of its parts.
    """

    def __init__(self, parts: Parts) -> None:
        self._files = [parts._path(part).open("rb") for part in range(len(parts))]
        self._index: dict[bytes, int] = {}
        self._places = array("Q")
        for part, file in enumerate(self._files):
            place = 0
            for item, line in zip(parts._items(part), file, strict=True):
                self._index[item.key] = len(self._places) // 2
                self._places.extend((part, place))
                place += len(line)

    def __call__(self, item: Item) -> list[WordCandidates]:
        """Those of a text.

        Raises:
            KeyError: it is none of the texts.
        """
        index = self._index[item.key]
        part, place = self._places[2 * index : 2 * index + 2]
        file = self._files[part]
        file.seek(place)
        return [WordCandidates(*word) for word in json.loads(file.readline())]

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _write_texts(path: Path, items: Iterable[Item]) -> list[int]:
    starts: list[int] = []
    seen: set[bytes] = set()
    place = texts = characters = 0
    with path.open("wb") as file:
        for item in items:
            if item.key in seen:
                continue
            seen.add(item.key)
            size = len(item.text)
            if not starts or texts == PART_TEXTS or characters + size > PART_CHARACTERS:
                starts.append(place)
                texts = characters = 0
            line = (item.line + "\n").encode()
            file.write(line)
            place += len(line)
            texts += 1
            characters += size
    return starts
