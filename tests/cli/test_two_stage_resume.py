"""Two stages in one command that were stopped: each goes on, and ends with the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from two_stage_runs import LAST, Killed, checkpoints, kill, metrics, one_stage, same, weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("intermediate", 1),
        ("intermediate", 2),
        ("intermediate", 3),
        ("prediction", 0),
        ("prediction", 1),
        ("prediction", 3),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    stage: str, step: int, two_stages: list[str], whole: Any, program: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    unbroken = whole(program, two_stages)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        kill(patch, stage=stage, step=step)
        with pytest.raises(Killed):
            program(*two_stages)
    assert not (out / "metrics.json").exists()
    assert (out / "intermediate" / "metrics.json").exists() == (stage == "prediction")
    result = program(*two_stages, *LAST)
    assert result.status == 0, result.stderr
    assert ("stage is done" in result.stderr) == (stage == "prediction")
    assert same(weights(out), weights(unbroken))
    assert same(weights(out / "intermediate"), weights(unbroken / "intermediate"))
    assert metrics(out)["steps"] == metrics(out)["intermediate_stage"]["steps"] == 4
    scores = [metrics(folder)["eval"]["loss"] for folder in (out, unbroken)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("stage", ["intermediate", "."])
def test_a_run_that_was_killed_before_it_saved_its_result(
    stage: str, two_stages: list[str], whole: Any, program: Any, tmp_path: Path
) -> None:
    """All steps are done, and nothing is left to do but what comes after them."""
    unbroken = whole(program, two_stages)
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    for name in ("metrics.json", "model.safetensors", "trainer_state.json"):
        (out / stage / name).unlink()
        (out / name).unlink(missing_ok=True)
    if stage == "intermediate":
        for name in checkpoints(out):
            shutil.rmtree(out / name)
    result = program(*two_stages, *LAST)
    assert result.status == 0, result.stderr
    assert same(weights(out), weights(unbroken))
    assert metrics(out)["steps"] == metrics(out)["intermediate_stage"]["steps"] == 4


@pytest.mark.parametrize("stage", ["intermediate", "."])
def test_a_checkpoint_that_is_cut_short_is_left_out(
    stage: str,
    two_stages: list[str],
    whole: Any,
    program: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unbroken = whole(program, two_stages)
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    (out / "metrics.json").unlink()
    if stage == "intermediate":
        for name in checkpoints(out):
            shutil.rmtree(out / name)
        (out / stage / "metrics.json").unlink()
    (out / stage / "checkpoint-4" / "trainer_state.json").unlink()
    result = program(*two_stages, *LAST)
    assert result.status == 0, result.stderr
    assert "checkpoint-4 is left out: trainer_state.json is missing" in caplog.text
    assert same(weights(out), weights(unbroken))


def test_a_named_checkpoint_of_the_first_stage(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path
) -> None:
    unbroken = whole(program, two_stages)
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    named = out / "intermediate" / "checkpoint-2"
    result = program(*two_stages, "--resume_from_checkpoint", named)
    assert result.status == 0, result.stderr
    assert result.stderr.count("of 4: loss ") == 2 + 4
    assert same(weights(out), weights(unbroken))


def test_a_run_that_begins_anew_forgets_the_earlier_one(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole(program, two_stages), out)
    other = [*two_stages, "--seed", "7"]
    refused = program(*other)
    assert refused.status == 2
    assert "--overwrite_output_dir" in refused.stderr
    with monkeypatch.context() as patch:
        kill(patch, stage="intermediate", step=1)
        with pytest.raises(Killed):
            program(*other, "--overwrite_output_dir")
    assert checkpoints(out) == checkpoints(out / "intermediate") == []
    result = program(*other, *LAST)
    assert result.status == 0, result.stderr
    assert program(*other, "--output_dir", tmp_path / "anew").status == 0
    assert same(weights(out), weights(tmp_path / "anew"))
    assert not same(weights(out), weights(whole(program, two_stages)))


def test_the_rest_of_a_first_stage_is_an_earlier_run(
    two_stages: list[str], program: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        kill(patch, stage="intermediate", step=3)
        with pytest.raises(Killed):
            program(*two_stages)
    result = program(*two_stages)
    assert result.status == 2
    assert "intermediate/checkpoint-2" in result.stderr


def test_a_run_of_one_stage_forgets_those_of_two(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole(program, two_stages), out)
    alone = one_stage(two_stages)
    assert program(*alone, "--overwrite_output_dir").status == 0
    assert metrics(out)["intermediate_stage"] is None
    result = program(*two_stages, *LAST)
    assert result.status == 2
    assert "intermediate stage is not in" in result.stderr


@pytest.mark.parametrize(
    ("stage", "step", "fragment"),
    [
        ("intermediate", 1, "No checkpoint had been saved yet"),
        ("intermediate", 3, "intermediate/checkpoint-2"),
        ("prediction", 1, "The intermediate stage is done. To resume after it"),
        ("prediction", 3, "out/checkpoint-2"),
    ],
)
def test_an_interruption_says_how_to_go_on(
    stage: str, step: int, fragment: str, two_stages: list[str], program: Any, monkeypatch: Any
) -> None:
    kill(monkeypatch, stage=stage, step=step, error=KeyboardInterrupt)
    result = program(*two_stages)
    assert result.status == 130
    assert fragment in result.stderr
    assert ("--resume" in result.stderr) == ((stage, step) != ("intermediate", 1))
