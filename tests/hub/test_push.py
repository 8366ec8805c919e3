"""The student on the Hub: what arrives there, what its card says, what is left when it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import huggingface_hub
import pytest
import torch
from hub.writable import READING_TOKEN, TOKEN, Fault, Hub, writable_hub
from huggingface_hub import ModelCard
from runs import arguments
from safetensors.torch import load_file
from tiny import dataset_for, model_for, tokenizer
from transformers import AutoModelForQuestionAnswering

from hf_distill import DistillationTrainer
from hf_distill.cli.main import main
from hf_distill.hub import PublishingError, read_facts, write_card

TASK = "question-answering"
PUSHED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
          "README.md", "distillation.json", "losses.png"}  # fmt: skip
MARK = "somebody-s-home"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, for the real client in this process."""
    with writable_hub(tmp_path / "hub") as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        address = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        # Otherwise transformers keeps the first address that it has seen.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        yield running


def trainer_for(folder: Path, **options: Any) -> DistillationTrainer:
    teacher = folder.parent / MARK / "big"
    if not teacher.exists():
        model_for(TASK, seed=1, layers=4).save_pretrained(teacher)
        tokenizer().save_pretrained(teacher)
    return DistillationTrainer(
        model=model_for(TASK, seed=0, layers=2, width=8),
        teacher_model=str(teacher),
        args=arguments(
            folder,
            **{
                "hidden_states_loss_weight": 1.0,
                "save_strategy": "steps",
                "save_steps": 2,
                "hub_model_id": "tester/small",
                **options,
            },
        ),
        train_dataset=dataset_for(TASK),
        eval_dataset=dataset_for(TASK, seed=2),
        processing_class=tokenizer(),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has pushed nothing."""
    folder = tmp_path_factory.mktemp(MARK) / "run"
    trainer = trainer_for(folder)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    return folder


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / MARK / "run")
    return tmp_path / MARK / "run"


@pytest.fixture
def push(
    run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*options: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["push", str(run_folder), "--hub_model_id", "tester/small", *options])
        return status, *capfd.readouterr()

    return call


# ---- what arrives --------------------------------------------------------------------------------


def test_a_plain_student_and_its_report_arrive(hub: Hub, push: Any, run_folder: Path) -> None:
    status, out, err = push()
    assert status == 0, err
    assert f"Pushed: {hub.url}/tester/small/commit/" in out
    assert set(hub.files("tester/small")) == PUSHED
    assert (run_folder / "training_args.bin").exists()
    assert any(run_folder.glob("checkpoint-*/optimizer.pt"))


def test_a_student_from_the_hub_is_the_student_here(
    hub: Hub, push: Any, run_folder: Path, tmp_path: Path
) -> None:
    assert push("--private")[0] == 0
    assert hub.private == {"tester/small"}
    script = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
model, report = AutoModelForQuestionAnswering.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(report.values()), report
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer("who met bob?", "ann met bob", return_tensors="pt")
outputs = model(**batch)
save_file({**batch, "start": outputs.start_logits, "end": outputs.end_logits}, sys.argv[2])
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": TOKEN}
    subprocess.run(
        [forked.interpreter(), "-c", script, "tester/small", str(tmp_path / "logits")],
        env={**environment, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    found = load_file(tmp_path / "logits")
    start, end = found.pop("start"), found.pop("end")
    model = AutoModelForQuestionAnswering.from_pretrained(run_folder)
    outputs = model(**found)
    assert torch.equal(outputs.start_logits, start) and torch.equal(outputs.end_logits, end)


def test_nothing_that_is_pushed_says_anything_about_this_machine(
    hub: Hub, push: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((run_folder / "config.json").read_text())
    config |= {"_name_or_path": f"/home/{MARK}/small", "backbone_path": [f"~/{MARK}/x"]}
    (run_folder / "config.json").write_text(json.dumps(config))
    adapter = {"base_model_name_or_path": str(run_folder / "base")}
    (run_folder / "adapter_config.json").write_text(json.dumps(adapter))
    assert push()[0] == 0
    pushed = hub.files("tester/small")
    assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == "base"
    secrets = [MARK, TOKEN, str(run_folder), str(Path.home()), os.uname().nodename, "/tmp/"]
    for name, content in {**pushed, "messages": "".join(hub.messages).encode()}.items():
        for secret in secrets:
            assert len(secret) < 4 or secret.encode() not in content, (name, secret)


def test_other_files_of_a_repository_stay(hub: Hub, push: Any) -> None:
    folder = hub.root / "models" / "tester" / "small"
    folder.mkdir(parents=True)
    (folder / "NOTES.md").write_text("mine")
    assert push()[0] == 0
    assert hub.files("tester/small")["NOTES.md"] == b"mine"


def test_a_dry_run_pushes_nothing(hub: Hub, push: Any) -> None:
    status, out, _ = push("--dry_run")
    assert status == 0
    assert not hub.requests
    listed = set(re.findall(r"^  (\S+)$", out.partition("Would be pushed:")[2], re.MULTILINE))
    assert listed == PUSHED


def test_the_student_of_every_checkpoint(hub: Hub, tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path / "run", push_to_hub=True, hub_strategy="every_save", max_steps=4
    )
    trainer.train()
    assert set(hub.files("tester/small")) == PUSHED
    assert [m.strip() for m in hub.messages][-1].startswith("Training in progress, step")
    trainer.push_to_hub("The end")
    assert hub.messages[-1].strip() == "The end"
    assert set(hub.files("tester/small")) == PUSHED


# ---- the card ------------------------------------------------------------------------------------


def test_the_card_says_what_was_done_and_measured(hub: Hub, push: Any) -> None:
    assert push("--license", "apache-2.0", "--language", "en")[0] == 0
    pushed = hub.files("tester/small")
    card = ModelCard(pushed["README.md"].decode())
    facts = json.loads(pushed["distillation.json"])
    assert card.data.pipeline_tag == TASK and card.data.library_name == "transformers"
    assert {"hf-distill", "knowledge-distillation"} <= set(card.data.tags)
    assert (card.data.license, card.data.language) == ("apache-2.0", "en")
    assert card.data.base_model is None  # it came from nowhere on the Hub
    assert card.data.eval_results is None  # losses are no results
    (stage,) = facts["stages"]
    (teacher,) = stage["settings"]["teachers"]
    assert teacher["name"] == "big" and teacher["weights"][:16] in card.text
    assert stage["settings"]["temperature"] == 2.0 and stage["training"]["steps"] == 3
    for words in (
        "0 ← 0, 1 ← 2, 2 ← 4",
        "| temperature | 2 |",
        "losses.png",
        "hinton2015",
        "jiao2020tinybert",
        'QuestionAnswerer.from_pretrained("tester/small")',
    ):
        assert words in card.text, words
    assert "wang2021minilmv2" not in card.text
    assert "student alone" not in card.text  # that was not measured


def test_results_of_a_comparison_are_in_the_card(hub: Hub, push: Any, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    folder.mkdir()
    table = (
        "| | teacher | student alone | student distilled |\n|---|---|---|---|\n| F1 | 3 | 1 | 2 |"
    )
    for name, content in (("json", "{}"), ("md", table), ("png", "picture")):
        (folder / f"comparison.{name}").write_text(content)
    assert push("--comparison", str(folder))[0] == 0
    pushed = hub.files("tester/small")
    assert table in pushed["README.md"].decode()
    assert pushed["comparison.png"] == b"picture"
    status, _, err = push("--comparison", str(tmp_path))
    assert status == 2 and "has no comparison.json" in err


def test_what_a_person_wrote_stays(run_folder: Path) -> None:
    facts = {**read_facts(run_folder), "scores": {"f1": 81.5, "loss_task": 1.0}}
    facts["validation_data"] = "dev.json"
    (run_folder / "README.md").write_text(
        "---\nlicense: mit\ntags:\n- mine\n---\n# My model\n\nMy words.\n"
    )
    for expected in (81.5, 82.5):
        facts["scores"]["f1"] = expected
        write_card(run_folder, facts, title="small", license="apache-2.0")
        card = ModelCard.load(run_folder / "README.md")
        assert card.text.strip().startswith("# My model\n\nMy words.")
        assert card.text.count("## How it was made") == 1
        assert card.data.license == "mit" and card.data.tags[0] == "mine"
        (result,) = card.data.eval_results
        assert (result.metric_type, result.metric_value) == ("f1", expected)
        assert result.dataset_name == "dev.json"
    with (run_folder / "README.md").open("a") as file:
        file.write("\nMore of my words.\n")
    write_card(run_folder, facts, title="small")
    assert "More of my words." in (run_folder / "README.md").read_text()


# ---- failures ------------------------------------------------------------------------------------

FAULTS = {
    "wrong token": (Fault("/api/repos/create", 401), "there is no token, or it is wrong"),
    "no right": (Fault("/api/repos/create", 403), "this token may not write there"),
    "gone": (Fault("/preupload/", 404), "there is no such repository"),
    "their failure": (Fault("/commit/", 500), "itself has failed (HTTP 500)"),
    "cut": (Fault("/commit/", "cut"), "the Hub cannot be reached"),
    "upload refused": (Fault("/_lfs/", 403), "this token may not write there"),
    "upload failed": (Fault("/_lfs/", 500), "itself has failed (HTTP 500)"),
    "upload cut": (Fault("/_lfs/", "cut"), "the Hub cannot be reached"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_push_loses_nothing_and_says_how_to_go_on(
    name: str, hub: Hub, push: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
    hub.fault, told = FAULTS[name]
    before = {p: p.read_bytes() for p in run_folder.rglob("*.safetensors")}
    status, _, err = push()
    assert status == 2
    assert told in err and "Traceback" not in err
    assert f"`hf-distill push {run_folder} --hub_model_id tester/small`" in err
    assert {p: p.read_bytes() for p in run_folder.rglob("*.safetensors")} == before
    hub.fault = None
    assert push()[0] == 0
    assert set(hub.files("tester/small")) == PUSHED


def test_a_connection_that_is_cut_once_is_tried_again(
    hub: Hub, push: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fault = Fault("/_lfs/", "cut", times=1)
    assert push()[0] == 0
    assert any("fails: cut" in request for request in hub.requests)
    assert set(hub.files("tester/small")) == PUSHED


def test_what_the_hub_does_not_allow_is_said_before_training(hub: Hub, tmp_path: Path) -> None:
    hub.fault = Fault("/api/repos/create", 403)
    with pytest.raises(PublishingError, match="'tester/small' cannot be used: this token may not"):
        trainer_for(tmp_path / "run", push_to_hub=True)


def test_a_token_that_only_reads_is_refused_before_training(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "models" / "tester" / "small").mkdir(parents=True)
    with pytest.raises(PublishingError, match="'tester/small' cannot be used: this token may not"):
        trainer_for(tmp_path / "run", push_to_hub=True, hub_token=READING_TOKEN)


def test_a_hub_that_cannot_be_asked_is_pushed_to(hub: Hub, push: Any) -> None:
    hub.fault = Fault("/auth-check/", 404)
    assert push()[0] == 0
    assert any("/auth-check/write fails" in request for request in hub.requests)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_published(strategy: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"hub_strategy='{strategy}' publishes whole checkpoints"):
        trainer_for(tmp_path / "run", push_to_hub=True, hub_strategy=strategy)
    assert not hub.requests


def test_a_push_that_fails_in_between_does_not_stop_the_training(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_for(tmp_path / "run", push_to_hub=True, hub_strategy="every_save")
    hub.fault = Fault("/commit/", 403)
    trainer.train()
    assert trainer.state.global_step == 3
    assert "could not be pushed to tester/small in between: this token may not" in caplog.text
    with pytest.raises(PublishingError, match="student, card and figures are complete in"):
        trainer.push_to_hub()
    hub.fault = None
    trainer.push_to_hub()
    assert set(hub.files("tester/small")) == PUSHED


def test_offline(hub: Hub, push: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    status, _, err = push()
    assert status == 2 and "the Hub cannot be reached" in err
    assert not hub.requests


def test_a_folder_without_a_finished_run(hub: Hub, tmp_path: Path) -> None:
    assert main(["push", str(tmp_path), "--hub_model_id", "tester/small"]) == 2
