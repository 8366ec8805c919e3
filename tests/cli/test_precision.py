"""bfloat16 is used where it is faster; who asks for it where it is slower is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_runs import WINDOWS, Files, Result
from torch import Tensor
from torch.nn import functional as F

from hf_distill.cli import precision
from hf_distill.cli.precision import bfloat16_pays


@pytest.mark.parametrize(
    ("milliseconds", "pays"),
    [
        ({torch.bfloat16: 3, torch.float32: 30}, True),
        ({torch.bfloat16: 30, torch.float32: 3}, False),
        # Not clear enough for a second run to decide alike.
        ({torch.bfloat16: 28, torch.float32: 30}, False),
    ],
)
def test_a_cpu_is_measured(
    milliseconds: dict[torch.dtype, int], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_product(states: Tensor, weight: Tensor) -> None:
        assert states.dtype == weight.dtype
        time.sleep(milliseconds[states.dtype] / 1e3)

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(F, "linear", slow_product)
    assert bfloat16_pays() is pays


def test_an_accelerator_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(F, "linear", None)
    assert bfloat16_pays()


@pytest.mark.parametrize(
    ("slowness", "options", "told"),
    [
        (34.2, ["--bf16"], True),
        (1.6, ["--bf16"], True),
        # Within the noise of a busy machine.
        (1.4, ["--bf16"], False),
        (34.2, [], False),
    ],
)
def test_a_training_that_bfloat16_makes_slower(
    slowness: float,
    options: list[str],
    told: bool,
    files: Files,
    program: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    precision._warn_if_bfloat16_is_slow.cache_clear()
    monkeypatch.setattr(precision, "_bfloat16_slowness", lambda: slowness)
    words = [
        *("train", "--task", "question-answering", "--baseline", "--use_cpu"),
        *("--student_model", files.models["student_alone"], "--train_file", files.train),
        *("--max_steps", "1", "--report_to", "none", *WINDOWS, *options),
    ]
    results = [program(*words, "--output_dir", str(tmp_path / name)) for name in ("one", "two")]
    assert [result.status for result in results] == [0, 0]
    said = [result.stderr.count(f"takes {slowness:.1f} times as long") for result in results]
    # Once in a process: a sweep has many trainings.
    assert said == ([1, 0] if told else [0, 0])
    precision._warn_if_bfloat16_is_slow.cache_clear()


@pytest.mark.parametrize(
    ("options", "attention"),
    [
        (["--bf16"], "eager"),
        ([], "sdpa"),
        # Teacher and student have to attend in the same way to be compared.
        (["--bf16", "--stage", "intermediate", "--attention_loss", "relations"], "sdpa"),
        (["--bf16", "--stage", "intermediate"], "eager"),
    ],
)
def test_attention_that_trains_faster(
    options: list[str],
    attention: str,
    attention_in_training: list[str],
    files: Files,
    program: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_bfloat16_slowness", lambda: 1.0)
    result = program(
        *("train", "--task", "question-answering", "--use_cpu", "--report_to", "none"),
        *("--teacher_model", files.models["teacher"], "--train_file", files.train),
        *("--student_model", files.models["student_alone"], "--max_steps", "1", *WINDOWS),
        *(*options, "--output_dir", str(tmp_path / "student")),
    )
    assert (result.status, attention_in_training) == (0, [attention]), result.stderr
    saved = json.loads((tmp_path / "student" / "config.json").read_text(encoding="utf-8"))
    assert not any("attn" in name for name in saved)
