"""Promise 7 of the design: the teacher is prepared for FSDP2 and DeepSpeed, and still frozen."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from launch import LOSSES
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering

from hf_distill.layers import PROJECTIONS_FILE

pytestmark = pytest.mark.slow

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed (on a CPU: DS_ACCELERATOR=cpu DS_BUILD_OPS=0 pip install)",
)
KINDS = (
    *("fsdp2", "fsdp2-sharded"),
    *(pytest.param(kind, marks=needs_deepspeed) for kind in ("zero2", "zero3")),
)
TOLERANCE = 1e-6
"""Of the losses, relative: float32 sums in another order. docs/many-processes.md states it."""

NO_GRADIENT = ("key.bias", "layer.1.output.LayerNorm.bias", "qa_outputs.bias")
"""What is added to all keys, or to all of the last layer's positions, changes no softmax: its
gradient is rounding, which Adam makes big."""


def run(directory: Path, kind: str, stage: str, processes: int, stop_after: int = 4) -> dict:
    directory.mkdir(exist_ok=True)
    done = forked.run(
        Path(__file__).with_name("sharded.py"),
        *(str(directory), kind, stage, str(stop_after)),
        processes=processes,
        environment={"DS_ACCELERATOR": "cpu"},
    )
    assert done.ok, done.stderr
    return json.loads((directory / "rank0.json").read_text())


@pytest.fixture(scope="module", params=["prediction", "intermediate"])
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runs_alone(stage: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """One process."""

    @cache
    def of(kind: str) -> tuple[Path, dict]:
        folder = tmp_path_factory.mktemp(stage) / "one"
        return folder, run(folder, kind, stage, 1)

    return of


@pytest.fixture
def alone(kind: str, runs_alone: Callable[[str], Any]) -> tuple[Path, dict]:
    """One process whose projections begin as they do when sharded in this way."""
    return runs_alone("read once" if kind.startswith("zero") else "plain")


def assert_same_losses(found: dict, expected: dict, last: int = 4) -> None:
    for name in LOSSES:
        wanted = expected[name][-last:]
        assert found[name] == pytest.approx(wanted, rel=TOLERANCE), name


def assert_same_weights(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        if not name.endswith(NO_GRADIENT):
            assert torch.allclose(value, found[name], rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_two_sharded_processes_train_as_one(
    kind: str, stage: str, alone: tuple[Path, dict], tmp_path: Path
) -> None:
    folder, one = alone
    two = run(tmp_path / "two", kind, stage, 2)
    assert two["processes"] == 2
    assert two["teacher_sharded"] == (kind != "zero2")
    assert two["student_sharded"] == (kind != "zero2")
    assert not two["teacher_trains"]
    assert_same_losses(two, one)
    assert bool(one["loss_hidden_states"]) == (stage == "intermediate")
    for name in (PROJECTIONS_FILE, "model.safetensors"):
        expected, found = (
            load_file(path) if path.exists() else {}
            for path in (folder / "checkpoint-4" / name, tmp_path / "two" / "checkpoint-4" / name)
        )
        assert expected.keys() == found.keys()
        assert bool(expected) == (stage == "intermediate" or name != PROJECTIONS_FILE)
        assert_same_weights(found, expected)
    loaded, info = AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "two" / "student", output_loading_info=True
    )
    assert not any(info.values())
    last = load_file(folder / "checkpoint-4" / "model.safetensors")
    assert_same_weights(loaded.state_dict(), last)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    kind: str, stage: str, alone: tuple[Path, dict], tmp_path: Path
) -> None:
    if stage == "prediction" and kind.startswith("fsdp2"):
        pytest.skip(
            "stage intermediate has more to resume: projections, a head that does not learn"
        )
    _, one = alone
    first = run(tmp_path, kind, stage, 2, stop_after=2)
    assert len(first["loss"]) == 2
    # The log goes on, too: what is compared are the last two steps.
    second = run(tmp_path, kind, stage, 2)
    assert len(second["loss"]) == 4
    assert_same_losses(second, one)
