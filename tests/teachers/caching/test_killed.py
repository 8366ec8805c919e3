"""Killed at any moment, caching goes on where it was, and ends with the same files."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from caching_process import (
    ROWS,
    ROWS_A_PART,
    TASK,
    cached,
    contents,
    ended,
    finished,
    kill,
    start,
)
from filelock import FileLock
from zoo import zoo_dataset

from hf_distill.teachers.caching import load_teacher_outputs
from hf_distill.teachers.caching.cache import LOCK

pytestmark = pytest.mark.slow  # all kill processes

KILLED = -9
PARTS = ROWS // ROWS_A_PART
# The manifest is put in its place; then each part is opened, synchronised, put in its place.
OPERATIONS = 1 + 3 * PARTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    assert ended(start(folder)) == [0]
    files = contents(folder)
    assert len(files) == PARTS + 1
    return files


def goes_on(folder: Path, whole: dict[str, bytes], processes: int = 1) -> None:
    """The same again: the same files in the end, and none written twice."""
    before = finished(folder)
    assert ended(start(folder, processes)) == [0] * processes
    assert contents(folder) == whole
    after = finished(folder)
    assert {name: after[name] for name in before} == before


# Of the manifest, of the first part, of one in the middle, and of the last.
@pytest.mark.parametrize("operation", [0, 1, 2, 3, 4, 8, 9, OPERATIONS - 1])
def test_dead_before_any_operation_on_a_file(
    operation: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    assert ended(start(folder, dies_before=operation)) == [KILLED]
    assert len(finished(folder)) == max(operation - 1, 0) // 3
    assert len([name for name in contents(folder) if ".tmp" in name]) == 1
    goes_on(folder, whole)


def test_there_are_no_more_operations(whole: dict[str, bytes], tmp_path: Path) -> None:
    assert ended(start(tmp_path / "cache", dies_before=OPERATIONS)) == [0]
    assert contents(tmp_path / "cache") == whole


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments_again_and_again(
    processes: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    moments = random.Random(processes)
    folder = tmp_path / "cache"
    seen: dict[str, tuple[int, int]] = {}
    for _ in range(3):
        # Starting takes some time, which is none of caching: wait for the first sign of it.
        running = start(folder, processes, seconds_a_part=0.05)
        until, count = time.monotonic() + 30, len(finished(folder))
        while time.monotonic() < until and len(finished(folder)) == count < PARTS:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        kill(running)
        there = finished(folder)
        assert len(there) > len(seen) or len(seen) == PARTS
        assert {name: there[name] for name in seen} == seen
        seen = there
    goes_on(folder, whole, processes)


def test_a_process_that_looks_late_computes_its_share_all_the_same(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Both must share out the same list, though the other one has finished parts by then."""
    folder = tmp_path / "cache"
    assert ended(start(folder, 2, looks_late=1), seconds=30) == [0, 0]
    assert contents(folder) == whole


def test_an_unfinished_cache_is_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert ended(start(folder, dies_before=8)) == [KILLED]
    with pytest.raises(ValueError, match=r"Rows 8 to 11 have no file \(part-00002\) in cache"):
        load_teacher_outputs(zoo_dataset(TASK[0], ROWS), folder)


def test_a_finished_cache_is_left_alone(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Also if parts would be of another size today."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    before = finished(folder)
    again = cached(folder)
    assert finished(folder) == before and contents(folder) == whole
    assert again.column_names[-1] == "teacher_checksum"


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = start(folder, seconds_a_part=0.4)
    until = time.monotonic() + 60
    while not finished(folder):
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises(ValueError, match="output_dir cache: another process is computing"):
        cached(folder)
    assert ended(first) == [0] and len(finished(folder)) == ROWS // ROWS_A_PART
    # Any number may look at a finished one, where nothing can be written as well.
    before = contents(folder)
    with FileLock(folder / LOCK):
        assert len(cached(folder)) == ROWS
    assert contents(folder) == before
