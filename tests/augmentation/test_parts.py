from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from filelock import FileLock
from masked_lms import WORDS
from squad_files import document, write

from hf_distill.augmentation import WordSubstituter, augment_squad, parts
from hf_distill.augmentation.parts import Item, Parts, StoredCandidates
from hf_distill.augmentation.processes import Rank, compute_share

TEXTS = [" ".join(WORDS[i : i + 7]) for i in range(0, 60, 5)]


def big_document(repeat: int = 1) -> dict[str, Any]:
    content = document()
    content["data"].append(
        {
            "title": "",
            "paragraphs": [
                {"context": f"{text} {number}", "qas": []}
                for number in range(repeat)
                for text in TEXTS
            ],
        }
    )
    return content


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_TEXTS", 4)


def items(texts: list[str] = TEXTS) -> list[Item]:
    return [Item(text) for text in texts]


def test_texts_are_computed_once_and_found_by_text(
    substituter: WordSubstituter, tmp_path: Path
) -> None:
    odd = ["", "a\u2028b \ud83d river", "river", "x" * 40_000, "河"]
    texts = [*TEXTS, *odd]
    spans = [Item("river town", [(0, 5)]), Item("river town", [(6, 10)])]
    made = Parts.create(tmp_path / "work", [*items(texts * 3), *spans], {}, resume=False)
    lines = (tmp_path / "work" / "texts.jsonl").read_text().splitlines()
    assert len(lines) == len(texts) + 2 and len(made) == 6
    for part in made.missing():
        made.compute(part, substituter)
    stored = StoredCandidates(made)
    for text in reversed(texts):
        assert [w.start for w in stored(Item(text))] == [
            w.start for w in substituter.candidates([text])[0]
        ]
    assert [(w.start, w.end) for item in spans for w in stored(item)] == [(0, 5), (6, 10)]
    with pytest.raises(KeyError):
        stored(Item("something else"))
    stored.close()


def test_more_parts_than_a_process_may_open(
    substituter: WordSubstituter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(parts, "PART_TEXTS", 1)
    made = Parts.create(
        tmp_path / "work", items([f"{n} river" for n in range(80)]), {}, resume=False
    )
    for part in made.missing():
        made.compute(part, substituter)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 40, limits[1]))
    try:
        with contextlib.closing(StoredCandidates(made)) as stored:
            assert all(stored(item) for item in items(["79 river", "0 river", "79 river"]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_resume_keeps_whole_parts(substituter: WordSubstituter, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    first = Parts.create(folder, items(), {"model": "a"}, resume=False)
    first.compute(1, substituter)
    written = (folder / "part-00001.jsonl").stat().st_mtime_ns
    again = Parts.create(folder, items(), {"model": "a"}, resume=True)
    assert again.missing() == [0, 2]
    assert (folder / "part-00001.jsonl").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match='resume: .* options.model was "a" and is now "b"'):
        Parts.create(folder, items(), {"model": "b"}, resume=True)
    with pytest.raises(ValueError, match="resume: .* texts has changed"):
        Parts.create(folder, items()[1:], {"model": "a"}, resume=True)
    assert Parts(folder).missing() == [0, 2]
    assert Parts.create(folder, items(), {"model": "a"}, resume=False).missing() == [0, 1, 2]
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "texts.jsonl"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_processes_share_the_parts(
    count: int, substituter: WordSubstituter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Parts.create(tmp_path / "work", items(), {}, resume=False)
    computed: list[int] = []
    monkeypatch.setattr(Parts, "compute", lambda self, part, substituter: computed.append(part))
    shares = []
    for number in range(count):
        computed.clear()
        compute_share(made, Rank(number, count), None, substituter)
        shares.append(list(computed))
    assert sorted(part for share in shares for part in share) == [0, 1, 2]
    assert sum(map(bool, shares)) == min(count, 3)
    # Whoever asked for it does not live any more.
    compute_share(made, Rank(0, 1), None, substituter, parent=-1)
    assert computed == shares[-1]


def test_a_second_run_into_the_same_file_is_kept_out(saved_model: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.json", document())
    folder = tmp_path / ".out.json.parts"
    made = Parts.create(folder, items(), {}, resume=False)
    with (
        FileLock(folder / ".lock"),
        pytest.raises(ValueError, match="another process is augmenting into the same file"),
    ):
        augment_squad(source, tmp_path / "out.json", model=saved_model, device="cpu")
    # What the first one has is still there; without it the second may begin.
    assert len(made.missing()) == 3 and len(Parts(folder)) == 3
    augment_squad(source, tmp_path / "out.json", model=saved_model, device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.json", "out.json"]


SCRIPT = """
import os, sys
from joblib.externals.loky.backend import context

import hf_distill.augmentation.parts as parts
from hf_distill.augmentation import augment_squad
from hf_distill.cli.main import main

parts.PART_TEXTS = 4
words = sys.argv[1:]
if words[0] != "loky":
    context.set_start_method("fork")  # what it starts has imported PyTorch, and is as it is here
if words[0] == "killed":
    parts.Parts.compute = lambda *_: os.kill(os.getpid(), 9)
sys.exit(main(["augment", "--device", "cpu", "--multiplication_factor", "3", *words[1:]]))
"""


def augment(
    tmp_path: Path, source: Path, target: Path, *options: str, launcher: Sequence[str] = (),
    mode: str = "",
) -> subprocess.Popen[str]:  # fmt: skip
    """Start ``hf-distill augment`` with small parts in a process of its own."""
    script = tmp_path.with_suffix(".py")
    script.write_text(SCRIPT)
    words = ["--squad_path", str(source), "--output_path", str(target), *options]
    return subprocess.Popen(
        [forked.interpreter(), *launcher, str(script), mode, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": forked.interpreter()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_same_bytes_from_any_number_of_processes(saved_model: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.json", big_document())
    options: dict[str, Any] = {"model": saved_model, "device": "cpu", "multiplication_factor": 3}
    augment_squad(source, tmp_path / "one.json", **options)
    augment_squad(source, tmp_path / "two.json", num_proc=2, **options)
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = augment(
        tmp_path, source, tmp_path / "three.json", "--model", saved_model, launcher=launcher
    )
    out, err = command.communicate()
    assert command.returncode == 0, err
    assert out.count("questions in") == 1
    assert (tmp_path / "three.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_killed_run_is_resumed(processes: str, saved_model: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.json", big_document(repeat=30))
    target = tmp_path / "out.json"
    words = ["--model", saved_model, "--masking", "single", "--num_proc", processes]
    process = augment(tmp_path, source, target, *words)
    folder = tmp_path / ".out.json.parts"
    while not list(folder.glob("part-*.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    forked.kill(process)
    assert not target.exists()
    if processes == "2":
        # What it had started ends after the part that it is at.
        left = len(Parts(folder).missing())
        time.sleep(3)
        assert len(Parts(folder).missing()) >= left - 2
    assert 0 < len(Parts(folder).missing()) < len(Parts(folder))
    options: dict[str, Any] = {"model": saved_model, "device": "cpu", "multiplication_factor": 3}
    with pytest.raises(ValueError, match="masking was .single. and is now .grouped."):
        augment_squad(source, target, resume=True, **options)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.jsonl")}
    computed: list[int] = []
    compute = Parts.compute

    def count(self: Parts, part: int, substituter: WordSubstituter) -> None:
        computed.append(part)
        compute(self, part, substituter)

    Parts.compute = count  # type: ignore[method-assign]
    try:
        augment_squad(source, target, resume=True, masking="single", **options)
    finally:
        Parts.compute = compute  # type: ignore[method-assign]
    whole = json.loads(target.read_text())
    assert computed and len(computed) + len(kept) == -(-(3 + 30 * len(TEXTS)) // 4)
    augment_squad(source, tmp_path / "other.json", masking="single", **options)
    assert json.loads((tmp_path / "other.json").read_text()) == whole
    assert not folder.exists()


@pytest.mark.slow
def test_a_process_that_fails_is_told(saved_model: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.json", big_document())
    for mode, model, batch_size, told in (
        ("", saved_model, "0", "batch_size=0"),
        ("", "nowhere", "4", "'nowhere'"),
        ("killed", saved_model, "4", "a process of num_proc was killed"),
    ):
        words = ["--model", model, "--batch_size", batch_size, "--num_proc", "2"]
        process = augment(tmp_path, source, tmp_path / "out.json", *words, mode=mode)
        _, err = process.communicate()
        assert process.returncode == 2, err
        assert told in err and "Traceback" not in err
        assert [path.name for path in tmp_path.iterdir()] == ["in.json"]
    assert "memory for 2 models" in err
