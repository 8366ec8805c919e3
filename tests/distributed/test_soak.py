"""The short form of ``benchmarks/soak.py``: two stages on two processes, killed and told to end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import forked
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.thorough]
SOAK = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"


def test_a_run_that_is_interrupted_again_and_again_ends_with_the_same_weights() -> None:
    python = forked.interpreter()
    done = subprocess.run(
        [python, str(SOAK), "--kills", "2", "--steps", "6"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("stopped by SIGTERM") == 2
    assert "86 of 86 tensors bit for bit" in done.stdout
