"""The processes of ``peers.py``: one per tool and task, which train when they are told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from bench import ONE_THREAD
from peer_environments import ROOT, NotPossibleError, reason_in
from report import FOLDER

PATIENCE = 900
"""Seconds that an answer may take."""
KEPT_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def environment_of(work_dir: Path, *, ours: bool, even_times: bool) -> dict[str, str]:
    """Return the variables of a worker.

    Args:
        work_dir: where libraries keep their files.
        ours: whether it imports this repository, and not what may be installed of it elsewhere.
        even_times: whether malloc keeps what is freed, as for all times here. Not for memory.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in KEPT_OUT}
    settings = ONE_THREAD if even_times else {"OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in inherited.items() if not name.startswith("MALLOC_")}
    return {
        **kept,
        **settings,
        **({"PYTHONPATH": str(ROOT)} if ours else {}),
        "HF_HOME": str(work_dir / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Worker:
    """One tool with its models and data in memory, which waits for its turn.

    Raises:
        NotPossibleError: a peer ended or did not answer, which is a result.
        RuntimeError: our own worker did, which is not.
    """

    def __init__(
        self,
        python: Path,
        script: str,
        setting: Mapping[str, Any],
        *,
        environment: Mapping[str, str],
        log: Path,
        is_ours: bool,
        patience: float = PATIENCE,
    ) -> None:
        self._log = log
        self._patience = patience
        self._error = RuntimeError if is_ours else NotPossibleError
        log.parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        told = json.dumps({**setting, "answers": writing})
        with log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [str(python), str(FOLDER / "peers" / f"{script}.py"), told],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=dict(environment),
                pass_fds=(writing,),
            )
        os.close(writing)
        self._answers = os.fdopen(reading, encoding="utf-8")
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._answers.close()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait_until_ready(self) -> None:
        """Wait until everything is loaded, and keep what the worker says of itself."""
        self.facts = self.answer()

    def go(self, steps: int) -> dict[str, Any]:
        """Let it train for some steps; seconds, CPU seconds, and the last loss."""
        return self._ask(f"go {steps}")

    def quit(self) -> dict[str, Any]:
        """End it; what it held in memory before the first step, and at most since."""
        return self._ask("quit")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._give_up()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return what the worker says next."""
        timer = threading.Timer(self._patience, self._process.kill)
        timer.start()
        try:
            line = self._answers.readline()
        finally:
            timer.cancel()
        if not line:
            self._give_up()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _give_up(self) -> NoReturn:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            raise self._error(f"was killed, or gave no answer for {self._patience:.0f} s")
        raise self._error(f"cannot be run: {reason_in(self._log)}")
