"""What a seed decides is the same on processors with other instructions.

Only sums of floating-point numbers may differ in their last digits, and so may logits and scores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runs import WINDOWS, Files
from tiny import bert_config, tokenizer
from transformers import BertForMaskedLM

PROGRAM = """
import json, sys
from hf_distill.cli.main import main
for argv in json.loads(sys.argv[1]):
    assert main(argv) == 0, argv
"""
# As without AVX.
OTHER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_DEBUG_CPU_TYPE": "5"}
NAMES = ("paris", "rome", "river", "france", "italy", "england", "seine", "tiber", "town", "city")


@pytest.mark.slow
def test_answers_augmented_files_and_manifests(files: Files, tmp_path: Path) -> None:
    teacher, masked_lm = files.models["teacher"], tmp_path / "masked_lm"
    BertForMaskedLM(bert_config()).save_pretrained(masked_lm)
    tokenizer(NAMES).save_pretrained(masked_lm)
    commands = [
        ["augment", "--model", str(masked_lm), "--device", "cpu", "--squad_path", files.train,
         "--output_path", "more.json", "--multiplication_factor", "3"],
        ["cache", "--teacher_model", teacher, "--output_dir", "cache", "--train_file", files.train,
         "--use_cpu", *WINDOWS],
        ["evaluate", "--model", teacher, "--file", files.validation, "--use_cpu", "--output_dir",
         "scores", *WINDOWS],
    ]  # fmt: skip
    for name, changes in (("one", {}), ("other", OTHER)):
        (tmp_path / name).mkdir()
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(commands)],
            cwd=tmp_path / name, env={**os.environ, "HF_HUB_OFFLINE": "1", **changes},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout.decode()[-3000:]
    one, other = tmp_path / "one", tmp_path / "other"

    def read(name: str) -> list[Any]:
        return [json.loads((folder / name).read_text()) for folder in (one, other)]

    assert (one / "more.json").read_bytes() == (other / "more.json").read_bytes()
    manifests = read("cache/manifest.json")
    assert manifests[0] == manifests[1]
    # The name of a part has a hash of its contents, which are logits.
    parts = [
        sorted(path.name.partition(".")[0] for path in (folder / "cache").glob("part-*"))
        for folder in (one, other)
    ]
    assert parts[0] == parts[1] != []
    answers = read("scores/predictions.json")
    assert answers[0] == answers[1]
    best = read("scores/nbest_predictions.json")
    differences = [
        abs(a["score"] - b["score"])
        for id_, many in best[0].items()
        for a, b in zip(many["answers"], best[1][id_]["answers"], strict=True)
    ]
    texts = [
        {i: [one["text"] for one in many["answers"]] for i, many in both.items()} for both in best
    ]
    assert texts[0] == texts[1]
    assert max(differences) < 1e-4
    if not any(differences):
        pytest.skip("This processor computes the same either way, so nothing was tested.")
