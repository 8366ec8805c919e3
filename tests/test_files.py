from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_distill.files import display_name, write_atomically, write_json, write_text
from hf_distill.reports import size


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("deepset/tinyroberta", "deepset/tinyroberta"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("/home/someone/models/student", "student"),
        ("./models/student", "student"),
        ("~/models/student/", "student"),
        ("../a/b/student", "student"),
        ("a/b/student", "student"),
    ],
)
def test_display_name_keeps_hub_ids_and_last_parts(source: str, name: str) -> None:
    assert display_name(source) == name


def test_display_name_of_existing_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert display_name("owner/student") == "student"
    monkeypatch.chdir(tmp_path / "owner" / "student")
    assert display_name(".") == "student"


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    content = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf"), "e": "ü"}}
    path = write_json(tmp_path / "deep" / "x.json", content)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None, "e": "ü"}}
    assert "ü" in text and "NaN" not in text


def test_number_format_is_that_of_most_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(100, dtype=torch.float16), "b": torch.zeros(10)}
    save_file(tensors, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(30)}, tmp_path / "model-2.safetensors")
    files = size.weight_files(str(tmp_path))
    assert [path.name for path in files] == ["model-1.safetensors", "model-2.safetensors"]
    assert size.stored_as(files[:1]) == "float16"
    assert size.stored_as(files) == "float16"
    assert size.stored_as(files[1:]) == "float32"
    assert size.stored_as([]) is None


def test_model_of_the_hub_is_looked_for_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}))
    for name in ("model", "x-1", "x-2"):
        (tmp_path / f"{name}.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    cached = {f"{n}.safetensors": str(tmp_path / f"{n}.safetensors") for n in ("model", "x-1")}
    monkeypatch.setattr(size, "try_to_load_from_cache", lambda source, name: cached.get(name))
    assert [path.name for path in size.weight_files("owner/model")] == ["model.safetensors"]
    cached["x-2.safetensors"] = str(tmp_path / "x-2.safetensors")
    cached["model.safetensors.index.json"] = str(index)
    found = [path.name for path in size.weight_files("owner/model")]
    assert found == ["x-1.safetensors", "x-2.safetensors"]
    monkeypatch.setattr(size, "try_to_load_from_cache", lambda source, name: None)
    assert size.weight_files("owner/model") == []
