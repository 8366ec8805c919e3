"""``hf-distill train --push_to_hub``: what arrives of a run of two stages, and of a failed push."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import forked
import pytest
from hub.writable import TOKEN, Fault, Hub, writable_hub
from huggingface_hub import ModelCard
from tiny import model_for, tokenizer

USER, MACHINE = "somebody-secret", "machine-secret"
NAMED = f"""
import os, platform, socket, sys
from hf_distill.cli.main import main
socket.gethostname = platform.node = lambda: "{MACHINE}"
names = os.uname()
os.uname = lambda: os.uname_result((names[0], "{MACHINE}", *names[2:]))
sys.exit(main(sys.argv[1:]))
"""
ALLOWED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
           "README.md", "distillation.json", "losses.png"}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a user works: models, data."""
    folder = tmp_path / "home" / USER
    folder.mkdir(parents=True)
    for name, layers, seed in (("big", 4, 1), ("small", 2, 0)):
        width = 16 if name == "big" else 8
        model = model_for("question-answering", seed=seed, layers=layers, width=width)
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    context = "ann met bob in may."
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "id": str(i),
                    "question": "who met bob?",
                    "answers": [{"text": "ann", "answer_start": 0}],
                }
            ],
        }
        for i in range(8)
    ]
    content = {"version": "1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def program(hub: Hub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "cache"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HOME": str(home),
        "USER": USER,
        "LOGNAME": USER,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [forked.interpreter(), "-c", NAMED, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        cwd=home,
    )


def train(hub: Hub, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return program(
        hub,
        home,
        *("train", "--task", "question-answering", "--student_model", str(home / "small")),
        *("--teacher_model", str(home / "big"), "--train_file", str(home / "train.json")),
        *("--validation_file", str(home / "train.json"), "--output_dir", str(home / "run")),
        *("--max_steps", "2", "--save_steps", "1", "--logging_steps", "1", "--use_cpu"),
        *("--max_length", "32", "--doc_stride", "4", "--disable_tqdm", "true"),
        *("--push_to_hub", "--hub_model_id", "tester/small", "--hub_token", TOKEN, *options),
    )


def assert_says_nothing(hub: Hub) -> None:
    """Neither a file nor a message of a commit has anything about this machine."""
    secrets = (USER, MACHINE, TOKEN, "/home/", "/tmp/")
    every = {**hub.files("tester/small"), "messages": "".join(hub.messages).encode()}
    for name, content in every.items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)


@pytest.mark.slow
def test_of_two_stages_the_student_arrives_and_nothing_else(tmp_path: Path, home: Path) -> None:
    with writable_hub(tmp_path / "hub") as hub:
        result = train(
            hub,
            home,
            *("--intermediate_max_steps", "2", "--record_steps", "1"),
            *("--hub_strategy", "every_save", "--hub_private_repo", "true"),
        )
        assert result.returncode == 0, result.stderr
        assert set(hub.files("tester/small")) == ALLOWED
        assert hub.private == {"tester/small"}
        assert_says_nothing(hub)
        pushed = hub.files("tester/small")
    assert pushed["model.safetensors"] == (home / "run" / "model.safetensors").read_bytes()
    facts = json.loads(pushed["distillation.json"])
    first, second = (stage["settings"] for stage in facts["stages"])
    assert (first["stage"], second["stage"]) == ("intermediate", "prediction")
    assert first["layer_pairs"] and "layer_pairs" not in second
    assert facts["train_data"] == facts["validation_data"] == "train.json"
    card = ModelCard(pushed["README.md"].decode())
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    metrics = json.loads((home / "run" / "metrics.json").read_text())["eval"]
    assert scores == {name: metrics[name] for name in scores} and {"exact_match", "f1"} <= {*scores}
    # What must have been there to be left out:
    assert (home / "run" / "training_args.bin").exists()
    assert list((home / "run").rglob("step-*.safetensors"))
    assert list((home / "run").rglob("distillation_projections.safetensors"))


@pytest.mark.slow
def test_a_push_that_fails_at_the_end_can_be_made_later(tmp_path: Path, home: Path) -> None:
    with writable_hub(tmp_path / "hub") as hub:
        hub.fault = Fault("/commit/", 403)
        result = train(hub, home)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        again = f"hf-distill push {home / 'run'} --hub_model_id tester/small"
        assert f"`{again}`" in result.stderr
        assert (home / "run" / "metrics.json").exists()
        assert not hub.files("tester/small")
        hub.fault = None
        later = program(hub, home, *again.split()[1:])
        assert later.returncode == 0, later.stderr
        assert set(hub.files("tester/small")) == ALLOWED
        assert_says_nothing(hub)


@pytest.mark.slow
def test_a_wrong_token_is_said_before_anything_is_trained(tmp_path: Path, home: Path) -> None:
    with writable_hub(tmp_path / "hub") as hub:
        result = train(hub, home, "--intermediate_max_steps", "2", "--hub_token", "hf_wrong")
        assert result.returncode == 2
        assert "there is no token, or it is wrong" in result.stderr
        assert "hf_wrong" not in result.stderr and "Traceback" not in result.stderr
        assert not list((home / "run").rglob("*.safetensors"))
