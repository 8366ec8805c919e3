"""A checkpoint is used whole or not at all, and none is deleted before another one is whole."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_runs import TASK, same, trainer_for, weights
from safetensors import SafetensorError
from tiny import dataset_for
from transformers import Trainer, TrainerCallback

from hf_distill.checkpoints import RECORD_FILE, keeper, last_complete_checkpoint

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
         "config.json", "training_args.bin", "distillation_projections.safetensors")  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("finished")
    trainer = trainer_for(folder)
    trainer.train()
    return folder, weights(trainer)


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def assert_whole(checkpoint: Path) -> None:
    record = json.loads((checkpoint / RECORD_FILE).read_text())
    found = {p.name: p.stat().st_size for p in checkpoint.iterdir()}
    assert set(FILES) <= set(found)
    found.pop(RECORD_FILE)
    assert record["files"] == found


def test_every_file_of_a_checkpoint_is_in_its_record(run: Path) -> None:
    assert_whole(run / "checkpoint-3")


@pytest.mark.parametrize("name", [*FILES, RECORD_FILE])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_checkpoint_is_passed_over(
    name: str, damage: str, run: Path, finished: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = run / "checkpoint-3" / name
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    trainer = trainer_for(run)
    trainer.train(resume_from_checkpoint=True)
    assert f"{run / 'checkpoint-3'} is left out" in caplog.text and name in caplog.text
    assert same(weights(trainer), finished[1])
    assert_whole(run / "checkpoint-3")
    if name == "training_args.bin":  # holds the folder's name, whose length differs
        assert path.stat().st_size == pytest.approx(len(content), rel=0.1)
    elif name != RECORD_FILE:
        assert path.stat().st_size == len(content)


def test_a_damaged_checkpoint_is_refused_by_name(run: Path) -> None:
    path = run / "checkpoint-3" / "optimizer.pt"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError) as error:
        trainer_for(run).train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert f"optimizer.pt has {size - 1:,} of {size:,} bytes" in str(error.value)
    assert f"The last complete one is {run / 'checkpoint-2'}" in str(error.value)


def test_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no complete checkpoint in output_dir"):
        trainer_for(tmp_path).train(resume_from_checkpoint=True)


def test_checkpoints_are_compared_as_numbers(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "checkpoint-3", run / "checkpoint-10")
    (run / "checkpoint-nonsense").mkdir()
    assert last_complete_checkpoint(run) == str(run / "checkpoint-10")


class Full:
    """A disk that is full when a file of a checkpoint is written."""

    def __init__(self, step: int, error: Exception) -> None:
        self.step, self.error = step, error

    def __call__(self, trainer: Trainer, output_dir: str) -> None:
        if trainer.state.global_step == self.step:
            Path(output_dir, "optimizer.pt").write_bytes(b"half")
            raise self.error
        self.untouched(trainer, output_dir)

    untouched = staticmethod(Trainer._save_optimizer_and_scheduler)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 266240 vs 266128"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_be_written_is_removed_and_the_rest_is_kept(
    error: Exception, tmp_path: Path, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(tmp_path, save_total_limit=1)
    with monkeypatch.context() as patch:
        full = Full(2, error)
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", lambda *a: full(*a))
        with pytest.raises(OSError, match="could not be saved, and was deleted") as raised:
            trainer.train()
    assert str(tmp_path / "checkpoint-1") in str(raised.value)
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    trainer = trainer_for(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert same(weights(trainer), finished[1])


def test_a_record_does_not_vouch_for_what_is_written_over(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The process is gone: no handler runs."""

    def killed(trainer: Trainer, output_dir: str) -> None:
        raise Killed

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(Killed):
        trainer_for(run).train(resume_from_checkpoint=str(run / "checkpoint-1"))
    with pytest.raises(ValueError, match="checkpoint-2.*not saved to its end"):
        trainer_for(run).train(resume_from_checkpoint=str(run / "checkpoint-2"))


def test_another_error_while_saving_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(1, RuntimeError("CUDA error"))
    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", lambda *a: full(*a))
    with pytest.raises(RuntimeError, match="CUDA error"):
        trainer_for(tmp_path).train()


def test_an_older_checkpoint_is_deleted_only_when_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[str]] = []

    def write_record(folder: Path, settings: Any, **options: Any) -> None:
        found.append(sorted(p.name for p in tmp_path.glob("checkpoint-*")))
        untouched(folder, settings, **options)

    untouched = keeper.write_record
    monkeypatch.setattr(keeper, "write_record", write_record)
    trainer = trainer_for(tmp_path, save_total_limit=1)
    trainer.train()
    numbers = [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert found == numbers
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert trainer.args.save_total_limit == 1


def test_the_best_checkpoint_is_kept_and_brings_its_projections(tmp_path: Path) -> None:
    scores = iter([0.2, 0.9, 0.1])
    trainer = trainer_for(
        tmp_path,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="exact_match",
        greater_is_better=True,
        teacher_check_samples=0,
        eval_dataset=dataset_for(TASK, seed=3),
    )
    trainer.compute_metrics = lambda prediction: {"exact_match": next(scores)}
    after: dict[int, Any] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            after[state.global_step] = {k: v.clone() for k, v in weights(trainer).items()}

    trainer.add_callback(Keep())
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert same(weights(trainer), after[2]) and not same(after[2], after[3])
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
