from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from squad_files import check_answers, document, write

PAGE = Path(__file__).resolve().parents[2] / "docs" / "augmentation.md"


def test_the_snippet_of_the_page_runs(
    saved_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.json", document())
    text = "the old bridge near the river"
    names: dict[str, Any] = {
        "dataset": Dataset.from_dict({"premise": [text], "hypothesis": [text], "label": [1]})
    }
    exec(compile(snippet.replace("bert-base-uncased", saved_model), PAGE.name, "exec"), names)
    assert len(names["more"]) > 10 and set(names["more"]["label"]) == {1}
    assert check_answers(json.loads((tmp_path / "augmented.json").read_text())) > 60
