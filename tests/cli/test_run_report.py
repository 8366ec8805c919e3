"""The report that ``hf-distill train`` writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import Files, Result, assert_says_nothing_about_the_machine

from hf_distill.cli.output import shown_command
from hf_distill.files import without_paths

Program = Callable[..., Result]


@pytest.mark.slow
def test_both_stages_and_what_was_recorded(
    two_stages: list[str], files: Files, tmp_path: Path, program: Program
) -> None:
    recorded = ["--record_steps", "2", "--layer_mapping", "auto", "--hub_token", "hf_secret"]
    result = program(*two_stages, *recorded)
    assert result.status == 0, result.stderr
    folder = tmp_path / "out"
    page, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert str(folder / "report.html") in result.stdout
    metrics = json.loads((folder / "metrics.json").read_text())
    for text in (page, markdown):
        assert f"{metrics['eval']['f1']:.4g}"[:4] in text
        for words in ("Intermediate layers", "Prediction layer", "4 of 8 rows"):
            assert words in text
        assert "hf-distill train --task question-answering" in text
        for secret in ("hf_secret", str(tmp_path), str(files.folder)):
            assert secret not in text
    for part in ("Layer similarity", "loss_hidden_states by step",
                 "loss_prediction by step"):  # fmt: skip
        assert part in page
    samples = sorted((folder / "intermediate" / "samples").glob("step-*"))
    step = int(samples[-1].stem.removeprefix("step-"))
    assert f"Attention at step {step} (intermediate layers)" in page
    assert_says_nothing_about_the_machine(folder, str(tmp_path), str(files.folder))


def test_without_teacher_and_matplotlib(
    train_options: list[str], tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = program(*train_options, "--baseline", "--max_steps", "1")
    assert result.status == 0 and "hf-distill[plots]" in result.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" not in page and "learned from" not in page
    assert "chose the student" not in page
    assert "weight of the teacher" not in page and "F1" in page


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--task", "fill-mask"], "--task fill-mask"),
        (["--file", "/home/ada/my data/dev.json"], "--file dev.json"),
        (["--file=/home/ada/dev.json"], "--file=dev.json"),
        (["--file", "~/dev.json"], "--file dev.json"),
        (["--file", "C:\\Users\\ada\\dev.json"], "--file dev.json"),
        (["--file", "data/dev.json"], "--file data/dev.json"),
        (["--hub_token", "hf_abc"], "--hub_token TOKEN"),
        (["--hub_token=hf_abc"], "--hub_token=TOKEN"),
        (["--model", "x", "hf_AbCdEfGhIjKlMnOpQrSt"], "--model x TOKEN"),
        (["--layers", '{"a": "/home/ada/x"}'], '--layers \'{"a": "x"}\''),
        (["--models", "/a/one", "/b/two", "--use_cpu"], "--models one two --use_cpu"),
        (["--text", "$(rm -r x); `y`"], "--text '$(rm -r x); `y`'"),
    ],
)
def test_commands_can_be_pasted_and_tell_nothing_of_the_machine(
    argv: list[str], shown: str
) -> None:
    assert shown_command("train", argv) == f"hf-distill train {shown}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/data has the splits train, test.", "data has the splits train, test."),
        ("No file '/home/ada/x.json' (~/y)", "No file 'x.json' (y)"),
        ("Set token=hf_AbCdEfGhIjKlMnOpQrSt, and/or see https://a.b/c", None),
    ],
)
def test_texts_for_reports_name_no_path_and_no_token(text: str, shown: str | None) -> None:
    expected = "Set token=TOKEN, and/or see https://a.b/c" if shown is None else shown
    assert without_paths(text) == expected
