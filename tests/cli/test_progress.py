"""What a training shows while it runs, and the time that is left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hf_distill.cli.progress import WholeRun, duration, whole_run
from hf_distill.reports.terminal import in_words


def test_one_line_per_stage_and_no_dictionaries(
    two_stages: list[str], program: Any, no_garbage_collection: None
) -> None:
    options = ["--eval_strategy", "steps", "--eval_steps", "2", "--distillation_loss_weight", "1.0"]
    result = program(*two_stages, *options, "--disable_tqdm", "false")
    assert result.status == 0, result.stderr
    printed = result.stdout + result.stderr
    for noise in ("{", "loss_", "Loading weights", "Writing model", "pin_memory"):
        assert noise not in printed
    lines = [line for line in re.split(r"[\r\n]+", result.stderr) if line.startswith("Stage")]
    for stage in ("Stage 1:", "Stage 2:"):
        *_, last = (line for line in lines if line.startswith(stage) and "4/4" in line)
        rest = r", all: \d+ s left\]" if stage == "Stage 1:" else r"\]"
        assert re.search(r"4/4 \[00:\d\d<00:00, .*step/s, loss [\d.]+" + rest, last)
    assert re.search(r"Stage 2: step 2 of 4: F1 [\d.]+, exact match [\d.]+, label loss", printed)
    table = result.stdout.splitlines()
    assert [line.split("│")[1].strip() for line in table if line.startswith("│")] == [
        "training loss", "F1", "exact match", "label loss", "distillation loss",
    ]  # fmt: skip


@pytest.mark.parametrize("baseline", [True, False])
def test_without_a_teacher_a_model_is_made(
    baseline: bool, train_options: list[str], tmp_path: Path, program: Any
) -> None:
    result = program(*train_options, "--max_steps", "1", *["--baseline"] * baseline)
    made = "model" if baseline else "student"
    assert f"The {made} is in {tmp_path / 'out'}." in result.stdout


def test_the_time_of_several_trainings() -> None:
    """The second costs three times as much per unit as the first, which nobody knew."""
    now = 100.0
    whole = WholeRun(clock=lambda: now)
    whole.expect([2.0, 1.0, 4.0])
    now += 5.0  # loading
    whole.begin()
    assert whole.seconds_left(0.0) is None
    now += 10.0
    # A quarter in 10 s, so 30 s of this stage; half a unit took 15 s, so 5 units take 150 s.
    assert whole.seconds_left(0.25) == pytest.approx(30.0 + 150.0)
    now += 30.0
    whole.end()
    whole.begin()
    now += 15.0
    # Half of it came from a checkpoint: the rest of the stage takes as long as the quarter did.
    assert whole.seconds_left(0.75, begun_with=0.5) == pytest.approx(15.0 + 60.0 / 2.25 * 4.0)
    whole.end()
    whole.begin()
    now += 1.0
    assert whole.seconds_left(0.5) is None  # the bar of the last one says it


def test_an_inner_run_is_a_part_of_the_outer() -> None:
    with whole_run() as outer, whole_run() as inner:
        assert inner is outer
    with whole_run() as other:
        assert other is not outer


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_figures_have_names_in_words_and_no_twins() -> None:
    logged = {"eval_f1": 80.0, "eval_loss": 1.5, "eval_loss_task": 1.5, "eval_loss_prediction": 2.0,
              "eval_runtime": 3.0, "eval_samples_per_second": 9.0, "epoch": 1.0}  # fmt: skip
    assert list(in_words(logged, {"f1": "F1"}).items()) == [
        ("F1", 80.0), ("label loss", 1.5), ("distillation loss", 2.0),
    ]  # fmt: skip
    layers = {"eval_loss": 5.0, "eval_loss_hidden_states": 3.0, "eval_loss_attention": 2.0}
    assert in_words(layers, {}) == {
        "loss": 5.0, "loss of hidden states": 3.0, "loss of attentions": 2.0,
    }  # fmt: skip
    assert in_words({"loss": 1.0, "HasAns_f1": 7.0, "f1_PER": 9.0}, {}) == {
        "label loss": 1.0, "F1 (answerable)": 7.0, "f1 PER": 9.0,
    }  # fmt: skip
