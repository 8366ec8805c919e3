"""Recorders, weights, checkpoints and evaluations around the losses between layers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import arguments, distil, logged
from safetensors.torch import load_file
from tiny import bert_config, dataset_for, model_for
from torch import nn
from transformers import (
    BertForQuestionAnswering,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from hf_distill import DistillationTrainer, TeacherRecorderCallback, cache_teacher_outputs
from hf_distill.layers.projections import PROJECTIONS_FILE
from hf_distill.layers.samples import SampleFolder

TASK = "question-answering"
FIRST_STAGE: dict[str, Any] = {"stage": "intermediate", "attention_loss": "scores"}


def trainer_for(path: Path, *, student: Any = None, **options: Any) -> DistillationTrainer:
    extra = options.pop("trainer", {})
    return DistillationTrainer(
        model=model_for(TASK, seed=0, layers=1, width=8) if student is None else student,
        teacher_model=model_for(TASK, seed=1), args=arguments(path, **options),
        **{"train_dataset": dataset_for(TASK), **extra},
    )  # fmt: skip


def steps(folder: Path) -> list[int]:
    return [sample.step for sample in SampleFolder(folder, max_bytes=2**30)]


# ---- recorders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, FIRST_STAGE, {"hidden_states_loss_weight": 1.0}], ids=str)
def test_every_recorder_writes_whenever_it_was_added(
    options: dict[str, Any], tmp_path: Path
) -> None:
    given, added = (
        TeacherRecorderCallback(tmp_path / name, every_steps=every)
        for name, every in (("given", 2), ("added", 1))
    )
    trainer = trainer_for(tmp_path, **options, trainer={"callbacks": [given]})
    trainer.add_callback(added)
    trainer.train()
    assert (steps(tmp_path / "given"), steps(tmp_path / "added")) == ([0, 2], [0, 1, 2])
    alone = trainer_for(tmp_path, **options)
    alone.add_callback(TeacherRecorderCallback(tmp_path / "alone", every_steps=2))
    alone.train()
    for one, other in zip(
        *(SampleFolder(tmp_path / name, max_bytes=2**30) for name in ("alone", "given")),
        strict=True,
    ):
        assert torch.equal(one.attention("student", 1), other.attention("student", 1))


def test_a_recorder_of_two_stages(tmp_path: Path) -> None:
    recorder = TeacherRecorderCallback(tmp_path / "samples", every_steps=2)
    for options in (FIRST_STAGE, {}):
        shutil.rmtree(tmp_path / "samples", ignore_errors=True)
        trainer_for(tmp_path, max_steps=1, **options, trainer={"callbacks": [recorder]}).train()
        assert steps(tmp_path / "samples") == [0]


# ---- weights that change -------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end"])
@pytest.mark.parametrize("name", ["hidden_states", "attention"])
def test_a_weight_that_goes_to_0_and_back(name: str, event: str, tmp_path: Path) -> None:
    class Pause(TrainerCallback):
        pass

    def change(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        setattr(args, f"{name}_loss_weight", 0.0 if state.global_step == 2 else 1.0)

    setattr(Pause, event, change)
    common: dict[str, Any] = {"hidden_states_loss_weight": 1.0, "attention_loss_weight": 1.0,
                              "max_steps": 4, "learning_rate": 0.0, "save_strategy": "steps",
                              "save_steps": 1, "train_sampling_strategy": "sequential"}  # fmt: skip
    paused, _ = distil(
        TASK, tmp_path / "paused", **common, trainer_options={"callbacks": [Pause()]}
    )
    plain, _ = distil(TASK, tmp_path / "plain", **common)
    values = logged(plain, f"loss_{name}")
    assert logged(paused, f"loss_{name}") == pytest.approx([*values[:2], values[3]])
    losses = logged(plain, "loss")
    losses[2] -= values[2]
    assert logged(paused, "loss") == pytest.approx(losses, rel=1e-4)


def test_a_stage_with_nothing_left_to_learn(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, *other: Any, **kwargs: Any) -> None:
            args.hidden_states_loss_weight = 0.0

    trainer = trainer_for(tmp_path, stage="intermediate", trainer={"callbacks": [Stop()]})
    with pytest.raises(ValueError, match="nothing to learn with hidden_states_loss_weight=0"):
        trainer.train()


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", [{1: 2}, (2,), [2], "2"], ids=str)
def test_a_mapping_of_python_values_resumes(mapping: Any, tmp_path: Path) -> None:
    options = {**FIRST_STAGE, "save_strategy": "steps", "save_steps": 1, "layer_mapping": mapping}
    trainer_for(tmp_path, max_steps=1, **options).train()
    again = trainer_for(tmp_path, max_steps=2, **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2


class PlainForQuestionAnswering(nn.Module):
    """A student that is not a ``PreTrainedModel``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = BertForQuestionAnswering(bert_config(1, width=8))
        self.config = self.inner.config

    def forward(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None,
        start_positions: Any = None, end_positions: Any = None, output_hidden_states: bool = False,
    ) -> Any:  # fmt: skip
        return self.inner(
            input_ids, attention_mask, token_type_ids, start_positions=start_positions,
            end_positions=end_positions, output_hidden_states=output_hidden_states,
        )  # fmt: skip


def lora() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="QUESTION_ANS", r=2, target_modules=["query"], bias="all")
    adapted: nn.Module = peft.get_peft_model(model_for(TASK, seed=0, layers=1, width=8), config)
    return adapted


@pytest.mark.parametrize("make", [PlainForQuestionAnswering, lora])
def test_weights_on_disk_have_no_projections(make: Any, tmp_path: Path) -> None:
    folders = []
    for save_only_model in (False, True):
        folder = tmp_path / str(save_only_model)
        trainer_for(folder, student=make(), save_strategy="steps", save_steps=2, max_steps=2,
                    save_only_model=save_only_model, **FIRST_STAGE).train()  # fmt: skip
        folders.append(folder / "checkpoint-2")
    for folder in folders:
        (file,) = (path for path in folder.glob("*model.safetensors"))
        assert not any("projection" in name for name in load_file(file))
    # The same steps, so the same projections, without optimizer, too
    one, other = (load_file(folder / PROJECTIONS_FILE) for folder in folders)
    assert len(one) == 4 and all(torch.equal(value, other[name]) for name, value in one.items())
    again = trainer_for(tmp_path / "False", student=make(), max_steps=3, **FIRST_STAGE)
    again.train(resume_from_checkpoint=str(folders[0]))
    assert again.state.global_step == 3


def test_a_checkpoint_of_the_model_alone_is_gone_on_from(tmp_path: Path) -> None:
    """As ``Trainer`` does: with a new optimizer, and here with the projections of before."""
    options = {**FIRST_STAGE, "save_strategy": "steps", "save_steps": 2, "save_only_model": True,
               "learning_rate": 0.1}  # fmt: skip
    trainer_for(tmp_path, max_steps=2, **options).train()
    again = trainer_for(tmp_path, max_steps=4, **{**options, "learning_rate": 0.0})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    one, other = (load_file(tmp_path / f"checkpoint-{i}" / PROJECTIONS_FILE) for i in (2, 4))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# ---- evaluations ---------------------------------------------------------------------------------


def test_cached_training_data_and_labelled_evaluation_data_without_columns(tmp_path: Path) -> None:
    """Metrics are what they are under ``Trainer``; of a loss there is none."""
    data = dataset_for(TASK)
    seen: list[Any] = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"seen": float(sum(prediction.label_ids[0]))}

    stored = cache_teacher_outputs(
        model_for(TASK, seed=1), data, output_dir=tmp_path / "cache", hidden_layers=[0, 2],
        data_collator=default_data_collator, use_cpu=True,
    )  # fmt: skip
    common: dict[str, Any] = {"eval_dataset": data, "compute_metrics": compute_metrics,
                              "data_collator": default_data_collator}  # fmt: skip
    trainer = DistillationTrainer(
        model=model_for(TASK, seed=0, layers=1), train_dataset=stored, **common,
        args=arguments(tmp_path, stage="intermediate", eval_strategy="steps", eval_steps=3),
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "eval_seen") and not logged(trainer, "eval_loss")
    plain = Trainer(trainer.model, arguments(tmp_path), **common)
    assert plain.evaluate()["eval_seen"] == logged(trainer, "eval_seen")[0]
    for one, other in zip(*(prediction.predictions for prediction in seen), strict=True):
        assert torch.equal(torch.tensor(one), torch.tensor(other))


def test_outputs_that_the_configuration_asks_for_reach_compute_metrics(tmp_path: Path) -> None:
    data = dataset_for(TASK)
    shapes: list[Any] = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        shapes.append([getattr(part, "shape", None) or [x.shape for x in part]
                       for part in prediction.predictions])  # fmt: skip
        return {}

    student = model_for(TASK, seed=0, layers=1, output_hidden_states=True)
    options: dict[str, Any] = {"eval_dataset": data, "compute_metrics": compute_metrics}
    trainer_for(
        tmp_path, student=student, hidden_states_loss_weight=1.0, trainer=options
    ).evaluate()
    Trainer(student, arguments(tmp_path), **options).evaluate()
    assert shapes[0] == shapes[1] and len(shapes[0]) == 3


def test_evaluating_first_chooses_layers_on_the_training_data(tmp_path: Path) -> None:
    other = dataset_for(TASK, seed=9)

    def trainer() -> DistillationTrainer:
        return trainer_for(tmp_path, stage="intermediate", layer_mapping="auto", max_steps=1,
                           trainer={"eval_dataset": other})  # fmt: skip

    trained, evaluated = trainer(), trainer()
    trained.train()
    evaluated.evaluate()
    assert torch.equal(trained.layer_similarity, evaluated.layer_similarity)
    evaluated.train()
    assert torch.equal(trained.layer_similarity, evaluated.layer_similarity)
