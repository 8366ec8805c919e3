"""``hf-distill shrink --push_to_hub``: refused before any work, or all arrives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub.test_push import hub
from hub.writable import Hub
from huggingface_hub import ModelCard
from tiny import model_for, tokenizer

from hf_distill.cli.main import main

__all__ = ["hub"]

SECRET = "somebody-s-home"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    home = tmp_path / SECRET
    model_for("text-classification", seed=0, layers=3).save_pretrained(home / "big")
    tokenizer().save_pretrained(home / "big")
    rows = [{"text": f"a good film {i}", "label": f"LABEL_{i % 3}"} for i in range(24)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("shrink", "--teacher_model", str(home / "big"), "--train_file", str(home / "rows.jsonl")),
        *("--validation_file", str(home / "rows.jsonl"), "--output_dir", str(home / "small")),
        *("--num_hidden_layers", "1", "--num_train_epochs", "2", "--use_cpu", "--no_export"),
        *("--bf16", "false", "--teacher_check_samples", "0", "--hidden_states_share", "0"),
        *("--push_to_hub", "--hub_model_id", "tester/small"),
    ]


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("tester/small", "hf_wrong", "there is no token, or it is wrong"),
        ("not a name!", None, "not a name!"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_done(
    name: str,
    token: str | None,
    said: str,
    hub: Hub,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main([*options, "--hub_model_id", name]) == 2
    err = capfd.readouterr().err
    assert said in err and "hf_wrong" not in err
    assert not (tmp_path / SECRET / "small" / "shrink.json").exists()


def test_a_dry_run_asks_nobody(hub: Hub, options: list[str]) -> None:
    assert main([*options, "--dry_run"]) == 0
    assert not hub.requests


@pytest.mark.slow
def test_the_student_arrives_with_the_comparison(
    hub: Hub, options: list[str], tmp_path: Path
) -> None:
    assert main(options) == 0
    small = tmp_path / SECRET / "small"
    # Without the extra `plots` a comparison has no picture.
    (small / "comparison" / "comparison.png").unlink(missing_ok=True)
    assert main(options) == 0  # of what is finished only the push is done again
    pushed = hub.files("tester/small")
    assert pushed["model.safetensors"] == (small / "student" / "model.safetensors").read_bytes()
    card = pushed["README.md"].decode()
    compared = json.loads((small / "comparison" / "comparison.json").read_text())["models"]
    for role in ("teacher", "student_distilled"):
        assert f"{compared[role]['quality']['accuracy']:.2f}" in card
    assert ModelCard(card).data.eval_results
    for name, content in pushed.items():
        for secret in (SECRET, str(tmp_path)):
            assert secret.encode() not in content, name
