"""What the tests of ``hf-distill sweep`` share: its options, and an end that comes suddenly."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_runs import Files, Result
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_distill import DistillationTrainer
from hf_distill.cli.main import main

Program = Callable[..., Result]

SPACE = {
    "temperature": [1, 4],
    "distillation_loss_weight": {"low": 0.5, "high": 1.0, "step": 0.5},
}


def sweep_options(files: Files, folder: Path) -> dict[str, Any]:
    """A sweep of four trainings of four steps."""
    return {
        "task": "question-answering",
        "student_model": files.models["student_alone"],
        "teacher_model": files.models["teacher"],
        "train_file": files.train,
        "validation_file": files.validation,
        "output_dir": str(folder / "sweep"),
        "max_length": 48,
        "doc_stride": 8,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "teacher_check_samples": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "search_space": SPACE,
    }


def config_of(options: Mapping[str, Any], folder: Path) -> str:
    """The options in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(dict(options), sort_keys=False))
    return str(path)


def outcome(folder: Path) -> dict[str, Any]:
    """``sweep.json`` without what no two runs have in common."""
    content = json.loads((folder / "sweep.json").read_text())
    for trial in content["trials"]:
        del trial["seconds"]
    return content


def killed_at(options: Mapping[str, Any], folder: Path, prepare: Callable[..., None]) -> None:
    """Run a sweep in a process that kills itself where ``prepare`` has arranged it."""
    config = config_of(options, folder)
    child = os.fork()
    if child == 0:
        try:
            prepare(pytest.MonkeyPatch())
            main(["sweep", "--config", config])
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGKILL, f"it was not killed there, but ended with {status}"


def end() -> None:
    """What kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_step(trial: int, step: int) -> Callable[..., None]:
    """Kill in a step of a trial's training."""

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if f"trial-{trial:04d}" in args.output_dir and state.global_step == step:
                end()

    return lambda patches: DEFAULT_CALLBACKS.append(Killer)


def at_call(target: str, count: int, *, after: bool = False) -> Callable[..., None]:
    """Kill before or after the ``count``-th call of a function."""

    def prepare(patches: pytest.MonkeyPatch) -> None:
        import importlib

        module, _, name = target.partition(":")
        owner: Any = importlib.import_module(module)
        *owners, name = name.split(".")
        for one in owners:
            owner = getattr(owner, one)
        original = getattr(owner, name)
        calls = []

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == count and not after:
                end()
            result = original(*args, **kwargs)
            if len(calls) == count:
                end()
            return result

        patches.setattr(owner, name, stand_in)

    return prepare


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """From which checkpoint each training of this process begins."""
    begun: list[str | None] = []
    train = DistillationTrainer.train

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        checkpoint = kwargs.get("resume_from_checkpoint")
        begun.append(checkpoint and Path(checkpoint).name)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", spy)
    return begun


KILLS = {
    "before the first step": in_step(0, 0),
    "between two checkpoints": in_step(1, 3),
    "just after a checkpoint": in_step(2, 2),
    "while the teacher is cached": at_call("hf_distill.cli.cache:run", 1),
    "once it is cached": at_call("hf_distill.cli.cache:run", 1, after=True),
    "before a trial is written down": at_call("hf_distill.cli.sweep_run:begin_trial", 2),
    "once it is written down": at_call("hf_distill.cli.sweep_run:begin_trial", 2, after=True),
    "between training and result": at_call(
        "hf_distill.cli.sweep_trials:run_request", 2, after=True
    ),
    "between result and study": at_call("hf_distill.cli.sweep_run:run_trial", 2, after=True),
    "between study and table": at_call("hf_distill.cli.sweep_run:write_sweep", 4),
    "before students are deleted": at_call("hf_distill.cli.sweep_run:delete_student", 3),
    "before the picture": at_call("hf_distill.reports.pages:plot_sweep", 1),
}
