"""The configurations of examples/accelerate/, each with ``hf-distill train`` in two stages."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import forked
import pytest
import torch
import yaml
from cli.cli_runs import WINDOWS, squad
from safetensors.torch import load_file
from tiny import model_for, tokenizer
from transformers import AutoModelForQuestionAnswering

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "accelerate"
TASK = "question-answering"
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
PROGRAM = ["-m", "hf_distill"]
ON_CPU = [str(Path(__file__).with_name("on_cpu.py"))]
FULL_PRECISION = ["--mixed_precision", "no"]


class Launch(NamedTuple):
    """How a configuration is run here, and what its checkpoints have that others have not."""

    launcher: list[str]
    program: list[str]
    options: list[str]
    files: list[str]


TWO_STATES = ["rng_state_0.pth", "rng_state_1.pth"]
ZERO2 = [f"global_step2/zero_pp_rank_{r}_mp_rank_00_optim_states.pt" for r in range(2)]
ZERO3 = [f"global_step2/zero_pp_rank_{r}_mp_rank_00_model_states.pt" for r in range(2)]
LAUNCHES = {
    "two_processes_on_cpu": Launch([], PROGRAM, ["--use_cpu"], TWO_STATES),
    "ddp": Launch(FULL_PRECISION, PROGRAM, ["--use_cpu"], TWO_STATES),
    "fsdp2": Launch(
        FULL_PRECISION,
        ON_CPU,
        ["--dataloader_pin_memory", "false"],
        [*TWO_STATES, "pytorch_model_fsdp.bin"],
    ),
    "deepspeed_zero2": Launch(FULL_PRECISION, PROGRAM, ["--use_cpu"], [*TWO_STATES, *ZERO2]),
    "deepspeed_zero3": Launch(FULL_PRECISION, PROGRAM, ["--use_cpu"], [*TWO_STATES, *ZERO3]),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    model_for(TASK, seed=1, layers=4).save_pretrained(folder / "teacher")
    # Narrower: its first stage has projections. Without a head: that one is new, and random.
    model_for(TASK, seed=5, layers=2, width=8).bert.save_pretrained(folder / "student")
    for name in ("teacher", "student"):
        tokenizer().save_pretrained(folder / name)
    (folder / "train.json").write_text(json.dumps(squad()))
    return folder


def train(
    project: Path,
    launcher: list[str],
    program: list[str],
    output: str,
    options: list[str],
    python: str | None = None,
) -> subprocess.CompletedProcess[str]:
    python = python or forked.interpreter()
    words = [
        *("train", "--task", TASK, "--student_model", "student", "--teacher_model", "teacher"),
        *("--train_file", "train.json", "--validation_file", "train.json"),
        *("--output_dir", output, "--max_steps", "2", "--intermediate_max_steps", "2"),
        *("--attention_loss", "scores"),
        # Of the labels alone, the loss depends on how far a batch is padded.
        *("--learning_rate", "1e-3", "--distillation_loss_weight", "1.0", *WINDOWS),
        # A step no longer than the gradient: else Adam makes full steps of rounding errors.
        *("--adam_epsilon", "1e-3"),
        *("--disable_tqdm", "true"),
    ]
    return subprocess.run(
        [python, *launcher, *program, *words, *options],
        cwd=project,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "PYTHON_EXEC": python,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def alone(project: Path) -> Path:
    """One process, with both processes' rows in a batch; of the 12 rows none is left over."""
    batch = ["--per_device_train_batch_size", "6"]
    done = train(project, [], PROGRAM, "alone", ["--use_cpu", *batch])
    assert done.returncode == 0, done.stderr
    return project / "alone"


def test_every_configuration_is_tried() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(LAUNCHES)
    for path in CONFIGS.glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["num_processes"] == 2


@pytest.fixture(scope="module")
def a_seed_for_each_rank(project: Path) -> str:
    """A ``python`` whose sets have another order in each process, as in every real launch."""
    program = project / "python"
    program.write_text(
        f'#!/bin/sh\nPYTHONHASHSEED="${{LOCAL_RANK:-0}}" exec {shlex.quote(sys.executable)} "$@"\n'
    )
    program.chmod(0o700)
    return str(program)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHES)
def test_both_stages_under_a_configuration(
    name: str, project: Path, alone: Path, a_seed_for_each_rank: str
) -> None:
    if name.startswith("deepspeed") and not HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is not installed")
    launch = LAUNCHES[name]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{name}.yaml")]
    done = train(
        project,
        [*launcher, *launch.launcher],
        launch.program,
        name,
        [*launch.options, "--per_device_train_batch_size", "3"],
        # One of them as a user does it, and DeepSpeed, which decides much when it is imported.
        a_seed_for_each_rank if name == "ddp" or name.startswith("deepspeed") else None,
    )
    assert done.returncode == 0, done.stderr
    for folder in (project / name, project / name / "intermediate"):
        for file in launch.files:
            assert (folder / "checkpoint-2" / file).exists(), file
        student, info = AutoModelForQuestionAnswering.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(info.values())
        expected = load_file(alone / folder.relative_to(project / name) / "model.safetensors")
        found = student.state_dict()
        assert expected.keys() <= found.keys()
        for key, value in expected.items():
            assert torch.allclose(value, found[key], rtol=1e-5, atol=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "launcher", "options", "message"),
    [
        ("two_processes_on_cpu", [], [], "each of them is about to work alone"),
        ("fsdp2", FULL_PRECISION, ["--use_cpu"], "nothing would be sharded"),
        (None, ["--cpu", "--num_processes", "2"], [], "has started this one only"),
    ],
)
def test_what_would_train_in_another_shape_is_refused(
    name: str | None, launcher: list[str], options: list[str], message: str, project: Path
) -> None:
    config = [] if name is None else ["--config_file", str(CONFIGS / f"{name}.yaml")]
    done = train(
        project,
        ["-m", "accelerate.commands.launch", *config, *launcher],
        PROGRAM,
        f"refused-{name}",
        options,
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "accelerate launch --multi_gpu --num_processes 2 … --use_cpu" in done.stderr
