"""Examples are run in this process, in a folder of their own."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from example_runs import COMMON, EXAMPLES, RunScript


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: Any, capsys: Any) -> RunScript:
    """Run an example as a program would be, in this process; returns its ``eval_results.json``."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(script: str, *flags: str, output: str, **options: Any) -> dict[str, Any]:
        options = {**COMMON, "output_dir": tmp_path / output, **options}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [script, *words, *flags])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        results = tmp_path / output / "eval_results.json"
        if not results.exists():
            return {}
        printed = capsys.readouterr().out
        metrics: dict[str, Any] = json.loads(results.read_text())
        assert all(name in printed for name in metrics)
        return metrics

    return run


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: Any) -> Callable[[str], dict[str, Any]]:
    """What an example defines, without running it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return lambda script: runpy.run_path(str(EXAMPLES / script))
