"""The example of a sweep over cached teacher outputs; see test_examples."""

from __future__ import annotations

import gc
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from example_runs import RunScript, saved_pair

from hf_distill.teachers import LiveTeacher

FEELINGS = ("good", "bad", "so-so")


def test_sweep_cached(tmp_path: Path, run_script: RunScript, monkeypatch: Any) -> None:
    words = {"good": "fine nice", "bad": "ugly", "so-so": "well"}
    for name, rows in (("train", range(24)), ("dev", range(100, 131))):
        texts = [
            {"text": f"{words[label]} no {i}, {'very ' * (i % 4)}", "label": label}
            for i in rows
            for label in [FEELINGS[(i + i // 5) % 3]]
        ]
        Dataset.from_list(texts).to_csv(tmp_path / f"{name}.csv")
    options = {
        **saved_pair(tmp_path, "text-classification", "bert", FEELINGS),
        "dataset": "csv",
        "train_file": str(tmp_path / "train.csv"),
        "validation_file": str(tmp_path / "dev.csv"),
    }
    runs: list[Any] = []
    create = LiveTeacher.__init__

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        runs.append(self)
        create(self, *args, **kwargs)

    # The teacher itself is there once; run_classification.py below has its own, live.
    monkeypatch.setattr(LiveTeacher, "__init__", spy)
    monkeypatch.setattr(gc, "collect", lambda *args: 0)  # half of the time of these trainings
    grid = ["--temperatures", "1", "4", "--weights", "0.5", "1.0"]
    run_script("sweep_cached.py", *grid, output="sweep", **options)
    assert len(runs) == 1
    folder = tmp_path / "sweep"
    content = json.loads((folder / "sweep.json").read_text())
    tried = [tuple(trial["parameters"].values()) for trial in content["trials"]]
    assert sorted(tried) == list(itertools.product((1.0, 4.0), (0.5, 1.0)))
    values = [trial["value"] for trial in content["trials"]]
    assert len(set(values)) > 1 and content["best"] == values.index(max(values))
    assert (folder / "sweep.png").stat().st_size > 1000

    # Each is the training that has the teacher beside it.
    for trial in (content["trials"][content["best"]], min(content["trials"], key=worth)):
        live = run_script(
            "run_classification.py",
            output=f"live{trial['number']}",
            **{**options, **trial["parameters"]},
        )
        assert live["eval_accuracy"] == pytest.approx(trial["value"])

    # Again, over the cache that is there; of another teacher it is refused.
    parts = {path: path.stat().st_mtime_ns for path in folder.glob("teacher_outputs/part*")}
    run_script("sweep_cached.py", *grid, output="sweep", **options)
    again = json.loads((folder / "sweep.json").read_text())
    assert [trial["value"] for trial in again["trials"]] == values
    assert parts == {path: path.stat().st_mtime_ns for path in parts} != {}
    with pytest.raises(ValueError, match="outputs of another run"):
        run_script(
            "sweep_cached.py", *grid, output="sweep", **{**options, "teacher": options["student"]}
        )


def worth(trial: dict[str, Any]) -> float:
    value: float = trial["value"]
    return value
