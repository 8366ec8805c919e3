"""What a push must not do: end a training, delete a checkpoint, replace a person's words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.test_push import MARK, PUSHED, hub, trainer_for
from hub.writable import Hub, WritingHandler
from huggingface_hub import ModelCard

import hf_distill.hub.publisher as publisher
from hf_distill.hub import PublishingError, published_files, read_facts, write_card
from hf_distill.hub.card import merged_cards
from hf_distill.hub.facts import scores_of
from hf_distill.hub.push import reason

__all__ = ["hub"]

MINE = "---\nlicense: mit\ntags:\n- mine\n---\n# Mine\n\nMy words.\n"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Uploads wait until it is open."""
    opened, untouched = threading.Event(), WritingHandler.do_POST

    def wait(self: WritingHandler) -> None:
        if "/preupload/" in self.path:
            opened.wait(20)
        untouched(self)

    monkeypatch.setattr(WritingHandler, "do_POST", wait)
    yield opened
    opened.set()


def test_a_checkpoint_that_is_deleted_while_it_is_pushed_arrives(
    hub: Hub, tmp_path: Path, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"max_steps": 6, "save_total_limit": 1}
    trainer = trainer_for(run, push_to_hub=True, hub_strategy="every_save", **options)
    pushed: dict[str, bytes] = {}
    untouched = trainer._finish_current_push

    def finish() -> None:
        assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-6"]
        (kept,) = run.glob(".push-*")
        pushed["weights"] = (kept / "model.safetensors").read_bytes()
        gate.set()
        untouched()

    trainer._finish_current_push = finish  # type: ignore[method-assign]
    trainer.train()
    assert "could not be pushed" not in caplog.text
    assert [message.strip() for message in hub.messages] == ["Training in progress, step 2"]
    assert hub.files("tester/small")["model.safetensors"] == pushed["weights"]
    last = (run / "checkpoint-6" / "model.safetensors").read_bytes()
    assert last != pushed["weights"]
    assert not list(run.glob(".push-*"))


@pytest.mark.parametrize("error", [FileNotFoundError("no model"), ValueError("no JSON")])
def test_whatever_goes_wrong_with_a_push_in_between_the_checkpoint_stays(
    error: Exception,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    trainer = trainer_for(tmp_path / "run", push_to_hub=True, hub_strategy="every_save")
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "published_files", fail)
        trainer.train()
    assert trainer.state.global_step == 3
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} >= {"checkpoint-2"}
    assert f"in between: {error}. Training continues." in caplog.text
    trainer.push_to_hub()
    assert set(hub.files("tester/small")) == PUSHED


def test_what_a_killed_push_has_kept_is_deleted_by_the_next_run(hub: Hub, tmp_path: Path) -> None:
    left = tmp_path / "run" / ".push-left"
    left.mkdir(parents=True)
    trainer_for(tmp_path / "run", push_to_hub=True, hub_strategy="every_save").train()
    assert not left.exists()


def test_a_push_beside_the_program(hub: Hub, tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path / "run")
    trainer.train()
    trainer.push_to_hub(blocking=False).result(60)
    assert set(hub.files("tester/small")) == PUSHED


def test_folders_that_a_script_passes_on_are_not_published(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path / "run")
    folder = tmp_path / MARK / "data"
    trainer.create_model_card(finetuned_from=str(folder), dataset=str(folder))
    for name in ("README.md", "distillation.json"):
        text = (tmp_path / "run" / name).read_text()
        assert MARK not in text and str(tmp_path) not in text, name
    assert read_facts(tmp_path / "run")["train_data"] == "data"
    trainer.create_model_card(finetuned_from="acme/base", dataset_tags="acme/questions")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert (card.data.base_model, card.data.datasets) == ("acme/base", ["acme/questions"])


def test_of_two_stages_the_first_knows_what_the_student_began_as(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path / "run")
    earlier = trainer.distillation_facts()["stages"][0]
    trainer.add_facts(base_model="acme/base", stages=[earlier])
    facts = trainer.distillation_facts()
    assert facts["student"]["base_model"] == "acme/base" and "base_model" not in facts
    assert len(facts["stages"]) == 2


def test_only_numbers_are_scores() -> None:
    log = [{"eval_f1": float("nan"), "eval_exact": 2.0, "eval_runtime": 1.0, "eval_x": "text"}]
    assert scores_of(log) == {"exact": 2.0}  # type: ignore[arg-type]


def test_a_failure_on_this_machine_is_not_blamed_on_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reason(PermissionError(13, "denied")) == "[Errno 13] denied"
    assert reason(ConnectionError("gone")) == "the Hub cannot be reached (gone)"
    trainer = trainer_for(tmp_path / "run", push_to_hub=True)
    monkeypatch.setattr(trainer, "save_model", lambda **_: None)
    with pytest.raises(FileNotFoundError, match="has no model to push") as caught:
        trainer.push_to_hub()
    assert not isinstance(caught.value, PublishingError)


def test_of_a_folder_full_of_things_only_the_student_is_published(tmp_path: Path) -> None:
    student = ["config.json", "generation_config.json", "model-00001-of-00002.safetensors",
               "model-00002-of-00002.safetensors", "model.safetensors.index.json", "vocab.txt",
               "tokenizer_config.json", "README.md", "distillation.json"]  # fmt: skip
    others = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.bin",
              "pytorch_model.bin", "trainer_state.json", "distillation_projections.safetensors",
              "distillation_checkpoint.json", "step-1.safetensors", "predictions.json", ".env",
              "train.json", "events.out.tfevents.1", "model.py", "comparison.json", "notes.md",
              "checkpoint-1/model.safetensors", "samples/config.json"]  # fmt: skip
    for name in (*student, *others):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    assert set(published_files(tmp_path)) == set(student)


# ---- a card that is on the Hub already -----------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> str:
    """A card that nobody has written into."""
    trainer = trainer_for(tmp_path / "run")
    trainer.create_model_card(license="apache-2.0", finetuned_from="acme/base")
    return (tmp_path / "run" / "README.md").read_text()


def test_what_a_person_wrote_on_the_hub_stays(hub: Hub, tmp_path: Path) -> None:
    there = hub.root / "models" / "tester" / "small" / "README.md"
    there.parent.mkdir(parents=True)
    there.write_text(MINE)
    trainer = trainer_for(tmp_path / "run")
    trainer.train()
    for _ in range(2):
        trainer.push_to_hub()
        card = ModelCard.load(there)
        assert card.text.strip().startswith("# Mine\n\nMy words.")
        assert card.text.count("## How it was made") == 1
        assert card.data.license == "mit" and card.data.tags[0] == "mine"
        assert card.data.pipeline_tag == "question-answering"


def test_without_another_card_ours_is_pushed_as_it_is(ours: str) -> None:
    assert merged_cards(ours, None) == ours
    assert ModelCard(merged_cards(ours, ours)).content == ModelCard(ours).content


def test_words_of_a_person_on_this_machine_come_first(ours: str) -> None:
    for mine in (f"{ours}\nMy words here.\n", ours.replace("# run", "# run\n\nMy words here.")):
        assert merged_cards(mine, MINE) == mine


def test_metadata_that_are_facts_are_those_of_the_last_run(ours: str) -> None:
    there = ours.replace("base_model: acme/base", "base_model: acme/other").replace(
        "license: apache-2.0", "license: mit"
    )
    card = ModelCard(merged_cards(ours, there))
    assert (card.data.base_model, card.data.license) == ("acme/base", "mit")


def test_a_folder_that_is_used_again_tells_of_its_last_run(tmp_path: Path, ours: str) -> None:
    run = tmp_path / "run"
    facts = read_facts(run)
    facts["student"]["base_model"] = "acme/other"
    write_card(run, facts, title="run")
    assert ModelCard.load(run / "README.md").data.base_model == "acme/other"
