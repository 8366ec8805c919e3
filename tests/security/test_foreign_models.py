"""Models of others: nothing in a folder or a checkpoint is unpickled or run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from payloads import code, plant
from runs import arguments
from tiny import dataset_for, model_for
from transformers import AutoModelForQuestionAnswering

from hf_distill import DistillationTrainer
from hf_distill.augmentation.masked_lm import MaskedLanguageModel
from hf_distill.tasks.question_answering import QuestionAnswerer

TASK = "question-answering"


def test_the_payload_works(tmp_path: Path) -> None:
    """Else nothing here would prove anything."""
    for as_torch in (True, False):
        marker, path = tmp_path / f"{as_torch}", tmp_path / "file.bin"
        plant(path, marker, as_torch=as_torch)
        if as_torch:
            torch.load(path, weights_only=False)
        else:
            pickle.loads(path.read_bytes())
        assert marker.exists()


def pickled(folder: Path, marker: Path) -> None:
    """Replace the weights by a pickle."""
    (folder / "model.safetensors").unlink()
    plant(folder / "pytorch_model.bin", marker)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_pickled_weights_are_refused(
    role: str, marker: Path, train: Any, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(role)
    pickled(folder, marker)
    status, said = train()
    assert status == 2
    assert f"{folder} has no model.safetensors" in said
    assert "use_safetensors=False" in said and "Traceback" not in said


def test_pickled_weights_are_refused_in_python(marker: Path, teacher: Path, tmp_path: Path) -> None:
    pickled(teacher, marker)
    with pytest.raises(ValueError, match="teacher_model=.*has no model.safetensors"):
        DistillationTrainer(
            model_for(TASK, seed=0), arguments(tmp_path / "out"), teacher_model=str(teacher)
        )
    for load in (QuestionAnswerer.from_pretrained, MaskedLanguageModel.from_pretrained):
        with pytest.raises(ValueError, match=r"has no model\.safetensors"):
            load(str(teacher))


def test_a_pickle_without_a_payload_is_refused_and_the_message_helps(
    teacher: Path, tmp_path: Path
) -> None:
    weights = model_for(TASK, seed=1, layers=1).state_dict()
    (teacher / "model.safetensors").unlink()
    torch.save(weights, teacher / "pytorch_model.bin")
    with pytest.raises(ValueError, match="convert them once"):
        QuestionAnswerer.from_pretrained(str(teacher))
    model = AutoModelForQuestionAnswering.from_pretrained(teacher, use_safetensors=False)
    model.save_pretrained(tmp_path / "converted")
    assert (tmp_path / "converted" / "model.safetensors").is_file()


def test_pickles_beside_safetensors_are_left_alone(
    marker: Path, teacher: Path, student: Path, train: Any
) -> None:
    for folder in (teacher, student):
        plant(folder / "pytorch_model.bin", marker)
        plant(folder / "training_args.bin", marker)
        plant(folder / "optimizer.pt", marker, as_torch=False)
    status, said = train()
    assert status == 0, said


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_code_of_a_model_is_never_run(
    role: str, marker: Path, train: Any, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(role)
    config = json.loads((folder / "config.json").read_text())
    classes = ("AutoConfig", "AutoModelForQuestionAnswering", "AutoModel")
    config |= {"model_type": "bespoke", "auto_map": {c: "modeling_x.Model" for c in classes}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_x.py").write_text(code(marker))
    status, said = train()
    assert status == 2
    assert "code of its own, which is never run" in said
    assert "Traceback" not in said


def test_code_of_a_tokenizer_is_never_run(marker: Path, student: Path, train: Any) -> None:
    path = student / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_x.T", "tokenization_x.T"]}
    config["tokenizer_class"] = "BespokeTokenizer"
    path.write_text(json.dumps(config))
    (student / "tokenization_x.py").write_text(code(marker))
    train()  # refused, or the tokenizer's own class does


def test_code_beside_a_known_model_is_left_alone(marker: Path, teacher: Path, train: Any) -> None:
    config = json.loads((teacher / "config.json").read_text())
    config["auto_map"] = {"AutoModelForQuestionAnswering": "modeling_x.Model"}
    (teacher / "config.json").write_text(json.dumps(config))
    (teacher / "modeling_x.py").write_text(code(marker))
    status, said = train()
    assert status == 0, said


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]
)
def test_a_checkpoint_with_a_payload(name: str, marker: Path, tmp_path: Path) -> None:
    def trainer(steps: int) -> DistillationTrainer:
        return DistillationTrainer(
            model_for(TASK, seed=0, layers=1),
            arguments(tmp_path / "run", max_steps=steps, save_strategy="steps", save_steps=2),
            train_dataset=dataset_for(TASK),
            teacher_model=model_for(TASK, seed=1),
        )

    trainer(2).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    whole = tmp_path / "whole"
    shutil.copytree(checkpoint, whole)
    plant(checkpoint / name, marker)
    for record in checkpoint.glob("distillation_checkpoint.json"):
        # As one who knows what a checkpoint is checked for would have done it.
        size = (whole / name).stat().st_size
        text = record.read_text().replace(str(size), str((checkpoint / name).stat().st_size))
        record.write_text(text)
    with suppress(pickle.UnpicklingError, ValueError, OSError):
        trainer(4).train(resume_from_checkpoint=str(checkpoint))


def test_weights_of_a_checkpoint_are_safetensors(tmp_path: Path, marker: Path) -> None:
    trainer = DistillationTrainer(
        model_for(TASK, seed=0, layers=1),
        arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=2),
        train_dataset=dataset_for(TASK),
        teacher_model=model_for(TASK, seed=1),
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    pickled(checkpoint, marker)
    with suppress(pickle.UnpicklingError, ValueError, OSError):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_who_asks_before_running_code_gets_no_answer_from_us(
    marker: Path, teacher: Path, program: Callable[..., tuple[int, str]], questions: Path
) -> None:
    """Other commands load models, too."""
    config = json.loads((teacher / "config.json").read_text())
    config |= {"model_type": "bespoke", "auto_map": {"AutoConfig": "modeling_x.Config"}}
    (teacher / "config.json").write_text(json.dumps(config))
    (teacher / "modeling_x.py").write_text(code(marker))
    for words in (
        ("evaluate", "--task", TASK, "--model", teacher, "--file", questions),
        ("check", teacher, teacher),
    ):
        status, said = program(*words)
        assert status != 0
        assert "never run" in said, said
