from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hf_distill.files import (
    as_json,
    differences,
    display_name,
    file_hash,
    folder_hash,
    in_use,
    is_temporary,
    json_hash,
    read_json,
    temporary_path,
    write_atomically,
    write_json,
    write_text,
)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("deepset/tinyroberta", "deepset/tinyroberta"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("/home/someone/models/student", "student"),
        ("./models/student", "student"),
        ("~/models/student/", "student"),
        ("../a/b/student", "student"),
        ("a/b/student", "student"),
    ],
)
def test_display_name_keeps_hub_ids_and_last_parts(source: str, name: str) -> None:
    assert display_name(source) == name


def test_display_name_of_existing_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert display_name("owner/student") == "student"
    monkeypatch.chdir(tmp_path / "owner" / "student")
    assert display_name(".") == "student"


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_two_writers_of_one_file_do_not_collide(tmp_path: Path) -> None:
    path = tmp_path / "report.json"

    def slow(temporary: Path) -> None:
        temporary.write_text("slow, ")
        write_text(path, "quick")
        assert path.read_text() == "quick"
        with temporary.open("a") as file:
            file.write("whole")

    write_atomically(path, slow)
    assert path.read_text() == "slow, whole"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_is_written_atomically(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "a").write_text("1")
        if (tmp_path / "full").exists():
            raise OSError("disk full")

    assert [p.name for p in write_atomically(tmp_path / "one", write).iterdir()] == ["a"]
    (tmp_path / "full").touch()
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "two", write)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "one"]


def test_what_a_killed_process_left_is_deleted_when_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    with temporary_path(path) as old, temporary_path(path) as new:
        others = [tmp_path / "b.json", tmp_path / ".b.tmp.json", tmp_path / "a[1].tmp.json"]
        for file in (old, new, *others):
            file.touch()
        for file in (old, *others):
            os.utime(file, (0, 0))
        assert is_temporary(old) and is_temporary(new) and not any(map(is_temporary, others))
        write_text(path, "{}")
        assert sorted(tmp_path.iterdir()) == sorted([path, new, *others])


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", pytest.param("[" * 100_000, id="deep"), "\x00"]
)
def test_damaged_json_is_named_with_a_remedy(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json .*; name another folder"):
        read_json(tmp_path / "x.json", "name another folder")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "y.json", "name another folder")


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {"a": (1, float("nan")), "b": {2: "ü"}}
    written = read_json(write_json(tmp_path / "x.json", content), "")
    assert written == as_json(content) == {"a": [1, None], "b": {"2": "ü"}}


def test_hashes_of_earlier_versions_are_recognised(tmp_path: Path) -> None:
    """Caches, sweeps and checkpoints keep these hashes: they must not change."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b").write_text("x")
    (tmp_path / "a").write_text("x")
    assert file_hash(tmp_path / "a").startswith("2d711642b726b04401627ca9fbac32f5")
    assert folder_hash(tmp_path).startswith("516da5e76d78a1c509449023ff0ba3ab")
    assert json_hash({"b": [1, None, "ü"], "a": 0.5}).startswith("ab8a1b3d915433ee0d0c35e48a113d06")


def test_a_folders_hash_is_that_of_names_and_contents(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "b").write_text("x")
        (folder / "a").write_text("x")
    assert folder_hash(one) == folder_hash(other)
    for name in ("a", "inner/b"):
        (other / name).write_text("y")
        assert folder_hash(one) != folder_hash(other)
        (other / name).write_text("x")
    (one / "checkpoint-1").mkdir()
    (one / "checkpoint-1" / "a").write_text("of a training, not of its student")
    assert folder_hash(one) != folder_hash(other)
    assert folder_hash(one, lambda file: "checkpoint-1" not in file.parts) == folder_hash(other)
    (other / "a").rename(other / "b")
    assert folder_hash(one) != folder_hash(other)


def test_what_changed_is_named() -> None:
    before = {
        "space": {"t": [1, 2], "w": {"low": 0, "high": 1}},
        "options": {"max_steps": 4, "seed": 1, "long": "x" * 99},
        "contents": {"train_file a.json": "0" * 64},
    }
    now = {
        "space": {"t": (1, 2), "w": {"low": 0, "high": 2}},
        "options": {"max_steps": 4, "bf16": True, "long": "y" * 99},
        "contents": {"train_file a.json": "1" * 64},
    }
    assert differences(before, before) == []
    assert differences(before, now) == [
        "space.w.high was 1 and is now 2",
        "options.seed was 1 and is now not given",
        f'options.long was "{"x" * 58}… and is now "{"y" * 58}…',
        "options.bf16 was not given and is now true",
        "contents.train_file a.json has changed",
    ]
    ignore = ["space", "contents.train_file a.json", "options.long", "options.bf16"]
    found = differences(before, now, ignore=ignore, absent="not used")
    assert found == ["options.seed was 1 and is now not used"]
    assert differences({"a": float("nan")}, {"a": None}) == []


def test_json_has_no_nan(tmp_path: Path) -> None:
    content = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf"), "e": "ü"}}
    path = write_json(tmp_path / "deep" / "x.json", content)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None, "e": "ü"}}
    assert "ü" in text and "NaN" not in text


def test_one_process_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / ".lock"
    with in_use(lock, "another one is at work"):
        with (
            pytest.raises(ValueError, match="another one is at work"),
            in_use(lock, "another one is at work"),
        ):
            pass
        child = os.fork()
        if child == 0:
            try:
                with in_use(lock, "another one is at work"):
                    os._exit(0)
            except ValueError:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    with in_use(lock, "another one is at work"):
        pass
