from __future__ import annotations

import gzip
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.augmentation.vector_files import find_file, read_vectors
from hf_distill.augmentation.word_vectors import open_word_vectors

CONTENT = "river 1 0\nlake 0.9 0.1\ncastle 0 1\n"


def words(path: Path, member: str | None = None) -> list[str]:
    return [one.word for one in read_vectors(path, member)]


def file(folder: Path, content: str | bytes, name: str = "vectors.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_kinds_of_files(tmp_path: Path) -> None:
    plain = file(tmp_path, CONTENT)
    packed = file(tmp_path, gzip.compress(CONTENT.encode()), "vectors.txt.gz")
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("readme.md", "no vectors")
        archive.writestr("inner/vectors.txt", CONTENT)
    word2vec = file(tmp_path, f"3 2\n{CONTENT}", "vectors.vec")
    for path in (plain, packed, tmp_path / "one.zip", word2vec):
        assert words(*find_file(path)) == ["river", "lake", "castle"]


def test_a_zip_of_several_files(tmp_path: Path) -> None:
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.50d.txt", CONTENT)
        archive.writestr("a.100d.txt", "sea 1 2\n")
    with pytest.raises(ValueError, match=r"a\.50d\.txt, a\.100d\.txt; name one"):
        find_file(path)
    assert words(*find_file(path / "a.100d.txt")) == ["sea"]
    vectors = open_word_vectors(path / "a.50d.txt")
    assert vectors is not None and len(vectors) == 3
    other = open_word_vectors(path / "a.100d.txt")
    assert other is not None and len(other) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (". . . 1 2\nat name@home.org 3 4\nriver 5 6\n", [". . .", "at name@home.org", "river"]),
        (b"r\xffver 1 2\nlake 3 4\n", ["lake"]),
        ("river 1 2\nzero 0 0\nbad nan 1\nlake 3 4\n", ["river", "lake"]),
        ("river 1 2\r\nlake 3 4", ["river", "lake"]),
        ("\u00a0 1 2\nriver 1 2\n", ["\u00a0", "river"]),
        ("1999 1 2\n2000 3 4\n", ["1999", "2000"]),
    ],
)
def test_odd_tokens(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    assert words(file(tmp_path, content)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("river\n", "line 1: expected a word and its vector"),
        (CONTENT * 5 + "lake 0.", "line 16: expected a word and 2 numbers.*cut off"),
        (CONTENT * 5 + "lake x y\n", "line 16"),
        ("<html><body class=x>no\n", "line 1"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        words(file(tmp_path, content))
    assert open_word_vectors is not None
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_damaged_archives(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(2000).hex().encode())
    with pytest.raises(ValueError, match="cut off, damaged"):
        words(file(tmp_path, whole[:-200], "vectors.txt.gz"))
    with pytest.raises(ValueError, match="not a sound zip"):
        find_file(file(tmp_path, b"PK nonsense", "vectors.zip"))
    with pytest.raises(FileNotFoundError, match="glove_path='nowhere.txt'"):
        find_file("nowhere.txt")


@pytest.mark.parametrize("rows", [1 << 16, 70, 300])
def test_neighbours_are_those_with_the_largest_cosine(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_distill.augmentation.word_vectors._ROWS", rows)
    random = np.random.default_rng(0)
    matrix = random.normal(size=(300, 7)).astype(np.float32)
    names = [f"w{i}" for i in range(300)]
    lines = (
        f"{n} {' '.join(map(repr, map(float, v)))}" for n, v in zip(names, matrix, strict=True)
    )
    vectors = open_word_vectors(file(tmp_path, "\n".join(lines)))
    assert vectors is not None
    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    cosines = units.astype(np.float64) @ units.astype(np.float64).T
    np.fill_diagonal(cosines, -2)
    found = vectors.neighbours([*names, "unknown"], 12)
    assert list(found) == names
    for row, name in enumerate(names):
        assert found[name] == [names[i] for i in np.argsort(-cosines[row])[:12]]
        np.testing.assert_allclose(vectors.vector(name), units[row], rtol=1e-6)
    again = open_word_vectors(tmp_path / "vectors.txt")
    assert again is not None
    assert again.neighbours(["w5"], 12)["w5"] == found["w5"]


def test_a_word_is_looked_for_as_written_and_in_lower_case(tmp_path: Path) -> None:
    vectors = open_word_vectors(file(tmp_path, CONTENT + "Castle 0.5 0.5\n"))
    assert vectors is not None
    found = vectors.neighbours(["RIVER", "Castle", "castle", "tower"], 1)
    assert found == {"RIVER": ["lake"], "Castle": ["lake"], "castle": ["Castle"]}
    assert "river" in vectors and "RIVER" not in vectors
    with pytest.raises(KeyError, match="tower"):
        vectors.vector("tower")


def test_the_index_is_written_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = file(tmp_path, CONTENT)
    assert len(open_word_vectors(path) or ()) == 3
    (index,) = tmp_path.glob(".*")
    written = index.stat()
    os.utime(path)
    assert len(open_word_vectors(path) or ()) == 3
    # The index has the date of the file, so that it need not be read to know that it is the same.
    assert written.st_mtime_ns != index.stat().st_mtime_ns == path.stat().st_mtime_ns
    assert index.stat().st_ino == written.st_ino
    file(tmp_path, CONTENT + "sea 0.8 0.2\n")
    assert len(open_word_vectors(path) or ()) == 4
    assert index.stat().st_ino != written.st_ino
    assert len(open_word_vectors(path, max_words=2) or ()) == 2
    assert len(open_word_vectors(path, max_words=None) or ()) == 4
    # The same size, and other words.
    content = path.read_text().replace("castle", "palace")
    path.write_text(content)
    assert "palace" in (open_word_vectors(path) or ())


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    path = file(tmp_path, CONTENT)
    open_word_vectors(path)
    (index,) = tmp_path.glob(".*")
    whole = index.read_bytes()
    for content in (b"short", b"", whole[:-9], whole[: len(whole) // 2]):
        index.write_bytes(content)
        os.utime(index, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        assert (open_word_vectors(path) or {}).neighbours(["river"], 1) == {"river": ["lake"]}
        assert index.read_bytes() == whole


def test_an_index_with_places_outside_of_it_is_made_again(tmp_path: Path) -> None:
    path = file(tmp_path, CONTENT)
    open_word_vectors(path)
    (index,) = tmp_path.glob(".*")
    whole = index.read_bytes()
    places = np.array([0, 5, 9, 15], dtype=np.int32).tobytes()
    assert whole.count(places) == 1
    index.write_bytes(whole.replace(places, np.array([0, 5, 9, 1 << 30], np.int32).tobytes()))
    os.utime(index, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert "castle" in (open_word_vectors(path) or ())
    assert index.read_bytes() == whole


def test_the_index_goes_to_the_cache_where_the_folder_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, CONTENT)
    make = Path.touch

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.parent == tmp_path:
            raise PermissionError("read-only")
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", refuse)
    assert len(open_word_vectors(path) or ()) == 3
    assert list(tmp_path.iterdir()) == [path]
    assert list(Path(os.environ["XDG_CACHE_HOME"], "hf_distill").iterdir())


def test_others_may_read_the_index(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_word_vectors(file(tmp_path, CONTENT))
    finally:
        os.umask(before)
    (index,) = tmp_path.glob(".*")
    assert index.stat().st_mode & 0o777 == 0o640


def test_an_index_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can neither be read nor replaced."""
    path = file(tmp_path, CONTENT)
    open_word_vectors(path)
    (index,) = tmp_path.glob(".*")
    written = index.read_bytes()
    read, remove = pa.memory_map, Path.unlink

    def read_own(name: str) -> Any:
        if name == str(index):
            raise PermissionError(13, "Permission denied")
        return read(name)

    def remove_own(self: Path, missing_ok: bool = False) -> None:
        if self == index:
            raise PermissionError(13, "Operation not permitted")
        remove(self, missing_ok)

    monkeypatch.setattr(pa, "memory_map", read_own)
    monkeypatch.setattr(Path, "unlink", remove_own)
    for _ in range(2):
        assert (open_word_vectors(path) or {}).neighbours(["river"], 1) == {"river": ["lake"]}
    assert {*tmp_path.iterdir()} == {path, index} and index.read_bytes() == written
    assert len(list(Path(os.environ["XDG_CACHE_HOME"], "hf_distill").iterdir())) == 1


def test_without_a_path_and_without_the_package() -> None:
    assert open_word_vectors() is None
    with pytest.raises(ValueError, match="max_words=0"):
        open_word_vectors("x.txt", max_words=0)


def test_the_vectors_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as parquet

    data = tmp_path / "glove_package" / "data"
    data.mkdir(parents=True)
    (tmp_path / "glove_package" / "__init__.py").write_text("raise RuntimeError('not imported')")
    np.save(data / "glove_6B_50d_emb.npy", np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32))
    parquet.write_table(
        pa.table({"index": ["river", "lake", "castle"]}), data / "glove_6B_index.parquet"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("hf_distill.augmentation.word_vectors.PACKAGE", "glove_package")
    vectors = open_word_vectors()
    assert vectors is not None
    assert vectors.neighbours(["castle"], 2) == {"castle": ["lake", "river"]}
    assert not list(tmp_path.glob("glove_package/**/*.arrow"))


CHARACTERS = st.characters(exclude_categories=["Cs", "Zs", "Cc", "Zl", "Zp"])


@given(st.lists(st.text(CHARACTERS, min_size=1)))
def test_any_words_are_found_again(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"{name} {i + 1} 1 2 3" for i, name in enumerate(dict.fromkeys(names))]
        path = file(Path(folder), "\n".join(["first 1 1 1 1", *lines]))
        vectors = open_word_vectors(path, max_words=None)
        assert vectors is not None
        assert all(name in vectors for name in names)
