"""What all workers share: their setting, and the gate that lets a training continue step by step.

A worker is a process that trains a student as one tool does it. It reads lines from standard input:
``go N`` lets the training continue for N steps and answers with a line of JSON (``seconds``,
``cpu_seconds``, ``loss``), ``quit`` answers with the peak memory and ends the process.

For ``peers_correctness.py`` it is told several settings, trains once for each without waiting, and
answers each time: with how far each weight moved, in a file, or with the error. It imports its tool
once: settings are in groups of processes, which it forks.

This runs in the environments of the peers, so it needs nothing but PyTorch and safetensors.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LEARNING_RATE = 5e-5
MAX_GRAD_NORM = 1.0
PACKAGES = {
    *("haystack", "hf_distill", "modelopt", "sentence_transformers", "silverspoon_kd"),
    *("textbrewer", "trl"),
}
"""An error that is raised in one of these was meant."""


@dataclass(frozen=True)
class Setting:
    """What a worker is told in its only argument, a JSON object."""

    task: str
    way: str
    """A variant of a worker; empty for the usual one."""
    models: str
    """A folder with the models ``teacher`` and ``student``."""
    rows: str
    """The data, one row per example, as safetensors."""
    output: str
    """A folder for what a tool writes."""
    batch_size: int
    steps: int
    """How many steps there are data for."""
    temperature: float
    teacher_layers: int
    student_layers: int
    answers: int = 1
    """The file descriptor that answers are written to: tools print to standard output."""
    update: str = ""
    """The file for the difference of the weights after and before a training that is not held."""
    accumulation: int = 1
    """Micro-batches in a step."""
    labelled: bool = False
    """Whether batches have labels, though nobody computes a label loss."""
    sgd: float = 0.0
    """The learning rate of plain SGD without clipping; 0 is the optimizer of all measured times."""
    implementation: str = ""
    """Of attention; empty is what the worker takes."""
    save_at: int = 0
    """The step after which there is a checkpoint."""
    resume: bool = False
    """Whether to continue from that checkpoint."""

    @property
    def teacher(self) -> str:
        """The folder of the teacher."""
        return str(Path(self.models) / "teacher")

    @property
    def student(self) -> str:
        """The folder of the student."""
        return str(Path(self.models) / "student")

    @property
    def layer_pairs(self) -> list[tuple[int, int]]:
        """Hidden states that are compared, (teacher, student); 0 is the embedding output."""
        every = self.teacher_layers // self.student_layers
        return [(every * layer, layer) for layer in range(self.student_layers + 1)]

    def load_rows(self) -> dict[str, Tensor]:
        """Read the data."""
        return load_file(self.rows)


def serve(distil: Callable[[Setting], None]) -> None:
    """Train as the command line says: held step by step, or once for each of several settings."""
    told = json.loads(sys.argv[1])
    if "groups" not in told:
        distil(Setting(**told))
        return
    for processes in told["groups"]:
        children = []
        for process in processes:
            child = os.fork()
            if not child:
                os.environ.update(process["environment"])
                for run in process["runs"]:
                    train_or_tell(distil, Setting(**run, answers=told["answers"]))
                os._exit(0)  # gloo may abort at exit
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
    tell(told["answers"], {"all": True})


def train_or_tell(distil: Callable[[Setting], None], setting: Setting) -> None:
    """Train, and tell what was raised."""
    try:
        distil(setting)
    except Exception as error:
        traceback.print_exc()
        tell(setting.answers, {"update": setting.update, **described(error)})


def tell(answers: int, content: dict[str, Any]) -> None:
    """Write an answer, as one line."""
    os.write(answers, (json.dumps(content) + "\n").encode())


def described(error: Exception) -> dict[str, Any]:
    """Return an error on one line, and whether a tool raised it on purpose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    lines = str(error).strip().splitlines() or [""]
    message = re.sub(r"\S*/\S*", "…", lines[0])  # paths
    return {
        "error": f"{type(error).__name__}: {message}",
        "meant": (last.line or "").startswith("raise")
        and bool(PACKAGES.intersection(Path(last.filename.split("site-packages")[-1]).parts)),
    }


class Gate:
    """Holds a training at the entry of its step until a line on standard input lets it continue.

    A step is everything from one entry to the next: loss, backward pass, clipping, optimizer,
    callbacks, log, and the next batch. Where the entry lies in a tool's loop does not matter then.

    Args:
        setting: where answers go to.
        package: the distribution whose version is told, next to those of PyTorch and transformers.
        note: how this tool does the work, and in what its loss differs.
    """

    def __init__(self, setting: Setting, package: str, note: str) -> None:
        self._answers = os.fdopen(os.dup(setting.answers), "w", encoding="utf-8")
        self.obstacle = ""
        """An error that a worker found a way around."""
        self._update = setting.update
        self._losses: list[float] = []
        self._student: nn.Module | None = None
        self._start: dict[str, Tensor] = {}
        self._package = package
        self._note = note
        self._left = 0
        self._began: tuple[float, float] | None = None
        self._before = 0.0
        self._loss: Any = None

    def hold(self, owner: Any, method: str, student: nn.Module) -> None:
        """Hold at every call of the method that computes the loss of a step and returns it."""
        original = getattr(owner, method)
        if self._update:
            self._student, self._start = student, trained(student)

        def held(*args: Any, **kwargs: Any) -> Any:
            if not self._update:
                self._enter()
            result = original(*args, **kwargs)
            loss = result[0] if isinstance(result, tuple) else result
            self._loss = loss.detach().clone()  # it may be a view of all that was summed up
            if self._update:
                self._losses.append(float(self._loss))
            return result

        setattr(owner, method, held)

    def end(self) -> None:
        """After a training that was not held: write how far the weights moved, and answer."""
        if self._student is None:
            return
        moved = {name: now - self._start[name] for name, now in trained(self._student).items()}
        save_file(moved, self._update)
        self._answer(
            {
                "update": self._update,
                "note": self._note,
                "versions": versions(self._package),
                "losses": self._losses,
                "obstacle": self.obstacle,
            }
        )

    def _enter(self) -> None:
        now = (time.perf_counter(), time.process_time())
        if self._began is None:
            self._answer({"note": self._note, "versions": versions(self._package)})
            self._wait()
            return
        self._left -= 1
        if self._left == 0:
            wall, cpu = (end - begin for end, begin in zip(now, self._began, strict=True))
            self._answer({"seconds": wall, "cpu_seconds": cpu, "loss": float(self._loss)})
            self._wait()

    def _wait(self) -> None:
        words = sys.stdin.readline().split()
        if words[:1] != ["go"]:
            self._answer({"peak_gb": in_memory("VmHWM"), "before_gb": self._before})
            # Not `sys.exit`: a trainer would log, write or catch something on its way out.
            os._exit(0)
        if self._began is None:
            forget_peak()
            self._before = in_memory("VmRSS")
        self._left = int(words[1])
        self._began = (time.perf_counter(), time.process_time())

    def _answer(self, content: dict[str, Any]) -> None:
        self._answers.write(json.dumps(content) + "\n")
        self._answers.flush()


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the weights that are trained."""
    return {
        name: weight.detach().clone(memory_format=torch.contiguous_format)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def versions(package: str) -> dict[str, str]:
    """Return the versions of a distribution and of what it runs on."""
    found = {}
    for name in (package, "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def in_memory(kind: str) -> float:
    """Return what this process holds in memory, in GB, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 2**20
    raise ValueError(f"/proc/self/status has no {kind}")


def forget_peak() -> None:
    """Give back what loading has left, and let the kernel count the peak from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
