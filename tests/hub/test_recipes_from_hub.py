"""Recipes with their own Hub ids, with the real client, from a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import forked
from datasets import Dataset
from hub.server import hub
from recipes.stand_ins import STAND_INS, save_models

from hf_distill.recipes import load_recipe

NAMES = ("bert-medium-squad2", "gelectra-base-germanquad")
SCRIPT = """
import sys
from hf_distill.cli.main import main

for name in sys.argv[1:]:
    status = main([
        "train", "--recipe", name, "--output_dir", name,
        "--max_steps", "2", "--use_cpu", "--disable_tqdm", "true",
    ])
    if status:
        sys.exit(status)
"""


def rows_of(name: str) -> list[dict[str, Any]]:
    """The data of a stand-in as the Hub has them: a row a question."""
    rows = []
    for article in STAND_INS[name].data()["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers", [])
                columns = {
                    key: [answer[key] for answer in answers] for key in ("text", "answer_start")
                }
                rows.append(
                    {
                        "id": question["id"],
                        "context": paragraph["context"],
                        "question": question["question"],
                        "answers": columns,
                    }
                )
    return rows


def test_recipes_run_from_the_hub(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    for name in NAMES:
        recipe = load_recipe(name)
        models = {"student": recipe.student_model, "teacher": recipe.teacher_model}
        save_models(recipe, {role: root / "models" / id for role, id in models.items()})
        data = root / "datasets" / recipe.data["dataset_name"]
        # As on the Hub's branches: data/ on main, a folder a configuration on refs/convert/parquet.
        data /= "plain_text" if "dataset_revision" in recipe.data else "data"
        data.mkdir(parents=True)
        for split in (recipe.data["train_split"], recipe.data["validation_split"]):
            Dataset.from_list(rows_of(name)).to_parquet(data / f"{split}-00000-of-00001.parquet")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    with hub(root) as (url, requests):
        result = subprocess.run(
            [forked.interpreter(), "-c", SCRIPT, *NAMES],
            env={
                **environment,
                "HF_ENDPOINT": url,
                "HF_HOME": str(tmp_path / "cache"),
                "HF_HUB_DISABLE_XET": "1",
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            timeout=180,
            cwd=tmp_path,
        )
    assert result.returncode == 0, result.stderr
    for name in NAMES:
        recipe = load_recipe(name)
        for source in (recipe.student_model, recipe.teacher_model):
            assert any(r.startswith(f"GET /{source}/") and "model.safetensors" in r
                       for r in requests)  # fmt: skip
        revision = recipe.data.get("dataset_revision", "main")
        assert any(f"/datasets/{recipe.data['dataset_name']}/" in r for r in requests)
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        assert metrics["recipe"] == name
        assert metrics["student_model"] == recipe.student_model
        assert metrics["teacher_model"] == recipe.teacher_model
        assert metrics["train_data"].startswith(recipe.data["dataset_name"])
        if revision != "main":
            # The script on main is never asked for, let alone run.
            assert any(f"/{revision}" in r for r in requests)
