"""Checkpoints that another Trainer wrote, or another tool changed: used, or refused in words."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_runs import TASK, same, trainer_for, weights
from runs import arguments
from safetensors.torch import load_file, save_file
from tiny import dataset_for, model_for
from transformers import Trainer

from hf_distill import DistillationTrainer
from hf_distill.checkpoints import last_complete_checkpoint

# ---- of a plain Trainer --------------------------------------------------------------------------


def plain(trainer_class: Callable[..., Trainer], folder: Path, **options: Any) -> Trainer:
    steps = {"save_strategy": "steps", "save_steps": 1, "distillation_loss_weight": 0.0}
    return trainer_class(
        model=model_for(TASK, seed=0, hidden_dropout_prob=0.1),
        args=arguments(folder, **{**steps, **options}),
        train_dataset=dataset_for(TASK),
    )


@pytest.mark.parametrize("newest_is_half", [False, True])
def test_without_a_teacher_the_last_checkpoint_of_a_plain_trainer_will_do(
    newest_is_half: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain(Trainer, tmp_path).train()
    expected = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    if newest_is_half:
        (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    else:
        shutil.rmtree(tmp_path / "checkpoint-3")
    trainer = plain(DistillationTrainer, tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.log_history[0]["step"] == 1 and trainer.state.global_step == 3
    assert "checkpoint-2 was saved by a plain Trainer" in caplog.text
    assert all(torch.equal(v, expected[k]) for k, v in trainer.model.state_dict().items())
    with pytest.raises(ValueError, match="Can't find a valid checkpoint at"):  # Trainer's
        plain(DistillationTrainer, tmp_path).train(resume_from_checkpoint=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no complete checkpoint in output_dir"):
        plain(DistillationTrainer, tmp_path / "other").train(resume_from_checkpoint=True)


def test_with_a_teacher_it_is_refused_with_what_can_be_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain(Trainer, tmp_path, max_steps=2).train()
    told = "by a plain Trainer, whose checkpoints .* load it as the student of a new run"
    with pytest.raises(ValueError, match=told):
        trainer_for(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer_for(tmp_path).train(resume_from_checkpoint=True)
    assert "load it as the student of a new run" in caplog.text


def test_what_a_killed_run_left_is_not_taken_for_a_plain_trainers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The process is gone: no handler runs."""

    def killed(trainer: Trainer, output_dir: str) -> None:
        raise Killed

    plain(DistillationTrainer, tmp_path).train()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", killed)
        with pytest.raises(Killed):
            plain(DistillationTrainer, tmp_path).train(
                resume_from_checkpoint=str(tmp_path / "checkpoint-1")
            )
    # The state of the first run is in checkpoint-2 still, beside weights of the second.
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").exists()
    shutil.rmtree(tmp_path / "checkpoint-3")
    found = last_complete_checkpoint(tmp_path, of_plain_trainer=True)
    assert found == str(tmp_path / "checkpoint-1")


# ---- weights in other files ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("finished")
    trainer = trainer_for(folder)
    trainer.train()
    return folder, weights(trainer)


def divide(folder: Path, parts: int) -> list[Path]:
    """Write the weights of a checkpoint into several files, as ``save_pretrained`` does."""
    single = folder / "model.safetensors"
    found = [single] if single.exists() else sorted(folder.glob("model-*.safetensors"))
    whole = {name: value for path in found for name, value in load_file(path).items()}
    for path in found:
        path.unlink()
    names, files, index = sorted(whole), [], {}
    for i in range(parts):
        files.append(folder / f"model-{i + 1:05}-of-{parts:05}.safetensors")
        save_file({n: whole[n] for n in names[i::parts]}, files[-1], metadata={"format": "pt"})
        index.update(dict.fromkeys(names[i::parts], files[-1].name))
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return files


@pytest.mark.parametrize("again", [False, True])
def test_a_checkpoint_may_be_divided_after_it_was_saved(
    again: bool, finished: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    divide(checkpoint, 2)
    if again:
        divide(checkpoint, 3)
    trainer = trainer_for(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert same(weights(trainer), finished[1])
    assert f"The weights in {checkpoint} were divided into other files" in caplog.text


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda shard: shard.unlink(), "model-00002-of-00002.safetensors, which .* cannot be read"),
        (
            lambda shard: shard.write_bytes(shard.read_bytes()[:-1]),
            "model-00002-of-00002.safetensors, which .* cannot be read",
        ),
        (
            lambda shard: save_file({"x": torch.zeros(1)}, shard),
            "model-00002-of-00002.safetensors lacks bert",
        ),
        (
            lambda shard: (shard.parent / "model.safetensors.index.json").write_text("{"),
            "model.safetensors.index.json cannot be read",
        ),
        (
            lambda shard: (shard.parent / "model.safetensors.index.json").unlink(),
            "model.safetensors is missing",
        ),
    ],
)
def test_divided_weights_must_be_whole(
    damage: Callable[[Path], Any], told: str, finished: Any, tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-3"
    damage(divide(checkpoint, 2)[1])
    with pytest.raises(ValueError, match=told):
        trainer_for(tmp_path / "run").train(resume_from_checkpoint=str(checkpoint))
