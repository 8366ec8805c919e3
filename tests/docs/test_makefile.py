"""What the targets do that need no installation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(*words: str, typed: str = "") -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        input=typed,
        env={**os.environ, "SHELL": "/bin/sh", "MAKEFLAGS": ""},  # those of `make test` around it
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_shell_has_the_program_on_its_path() -> None:
    said, *answers = make(
        "--old-file=.venv/.installed", "shell", typed='echo "$PATH"\necho "$VIRTUAL_ENV"\n'
    ).splitlines()
    assert "hf-distill is on the path" in said
    assert answers == [f"{ROOT}/.venv/bin:{os.environ['PATH']}", f"{ROOT}/.venv"]


def test_an_installation_is_not_silent() -> None:
    recipe = make("--dry-run", "--what-if=setup.cfg", ".venv/.installed")
    assert recipe.index("Installing PyTorch") < recipe.index(
        "install --no-compile -c constraints.txt torch"
    )
    assert "quiet" not in recipe
