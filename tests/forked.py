"""A Python that starts at once: each of its processes is forked from one that has imported torch.

PyTorch and transformers take six seconds of a processor to import, which is longer than the tiny
runs of most tests. ``interpreter()`` is the path of a program that takes the arguments of
``python``, with its own environment, folder, streams and exit code, and that forwards signals. A
server, started by the first who asks, forks for it and ends with this process. With the variable
``PYTHON_EXEC``, launchers start this program as well. Settings that a library reads when it is
imported are those of the server, but for the ``HF_…`` of huggingface_hub and datasets.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PRELOADED = (
    "hf_distill.trainer",
    "hf_distill.teachers.caching",
    "hf_distill.tasks.question_answering.task",
    "hf_distill.cli.train",
    "hf_distill.cli.shrink_run",
    "hf_distill.cli.sweep_run",
    "hf_distill.cli.compare",
    "hf_distill.cli.augment",
    "hf_distill.augmentation.squad",
    "hf_distill.augmentation.masked_lm",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "transformers.models.bert.modeling_bert",
    "accelerate.commands.launch",
)


class Run(NamedTuple):
    """Exit code of each process, and what all of them wrote."""

    codes: list[int | None]
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return set(self.codes) == {0}


@cache
def interpreter() -> str:
    """Return the path of a ``python`` whose processes have imported PyTorch already."""
    folder = Path(tempfile.mkdtemp(prefix="python-"))
    program = folder / "python"
    client = Path(__file__).with_name("forked_client.py")
    words = shlex.join([sys.executable, "-IS", str(client), str(folder / "socket")])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o700)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    ours, theirs = os.pipe()
    server = subprocess.Popen(
        [sys.executable, __file__, str(listener.fileno()), str(ours)],
        pass_fds=[listener.fileno(), ours],
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    listener.close()
    os.close(ours)

    def end() -> None:
        os.close(theirs)
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return str(program)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(
    script: str | Path,
    *arguments: str,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    seconds: float = 300,
) -> Run:
    """Run a script, or a module like ``python -m``, in one process or as the ranks of one launch.

    Several get the environment that ``torchrun`` gives. If a process fails, the others are killed.
    Whoever hangs is killed and has a negative code.
    """
    port = free_port() if processes > 1 else 0
    program = [str(script)] if str(script).endswith(".py") else ["-m", str(script)]
    with tempfile.TemporaryDirectory() as output:
        started = []
        for rank in range(processes):
            variables = {"OMP_NUM_THREADS": "1", **(environment or {})}
            if processes > 1:
                variables |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "LOCAL_WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            with (
                (Path(output) / f"stdout-{rank}").open("wb") as out,
                (Path(output) / f"stderr-{rank}").open("wb") as err,
            ):
                started.append(
                    subprocess.Popen(
                        [interpreter(), *program, *arguments],
                        env={**os.environ, **variables},
                        cwd=folder,
                        stdout=out,
                        stderr=err,
                    )
                )
        until = time.monotonic() + seconds
        while any(p.poll() is None for p in started) and time.monotonic() < until:
            if any(p.returncode not in (None, 0) for p in started):
                break
            time.sleep(0.02)
        for process in started:
            kill(process)
        texts = [
            "".join(path.read_text() for path in sorted(Path(output).glob(f"{name}-*")))
            for name in ("stdout", "stderr")
        ]
        return Run([process.returncode for process in started], *texts)


def kill(process: subprocess.Popen[Any]) -> None:
    """Send SIGKILL to a process of ``interpreter()``, and wait for its end."""
    process.send_signal(signal.SIGUSR2)  # SIGKILL cannot be forwarded
    process.wait()


# ---- the server ----------------------------------------------------------------------------------


def _serve(listener: socket.socket, parent: int) -> dict[str, Any]:
    """Fork for each client; returns in the fork, with what it has to run."""
    while parent not in select.select([listener.fileno(), parent], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            os.close(parent)
            return _keep(connection)
        connection.close()
    os._exit(0)


def _reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _keep(connection: socket.socket) -> dict[str, Any]:
    """Fork the process of a client and stay with it; returns in the fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
    while not message.endswith(b"\n"):
        message += connection.recv(1 << 20)
    process = os.fork()
    if not process:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        task: dict[str, Any] = json.loads(message)
        return task
    for stream in streams:
        os.close(stream)

    def forward() -> None:
        while number := connection.recv(1):
            os.kill(process, number[0])
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)  # the client is dead

    threading.Thread(target=forward, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def _run(task: dict[str, Any]) -> None:
    """Run what ``python`` would run with these arguments."""
    # Those of the server were made for other streams.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    before = {**os.environ}
    os.environ.clear()
    os.environ.update(task["environment"])
    if any(before.get(n) != os.environ.get(n) for n in ("HF_ENDPOINT", "HF_HOME")):
        _read_settings_of_the_hub()
    sys.executable = os.environ.get("PYTHON_EXEC", sys.executable)
    os.chdir(task["folder"])
    first, *rest = task["words"]
    if first == "-u":  # torchrun asks for it; what is written is flushed at the end
        first, *rest = rest
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    if first in ("-c", "-m"):
        sys.path.insert(0, os.getcwd())
        sys.argv = ["-c" if first == "-c" else rest[0], *rest[1:]]
    else:
        sys.path.insert(0, str(Path(first).resolve().parent))
        sys.argv = [first, *rest]
    if first == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(first, run_name="__main__")


def _read_settings_of_the_hub() -> None:
    for name in ("huggingface_hub.constants", "datasets.config"):
        importlib.reload(sys.modules[name])
    from huggingface_hub import constants, hf_api

    hf_api.api.endpoint = constants.ENDPOINT


def _end(run: Callable[[dict[str, Any]], None], task: dict[str, Any]) -> None:
    """Run a task and end as Python does, without a second for deleting what was imported."""
    code = 0
    try:
        run(task)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    import torch
    from matplotlib.figure import Figure
    from rough_pictures import save_roughly

    Figure.savefig = save_roughly  # type: ignore[method-assign]
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    _end(_run, _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
