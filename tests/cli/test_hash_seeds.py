"""Two processes, whose sets of strings have another order, write the same bytes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import WINDOWS, Files
from task_runs import LABELS, save_model, write_data
from tiny import bert_config, tokenizer
from transformers import BertForMaskedLM

NAMES = ("paris", "rome", "river", "france", "italy", "england", "seine", "tiber", "town", "city")
PROGRAM = """
import json, sys
from hf_distill.cli.main import main
for argv in json.loads(sys.argv[1]):
    print("hf-distill", *argv, flush=True)
    assert main(argv) == 0, argv
"""
TIMES = re.compile(
    rb'"\w*(?:runtime|_per_second)": [0-9.]+|[0-9.,]+ rows per second|\b[0-9]+ (?:s|min|h)\b'
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path, without durations and speeds."""
    return {
        str(path.relative_to(folder)): TIMES.sub(b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_another_hash_seed_changes_no_file(files: Files, tmp_path: Path) -> None:
    teacher, masked_lm = files.models["teacher"], tmp_path / "masked_lm"
    BertForMaskedLM(bert_config()).save_pretrained(masked_lm)
    tokenizer(NAMES).save_pretrained(masked_lm)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("paris is in france ?\nthe tiber is a river .\n")
    task = "text-classification"
    pair = [
        save_model(tmp_path / role, task, seed=seed, layers=1, **LABELS[task])
        for seed, role in enumerate(("wide", "narrow"))
    ]
    data = ["--train_file", files.train, "--use_cpu", *WINDOWS]
    train = ["train", "--disable_tqdm", "true", "--max_steps", "2"]
    commands = [
        ["create-student", teacher, "--hidden_size", "8", "--intermediate_size", "8",
         "--calibration_file", files.train, "--trim_vocabulary", str(corpus), "--output_dir",
         "student", *WINDOWS],
        ["augment", "--model", str(masked_lm), "--device", "cpu", "--squad_path", files.train,
         "--output_path", "more.json", "--multiplication_factor", "3"],
        ["cache", "--teacher_model", teacher, "--tokenizer", "student", "--output_dir", "cache",
         *data],
        [*train, "--teacher_model", teacher, "--student_model", "student", "--output_dir", "out",
         "--intermediate_max_steps", "2", "--record_steps", "1", "--attention_loss",
         "relations", "--layer_mapping", "auto", "--save_steps", "2", "--validation_file",
         files.validation, *data],
        [*train, "--teacher_model", pair[0], "--student_model", pair[1], "--train_file",
         write_data(tmp_path, task), "--output_dir", "texts", "--use_cpu"],
        ["push", "texts", "--hub_model_id", "someone/texts", "--dry_run"],
    ]  # fmt: skip
    runs = {}
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        runs[seed] = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(commands)],
            cwd=tmp_path / seed,
            env={**os.environ, "PYTHONHASHSEED": seed, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    for run in runs.values():
        output, _ = run.communicate()
        assert run.returncode == 0, output.decode()[-3000:]
    one, other = (contents(tmp_path / seed) for seed in runs)
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} == set()
    made = {"student/model.safetensors", "more.json", "out/model.safetensors", "texts/README.md"}
    assert made <= one.keys()
