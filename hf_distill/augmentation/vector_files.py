"""Reading word vectors as their authors publish them."""

from __future__ import annotations

import gzip
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

# In bytes: a few MB of archive can hold gigabytes without a line's end.
_LONGEST_LINE = 1 << 20


_DAMAGED = (
    EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, struct.error,
    OverflowError,
    RuntimeError,  # a password, or a compression that this Python does not have
)  # fmt: skip


class WordVector(NamedTuple):
    """A word and its vector, (dimensions,) float32."""

    word: str
    vector: NDArray[np.float32]


def find_file(path: str | Path) -> tuple[Path, str | None]:
    """Find a file of vectors, which may be inside a zip archive.

    Args:
        path: the file; for one of several files in an archive, ``archive.zip/name.txt``.

    Returns:
        The file on the disk, and the name inside it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the archive is damaged or has several files, and ``path`` does not say which.
    """
    path = Path(path).expanduser()
    archive, member = path, None
    if not path.exists() and path.parent.suffix.lower() == ".zip" and path.parent.is_file():
        archive, member = path.parent, path.name
    if not archive.is_file():
        raise FileNotFoundError(
            f"glove_path={str(path)!r}: there is no such file. It must be a text file with a word "
            "and its vector a line (.txt, .txt.gz, .vec or .zip), such as glove.6B.100d.txt."
        )
    if archive.suffix.lower() != ".zip":
        return archive, None
    try:
        with zipfile.ZipFile(archive) as content:
            names = [n for n in content.namelist() if n.lower().endswith((".txt", ".vec"))]
    except (*_DAMAGED, UnicodeDecodeError) as error:
        raise ValueError(f"glove_path={str(archive)!r} is not a sound zip file: {error}") from error
    chosen = [n for n in names if member in (None, n, Path(n).name)]
    if len(chosen) != 1:
        raise ValueError(
            f"glove_path={str(path)!r}: the archive has the files {', '.join(names) or 'none'}; "
            f"name one of them, such as {str(archive / names[0]) if names else 'vectors.txt'!r}."
        )
    return archive, chosen[0]


def read_vectors(path: Path, member: str | None = None) -> Iterator[WordVector]:
    """Read vectors: GloVe's text format, or word2vec's, which has a line of two numbers before.

    Lines whose word has spaces, as in glove.840B, are read right: the vector is counted from the
    end. A word that is not UTF-8 is left out; so is a vector of zeros or with NaN.

    Args:
        path: a text file, as it is or in gzip or zip.
        member: the name inside a zip file.

    Yields:
        Words in the order of the file, which is that of their frequency.

    Raises:
        ValueError: a line is none of a word and as many numbers as the others; the file is cut
            off, damaged or empty. The message names the line.
    """
    try:
        with _opened(path, member) as file:
            yield from _parse(file, str(path))
    except _DAMAGED as error:
        raise ValueError(
            f"glove_path={str(path)!r} is cut off, damaged, or packed in a way that Python cannot "
            f"read ({error}); copy or unpack it again."
        ) from error


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[BinaryIO]:
    if member is not None:
        with zipfile.ZipFile(path) as archive, archive.open(member) as inner:
            yield cast(BinaryIO, inner)
    elif path.suffix.lower() == ".gz":
        with gzip.open(path, "rb") as compressed:
            yield cast(BinaryIO, compressed)
    else:
        with path.open("rb") as plain:
            yield plain


def _parse(file: BinaryIO, name: str) -> Iterator[WordVector]:
    lines = enumerate(iter(partial(file.readline, _LONGEST_LINE), b""), start=1)
    head = list(islice(lines, 8))
    if len(head) > 1 and _is_header(head[0][1], head[1][1]):
        head = head[1:]
    if not head:
        raise ValueError(f"glove_path={name!r} is empty: it has no word.")
    # The words of a few first lines may have spaces, but not those of all.
    dimensions = min(len(line.split()) for _, line in head) - 1
    if dimensions < 1:
        raise ValueError(
            f"glove_path={name!r}, line {head[0][0]}: expected a word and its vector, found "
            f"{head[0][1][:60]!r}."
        )
    for number, line in chain(head, lines):
        pieces = line.rstrip().rsplit(None, dimensions)
        if not pieces:
            continue
        try:
            vector = np.array(pieces[1:], dtype=np.float32)
        except ValueError:
            vector = np.empty(0, dtype=np.float32)
        if len(pieces) != dimensions + 1 or len(vector) != dimensions:
            raise ValueError(
                f"glove_path={name!r}, line {number}: expected a word and {dimensions} numbers, "
                f"found {line[:60]!r} ({len(line.split())} pieces). Is the file cut off?"
            )
        try:
            word = pieces[0].decode("utf-8")
        except UnicodeDecodeError:
            continue
        if np.isfinite(vector).all() and vector.any():
            yield WordVector(word, vector)


def _is_header(first: bytes, second: bytes) -> bool:
    pieces = first.split()
    return len(pieces) == 2 and all(p.isdigit() for p in pieces) and len(second.split()) > 2
