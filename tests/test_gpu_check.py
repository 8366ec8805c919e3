"""``benchmarks/gpu_check.py`` without a GPU: it tries its own code, and tells what failed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    import gpu_check

    level = logging.getLogger("hf_distill").level
    yield gpu_check
    logging.getLogger("hf_distill").setLevel(level)


def run(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--dry_run", *words])
    return int(gpu_check.main())


def test_a_dry_run(gpu_check: Any, monkeypatch: Any, capsys: Any) -> None:
    assert run(gpu_check, monkeypatch, "--only", "16 tokens") == 0
    said = capsys.readouterr().out
    assert "There is no GPU here" in said
    rows = [line for line in said.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 4 + 4 + 3
    assert sum("| ok | " in row and " ms a step" in row for row in rows) == 10
    assert sum("| not tried | a GPU's |" in row for row in rows) == 1


def test_a_path_that_fails_does_not_stop_the_others(
    gpu_check: Any, monkeypatch: Any, capsys: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel\nfor | this")

    monkeypatch.setattr(gpu_check, "full_maps", fail)
    scores = gpu_check.scores_against_float64
    monkeypatch.setattr(
        gpu_check, "scores_against_float64", lambda *a: {**scores(*a), "error_of_loss": 0.5}
    )
    assert run(gpu_check, monkeypatch, "--only", "16 tokens") == 1
    said = capsys.readouterr().out
    assert "16 tokens, bf16 | FAILED | RuntimeError: for \\| this |" in said
    assert said.count("| FAILED | WrongResultError: error_of_loss is 0.5, above") == 4
    assert said.count("| ok | ") == 5


def test_a_dry_run_is_not_recorded(gpu_check: Any, monkeypatch: Any, capsys: Any) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("recorded")

    monkeypatch.setattr(gpu_check, "write_json", refuse)
    monkeypatch.setattr(gpu_check, "replace_section", refuse)
    assert run(gpu_check, monkeypatch, "--record", "--only", "rows, 16") == 0
    assert "Nothing is recorded" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.thorough
def test_all_of_a_dry_run(gpu_check: Any, monkeypatch: Any, capsys: Any) -> None:
    # Of the launcher and of the processes that it starts.
    monkeypatch.setattr(sys, "executable", forked.interpreter())
    monkeypatch.setenv("PYTHON_EXEC", forked.interpreter())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run(gpu_check, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "| ddp over all GPUs, intermediate | ok | " in said
    assert "2 processes" in said
    assert "FAILED" not in said
