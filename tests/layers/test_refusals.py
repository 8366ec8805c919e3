"""What cannot be compared is refused before anything is trained, with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import arguments, distil, logged
from tiny import dataset_for, model_for
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    TrainerCallback,
    default_data_collator,
)
from zoo import zoo_dataset, zoo_model

from hf_distill import DistillationTrainer, TeacherRecorderCallback

TASK = "question-answering"


def trainer(path: Path, student: nn.Module, teacher: nn.Module, **options: Any) -> Any:
    return DistillationTrainer(
        model=student, teacher_model=teacher, train_dataset=dataset_for(TASK),
        args=arguments(path, **{"stage": "intermediate", "attention_loss": "scores", **options}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "both"}, "stage must be one of prediction, intermediate, but it is 'both'"),
        ({"attention_loss": "maps"}, "attention_loss must be one of scores, .* 'maps'"),
        ({"hidden_states_loss": "l1"}, "hidden_states_loss must be one of mse, cosine"),
        ({"hidden_states_loss_weight": -1.0}, "hidden_states_loss_weight must be 0 or more.*-1.0"),
        ({"attention_loss_weight": float("nan")}, "attention_loss_weight must be 0 or more.*nan"),
        ({"relation_heads": 0}, "relation_heads must be at least 1, but it is 0"),
        (
            {
                "stage": "intermediate",
                "hidden_states_loss_weight": 0.0,
                "attention_loss_weight": 0.0,
            },
            "nothing to learn with hidden_states_loss_weight=0",
        ),
    ],
)
def test_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_mapping": "2,4"}, "names 2 teacher layers, but the student has 1"),
        ({"layer_mapping": "1:9"}, "layer_mapping='1:9'"),
        ({"layer_mapping": "middle"}, "layer_mapping='middle'"),
        ({"layer_mapping": "0:0"}, "layer_mapping='0:0' has the embedding output alone"),
        (
            {"attention_loss": "relations", "relation_heads": 5},
            "relation_heads=5 does not divide the teacher's width 16",
        ),
    ],
)
def test_options_that_do_not_fit_the_pair(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, model_for(TASK, seed=0, layers=1), model_for(TASK, seed=1), **options)


def test_other_numbers_of_heads_need_relations(tmp_path: Path) -> None:
    student = model_for(TASK, seed=0, layers=1, num_attention_heads=4)
    for attention_loss in ("scores", "probabilities", "probabilities_mse"):
        with pytest.raises(ValueError, match=r"2 heads and the student 4; use .*'relations'"):
            trainer(tmp_path, student, model_for(TASK, seed=1), attention_loss=attention_loss)
    run = trainer(tmp_path, student, model_for(TASK, seed=1), attention_loss="relations")
    run.train()
    assert logged(run, "loss_attention")[-1] > 0
    run = trainer(tmp_path, student, model_for(TASK, seed=1), attention_loss=None)
    run.train()
    assert logged(run, "loss_hidden_states")[-1] > 0 and not logged(run, "loss_attention")


def test_a_student_deeper_than_its_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least as many layers"):
        trainer(tmp_path, model_for(TASK, seed=0, layers=3), model_for(TASK, seed=1))


def test_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage='intermediate' .*needs a teacher"):
        trainer(tmp_path, model_for(TASK, seed=0), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "architecture", "options", "message"),
    [
        (
            "question-answering",
            "deberta-v2",
            {"attention_loss": "scores"},
            "use attention_loss='probabilities'",
        ),
        ("question-answering", "mpnet", {"attention_loss": "relations"}, "'probabilities'"),
    ],
)
def test_families_that_cannot(
    task: str, architecture: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        distil(task, tmp_path, student=zoo_model(task, architecture, seed=0),
               teacher=zoo_model(task, architecture, seed=1, layers=2),
               train_dataset=zoo_dataset(task), stage="intermediate", **options)  # fmt: skip


@pytest.mark.parametrize("attention", [0.0, 1.0])
def test_a_family_without_attention(attention: float, tmp_path: Path) -> None:
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "image_size": 8}
    models = [
        ConvNextForImageClassification(ConvNextConfig(**sizes, patch_size=2)) for _ in range(2)
    ]
    with pytest.raises(ValueError, match="no stack of equal layers"):
        distil("image-classification", tmp_path, student=models[0], teacher=models[1],
               train_dataset=zoo_dataset("image-classification"), stage="intermediate",
               attention_loss_weight=attention)  # fmt: skip


def test_full_maps_with_dropout_are_refused_as_probabilities(tmp_path: Path) -> None:
    def student() -> Any:
        return zoo_model(TASK, "deberta-v2", seed=0, attention_probs_dropout_prob=0.1)

    teacher = zoo_model(TASK, "deberta-v2", seed=1, layers=2)
    options: dict[str, Any] = {
        "teacher": teacher,
        "train_dataset": zoo_dataset(TASK),
        "stage": "intermediate",
        "trainer_options": {"data_collator": default_data_collator},
    }
    with pytest.raises(ValueError, match=r"only after dropout \(0.1\)"):
        distil(TASK, tmp_path, student=student(), attention_loss="probabilities", **options)
    run, _ = distil(
        TASK, tmp_path, student=student(), attention_loss="probabilities_mse", **options
    )
    assert logged(run, "loss_attention")[-1] > 0


def test_a_model_that_gives_no_hidden_states(tmp_path: Path) -> None:
    """Promise 6: never a silent zero."""

    class Forgetful(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.wrapped, self.config = model, model.config

        def forward(self, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
            return self.wrapped(input_ids, attention_mask)

    with pytest.raises(ValueError, match="The teacher returned no hidden_states"):
        trainer(
            tmp_path, model_for(TASK, seed=0, layers=1), Forgetful(model_for(TASK, seed=1)),
            attention_loss_weight=0.0,
        ).train()  # fmt: skip


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_that_does_not_reach_the_taps(
    implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: under SDPA transformers then gives an empty tuple of maps."""
    monkeypatch.setattr("hf_distill.layers.recording._implementations", lambda model: set())
    student, teacher = model_for(TASK, seed=0, layers=1), model_for(TASK, seed=1)
    for model in (student, teacher):
        model.set_attn_implementation(implementation)
    with pytest.raises(ValueError, match="The teacher returned no attentions"):
        trainer(tmp_path, student, teacher).train()


def test_reentrant_checkpointing(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, model_for(TASK, seed=0, layers=1), model_for(TASK, seed=1),
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True},
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        run.train()


def test_a_teacher_with_nan_in_its_layers_is_named(tmp_path: Path) -> None:
    teacher = model_for(TASK, seed=1)
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.bias[3] = torch.nan  # type: ignore[union-attr,index]
    with pytest.raises(ValueError, match=r"NaN or \+inf in a batch of training step 1, rows \[0"):
        trainer(tmp_path, model_for(TASK, seed=0, layers=1), teacher).train()


@pytest.mark.parametrize("raised", ["hidden_states", "attention"])
@pytest.mark.parametrize("other", [0.0, 1.0])
def test_weights_that_are_raised_later(raised: str, other: float, tmp_path: Path) -> None:
    """Never a silent zero: what was 0 at the beginning is not recorded."""

    class Raise(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            setattr(args, f"{raised}_loss_weight", 0.5)

    second = {"hidden_states": "attention", "attention": "hidden_states"}[raised]
    with pytest.raises(ValueError, match=f"{raised}_loss_weight was 0 when this trainer was made"):
        distil(TASK, tmp_path, **{f"{second}_loss_weight": other, f"{raised}_loss_weight": 0.0},
               trainer_options={"callbacks": [Raise()]}, record_gradients=False)  # fmt: skip


def test_a_recorder_without_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TeacherRecorderCallback has no teacher"):
        distil(TASK, tmp_path, teacher=None, distillation_loss_weight=0.0,
               trainer_options={"callbacks": [TeacherRecorderCallback()]},
               record_gradients=False)  # fmt: skip
