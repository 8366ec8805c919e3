"""``hf-distill sweep`` when trials fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_runs import KILLS, Program, config_of, killed_at, outcome, trainings
from task_runs import LABELS, save_model, write_data

from hf_distill import DistillationTrainer
from hf_distill.cli import sweep_trials

pytestmark = pytest.mark.usefixtures("no_garbage_collection")


def failing(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """These trainings run out of memory."""
    run = sweep_trials.run_request

    def stand_in(request: Any) -> Any:
        if int(request.output_dir.name.removeprefix("trial-")) in numbers:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 TiB")
        return run(request)

    monkeypatch.setattr(sweep_trials, "run_request", stand_in)


def test_a_trial_that_fails_does_not_stop_the_others(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 0, 2, 3)  # three, but not in a row
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    content = outcome(tmp_path / "sweep")
    assert [trial["value"] is None for trial in content["trials"]] == [True, False, True, True]
    assert content["trials"][0]["failure"] == "CUDA out of memory. Tried to allocate 3 TiB"
    last_rows = [line for line in result.stdout.splitlines() if line.startswith("│")][-4:]
    assert ["failed" in line for line in last_rows] == [False, True, True, True]
    assert content["best"] == 1


def test_stopped_it_says_how_to_go_on(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillationTrainer, "training_step", stopped)
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 130 and "To continue, repeat the command." in result.stderr
    assert "--resume" not in result.stderr


def test_three_failures_in_a_row_stop_it(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options["search_space"] = {"temperature": [1, 2, 3, 4, 5]}
    config = config_of(options, tmp_path)
    with monkeypatch.context() as patches:
        failing(patches, 1, 2, 3)
        result = program("sweep", "--config", config)
    assert result.status == 2
    assert "3 trials in a row failed, the last one: CUDA out of memory." in result.stderr
    assert len(outcome(tmp_path / "sweep")["trials"]) == 4
    assert program("sweep", "--config", config).status == 0
    assert [t["failure"] is None for t in outcome(tmp_path / "sweep")["trials"]] == [
        True, False, False, False, True,
    ]  # fmt: skip


def test_a_student_that_diverges_has_failed(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    options |= {"max_grad_norm": 0.0, "optim": "sgd"}
    options["search_space"] = {"learning_rate": [1e-3, 1e30]}
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    good, bad = outcome(tmp_path / "sweep")["trials"]
    assert good["failure"] is None and bad["value"] is None
    assert "is NaN or infinite" in bad["failure"]


def test_a_classifier_that_diverges_has_failed(program: Program, tmp_path: Path) -> None:
    task = "text-classification"
    data = write_data(tmp_path, task)
    result = program(
        *("sweep", "--task", task, "--train_file", data, "--validation_file", data),
        *("--student_model", save_model(tmp_path / "student", task, **LABELS[task])),
        *("--baseline", "--output_dir", tmp_path / "sweep", "--max_steps", "3", "--use_cpu"),
        *("--search_space", "{learning_rate: [1.0e+30, 1.0e-3]}", "--max_grad_norm", "0"),
        *("--optim", "sgd", "--disable_tqdm", "true"),
    )
    assert result.status == 0, result.stderr
    bad, good = outcome(tmp_path / "sweep")["trials"]
    # Its accuracy would be a number: of a label that is always the same.
    assert "NaN or infinite" in bad["failure"] and "smaller" in bad["failure"]
    assert bad["value"] is None and good["value"] is not None


def test_what_a_training_would_refuse_is_refused_before(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any) -> None:
        raise ValueError("this teacher cannot teach")

    config = config_of(options, tmp_path)
    with monkeypatch.context() as patches:
        begun = trainings(patches)
        patches.setattr(DistillationTrainer, "check", refuse)
        result = program("sweep", "--config", config)
    assert result.status == 1 and "ValueError: this teacher cannot teach" in result.stderr
    assert begun == [] and not (tmp_path / "sweep" / "sweep.json").exists()
    refused = program("sweep", "--config", config, "--metric", "loss_prediction")
    assert refused.status == 2 and "--metric loss_prediction" in refused.stderr
    # What they left is no reason to refuse the same folder.
    assert program("sweep", "--config", config, "--n_trials", "1").status == 0


def test_a_metric_that_is_not_defined_is_a_failure_of_the_trial(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweep_trials.run_request

    def undefined(request: Any) -> Any:
        made = run(request)
        if request.output_dir.name == "trial-0001":
            path = request.output_dir / "metrics.json"
            content = json.loads(path.read_text())
            content["eval"]["f1"] = None
            path.write_text(json.dumps(content))
        return made

    monkeypatch.setattr(sweep_trials, "run_request", undefined)
    for _ in range(2):  # nor does it stop a later call
        result = program("sweep", "--config", config_of(options, tmp_path))
        assert result.status == 0, result.stderr
    trials = outcome(tmp_path / "sweep")["trials"]
    assert trials[1]["value"] is None and "f1 is not defined" in trials[1]["failure"]
    assert all(one["value"] is not None for one in trials if one["number"] != 1)


def test_failures_name_no_path(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: Any) -> None:
        raise RuntimeError(f"{tmp_path}/secret/file.bin cannot be read ({tmp_path}/secret)")

    monkeypatch.setattr(sweep_trials, "run_request", fail)
    result = program("sweep", "--config", config_of(options, tmp_path), "--n_trials", "1")
    assert result.status == 0 and str(tmp_path) in result.stderr
    (trial,) = outcome(tmp_path / "sweep")["trials"]
    assert trial["failure"] == "file.bin cannot be read (secret)"
    for name in ("sweep.json", "sweep.md", "report.html", "report.md"):
        assert str(tmp_path) not in (tmp_path / "sweep" / name).read_text(), name


def test_a_folder_of_another_trial_is_not_taken_for_its_own(
    whole_sweep: Callable[[Program], Path],
    program: Program,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    killed_at(options, tmp_path, KILLS["before a trial is written down"])
    folder = tmp_path / "sweep"
    shutil.copytree(folder / "trial-0000", folder / "trial-0001")
    (folder / "trial-0001" / "result.json").unlink()
    assert program("sweep", "--config", config_of(options, tmp_path)).status == 0
    assert outcome(folder) == outcome(whole_sweep(program))


def test_no_room_stops_the_sweep_and_keeps_the_trial(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(request: Any) -> None:
        raise OSError(28, "No space left on device")

    config = config_of(options, tmp_path)
    with monkeypatch.context() as patches:
        patches.setattr(sweep_trials, "run_request", full)
        result = program("sweep", "--config", config)
    assert result.status == 2 and "No space left" in result.stderr
    assert program("sweep", "--config", config).status == 0
    assert all(trial["failure"] is None for trial in outcome(tmp_path / "sweep")["trials"])
