"""``make bench``: what is done is not done again, and what failed is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        before = set(sys.modules)
        import bench

        yield bench
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_only_what_failed_runs_again(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    runs = tmp_path / "runs"

    def write(name: str, status: int) -> None:
        (tmp_path / f"{name}.py").write_text(
            "import sys\n"
            f"with open({str(runs)!r}, 'a') as file:\n"
            f"    print('{name}', *sys.argv[1:], file=file)\n"
            f"print('figures of {name}')\n"
            f"sys.exit({status})\n"
        )

    write("good", 0)
    write("bad", 3)
    named = [bench.Benchmark("good-step", ("--few",)), bench.Benchmark("bad", ())]

    def run(full: bool) -> list[str]:
        failed: list[str] = bench.run_all(
            named, tmp_path / "out", full=full, environment=dict(os.environ)
        )
        return failed

    assert run(False) == ["bad"]
    assert (tmp_path / "out/good-step.quick.txt").read_text() == "figures of good\n"
    assert "figures of bad" in capfd.readouterr().out
    write("bad", 0)
    assert run(False) == []
    assert run(True) == []
    assert runs.read_text().splitlines() == [
        "good --few", "bad", "bad", "good --record", "bad --record"
    ]  # fmt: skip


def test_what_it_runs_is_there(bench: Any) -> None:
    for benchmark in bench.BENCHMARKS:
        assert Path(benchmark.command(full=False)[1]).is_file()
