"""The files of a cache: cut into parts, written whole or not at all, refused if they are not."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from caching_process import ERROR, ROWS_A_PART, contents, ended, start
from datasets import Features, List, Value
from hypothesis import given
from hypothesis import strategies as st

import hf_distill.teachers.caching.parts as parts_module
from hf_distill.files import file_hash
from hf_distill.teachers.caching.parts import Part, PartFiles, part_starts

FEATURES = Features({"numbers": List(Value("float32")), "sums": Value("uint32")})
FIRST, SECOND = Part(0, 0, 3), Part(1, 3, 5)


def columns(part: Part, seed: int = 0) -> dict[str, pyarrow.Array]:
    random = np.random.default_rng(seed)
    rows = part.stop - part.start
    values = pyarrow.array(random.random(4 * rows, dtype=np.float32))
    return {
        "numbers": pyarrow.ListArray.from_arrays(list(range(0, 4 * rows + 1, 4)), values),
        "sums": pyarrow.array(random.integers(0, 2**32, rows, dtype=np.uint32)),
    }


def files(folder: Path, key: str = "this cache") -> PartFiles:
    folder.mkdir(exist_ok=True)
    return PartFiles(folder, [FIRST, SECOND], FEATURES, key)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 90),
)
def test_parts_are_all_rows_in_order(
    lengths: list[int], bytes_a_token: int, rows: int, most_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "_MOST_ROWS", rows)
        patch.setattr(parts_module, "_MOST_BYTES", most_bytes)
        starts = part_starts(np.array(lengths), bytes_a_token)
    assert starts[0] == 0 and starts[-1] < len(lengths)
    plan = [Part(0, *rows) for rows in pairwise([*starts, len(lengths)])]
    for part in plan:
        size = sum(lengths[part.start : part.stop]) * bytes_a_token
        assert 1 <= part.stop - part.start <= rows
        assert size <= most_bytes or part.stop - part.start == 1
        if part.stop < len(lengths) and part.stop - part.start < rows:  # it is as large as can be
            assert size + lengths[part.stop] * bytes_a_token > most_bytes


def test_what_is_written_is_read(tmp_path: Path) -> None:
    cache = files(tmp_path)
    assert cache.find(SECOND) is None
    cache.write(SECOND, columns(SECOND))
    cache.write(FIRST, columns(FIRST, 1))
    for part, seed in ((FIRST, 1), (SECOND, 0)):
        rows = cache.read(part)
        assert rows.features == FEATURES
        expected = columns(part, seed)
        assert rows["sums"][:] == expected["sums"].to_pylist()
        assert rows["numbers"][:] == expected["numbers"].to_pylist()
    assert not cache.faults() and not cache.unknown_files(())


def test_the_same_content_has_the_same_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        files(tmp_path / folder).write(FIRST, columns(FIRST))
    files(tmp_path / "c").write(FIRST, columns(FIRST, 1))
    a, b, c = (contents(tmp_path / folder) for folder in "abc")
    assert a == b and not a.keys() & c.keys()


@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
def test_no_room_leaves_nothing_half_written(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = files(tmp_path)
    cache.write(FIRST, columns(FIRST))
    before = contents(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = pyarrow.ipc if failing == "write" else os
    monkeypatch.setattr(owner, "new_stream" if failing == "write" else failing, fail)
    message = "for rows 3 to 4 cannot be written to .* No space left.* run the same again"
    with pytest.raises(OSError, match=message.replace(" No", r"\(No")) as caught:
        cache.write(SECOND, columns(SECOND))
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == before
    monkeypatch.undo()
    cache.write(SECOND, columns(SECOND))
    assert len(cache.read(SECOND)) == 2


def test_a_full_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    """The kernel itself refuses the write, in the middle of a file."""
    assert ended(start(tmp_path / "whole")) == [0]
    whole = contents(tmp_path / "whole")
    sizes = [len(whole[name]) for name in sorted(whole) if name.startswith("part")]
    largest = max(sizes[1:])
    failing = next(i for i, size in enumerate(sizes) if size >= largest)
    assert failing > 0
    folder = tmp_path / "cache"
    assert ended(start(folder, largest_file=largest - 1)) == [errno.EFBIG]
    first = failing * ROWS_A_PART
    assert f"for rows {first} to {first + ROWS_A_PART - 1} cannot" in (tmp_path / ERROR).read_text()
    there = contents(folder)
    assert len(there) == failing + 1 and there.items() <= whole.items()
    assert ended(start(folder)) == [0]
    assert contents(folder) == whole


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_file_that_was_cut_is_named(length: int, tmp_path: Path) -> None:
    cache = files(tmp_path)
    cache.write(FIRST, columns(FIRST))
    cache.write(SECOND, columns(SECOND))
    path = cache.find(FIRST)
    assert path is not None
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{path.name} in .* cut short or altered"):
        cache.read(FIRST)
    assert list(cache.faults()) == [path]
    assert cache.unknown_files(()) == [path]
    assert len(cache.read(SECOND)) == 2


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    cache = files(tmp_path)
    cache.write(FIRST, columns(FIRST))
    path = cache.find(FIRST)
    assert path is not None
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 97):
        altered = bytearray(whole)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        assert list(cache.faults()) == [path], place
    path.write_bytes(whole)
    assert not cache.faults()


def test_a_file_from_elsewhere_is_named(tmp_path: Path) -> None:
    cache, other = files(tmp_path / "cache"), files(tmp_path / "other", "another cache")
    same_size = Part(0, 5, 8)
    cache.write(FIRST, columns(FIRST))
    own = cache.find(FIRST)
    assert own is not None
    for stranger, part in ((other, FIRST), (files(tmp_path / "rows"), same_size)):
        stranger.write(part, columns(part, 7))
        path = stranger.find(part)
        assert path is not None
        copy = own.with_name(path.name)
        copy.write_bytes(path.read_bytes())  # beside the right one
        with pytest.raises(ValueError, match=f"{path.name} in cache .* of another cache"):
            cache.read(FIRST)
        assert list(cache.faults()) == [copy]
        copy.unlink()
    assert len(cache.read(FIRST)) == 3


def test_a_file_of_no_cache_at_all(tmp_path: Path) -> None:
    cache = files(tmp_path)
    table = pyarrow.table(columns(FIRST))
    with pyarrow.ipc.new_stream(str(tmp_path / "part"), table.schema) as writer:
        writer.write_table(table)
    name = f"part-00000.{file_hash(tmp_path / 'part')[:16]}.arrow"
    (tmp_path / "part").rename(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} .* of another cache"):
        cache.read(FIRST)


def test_what_was_left_unfinished_is_removed_and_nothing_else(tmp_path: Path) -> None:
    cache = files(tmp_path)
    cache.write(FIRST, columns(FIRST))
    kept = contents(tmp_path)
    (tmp_path / ".part-00001.0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / ".manifest.0123456789ab.tmp.json").write_bytes(b"half")
    cache.remove_unfinished()
    assert contents(tmp_path) == kept
    with pytest.raises(ValueError, match=r"Rows 3 to 4 have no file \(part-00001\)"):
        cache.read(SECOND)
