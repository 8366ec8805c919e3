"""Exports of a student are found, pushed as ``onnx/`` and have their rows in the card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub.test_push import finished, hub, push, run_folder, trainer_for
from hub.writable import Hub
from safetensors.torch import load_file
from tiny import model_for

from hf_distill.files import weights_hash
from hf_distill.hub.exports import find_exports

__all__ = ["finished", "hub", "push", "run_folder"]


def write_export(folder: Path, student: Path, int8: bool, **changes: Any) -> Path:
    """Write what ``hf-distill export`` does, with a file that is none."""
    report = {
        "source_weights": weights_hash(student),
        "file": "onnx/model_int8.onnx" if int8 else "onnx/model.onnx",
        "weights": "int8" if int8 else "float32",
        "settings": "per channel" if int8 else None,
        "metric": "f1",
        "quality": {"original": {"f1": 75.4}, "exported": {"f1": 74.875 if int8 else 75.4}},
        "sizes": {"original": 90.4e6, "exported": 23.4e6 if int8 else 90.6e6},
        "speed_up": 1.637 if int8 else 0.91,
        "machine": {"processor": "A processor", "threads": "1"},
    }
    (folder / "onnx").mkdir(parents=True)
    (folder / report["file"]).write_text(f"{report['weights']} of {folder.name}")
    (folder / "export.json").write_text(json.dumps({**report, **changes}))
    return folder


def test_they_are_pushed_with_their_rows(hub: Hub, push: Any, run_folder: Path) -> None:
    write_export(run_folder / "served", run_folder, int8=False)
    write_export(run_folder.parent / "served-int8", run_folder, int8=True)
    status, _, err = push()
    assert status == 0, err
    pushed = hub.files("tester/small")
    assert pushed["onnx/model.onnx"] == b"float32 of served"
    assert pushed["onnx/model_int8.onnx"] == b"int8 of served-int8"
    assert {"model.safetensors", "README.md"} <= set(pushed)
    assert not [name for name in pushed if "export.json" in name]
    card = pushed["README.md"].decode()
    rows = [re.sub(r" *\| *", "|", line) for line in card.splitlines() if "`onnx/" in line]
    assert rows == [
        "|`onnx/model.onnx`|float32|f1|75.40|75.40|90.4|90.6|0.91|",
        "|`onnx/model_int8.onnx`|int8, per channel|f1|75.40|74.88|90.4|23.4|1.64|",
    ]
    assert "A processor, 1 threads" in card


def test_a_trainer_pushes_them(hub: Hub, run_folder: Path) -> None:
    write_export(run_folder / "served", run_folder, int8=False)
    trainer = trainer_for(run_folder)
    # Its student is the one of the folder.
    trainer.model.load_state_dict(load_file(run_folder / "model.safetensors"))
    trainer.push_to_hub()
    assert hub.files("tester/small")["onnx/model.onnx"] == b"float32 of served"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a student."""
    folder = tmp_path / "work" / "run"
    model_for("question-answering", seed=0).save_pretrained(folder)
    return folder


def test_exports_of_other_weights_stay_here(run: Path) -> None:
    write_export(run / "served", run, int8=False)
    assert set(find_exports(run)) == {"onnx/model.onnx"}
    model_for("question-answering", seed=5).save_pretrained(run)  # it was trained on
    assert find_exports(run) == {}


def test_two_of_a_kind_are_refused(run: Path) -> None:
    one, other = (write_export(run / name, run, int8=True) for name in ("a", "b"))
    with pytest.raises(ValueError, match=rf"{one} and {other} .*onnx/model_int8\.onnx"):
        find_exports(run)
    shutil.rmtree(other)
    assert set(find_exports(run)) == {"onnx/model_int8.onnx"}


@pytest.mark.parametrize("file", ["../secret.onnx", "/etc/passwd", "onnx/notes.txt", None])
def test_no_other_file_is_taken(run: Path, file: str | None) -> None:
    write_export(run / "served", run, int8=False, file=file)
    assert find_exports(run) == {}
