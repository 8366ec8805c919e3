"""A run goes on with the student that it was: other labels or another architecture are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import arguments
from tiny import dataset_for, model_for
from transformers import Trainer

from hf_distill import DistillationTrainer

TASK = "text-classification"
LABELS = {"id2label": {0: "neg", 1: "none", 2: "pos"}, "hidden_act": "gelu"}


def classifier(**options: Any) -> Any:
    student = model_for(TASK, seed=0, **{**LABELS, **options})
    student.config.label2id = {label: i for i, label in student.config.id2label.items()}
    return student


def trainer_for(
    folder: Path, student: Any, *, taught: bool, of: Callable[..., Trainer] = DistillationTrainer
) -> Trainer:
    """Two steps, with a checkpoint after the first."""
    further: dict[str, Any] = {"teacher_model": classifier(layers=3)} if taught else {}
    weight = 0.5 if taught else 0.0
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    args = arguments(folder, **steps, distillation_loss_weight=weight)
    return of(model=student, args=args, train_dataset=dataset_for(TASK), **further)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "order": (
        {"id2label": {0: "pos", 1: "none", 2: "neg"}},
        '- student.id2label.0 was "neg" and is now "pos"',
    ),
    "names": (
        {"id2label": {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}},
        'student.id2label.2 was "pos" and is now "LABEL_2"',
    ),
    "activation": ({"hidden_act": "relu"}, 'student.hidden_act was "gelu" and is now "relu"'),
    "depth": ({"layers": 1}, "student.num_hidden_layers was 2 and is now 1"),
}


@pytest.fixture(scope="module", params=[True, False], ids=["taught", "alone"])
def begun(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    folder = tmp_path_factory.mktemp("begun")
    trainer_for(folder, classifier(), taught=request.param).train()
    return folder, request.param


@pytest.mark.parametrize("change", CHANGES)
def test_another_student_is_refused_with_what_differs(
    change: str, begun: tuple[Path, bool]
) -> None:
    folder, taught = begun
    options, message = CHANGES[change]
    kind = "distillation" if taught else "training"
    with pytest.raises(ValueError, match=f"checkpoint-1' is of another {kind}:") as error:
        trainer_for(folder, classifier(**options), taught=taught).train(
            resume_from_checkpoint=str(folder / "checkpoint-1")
        )
    assert message in str(error.value)


def test_another_student_than_that_of_a_plain_trainer_is_refused(tmp_path: Path) -> None:
    trainer_for(tmp_path, classifier(), taught=False, of=Trainer).train()
    with pytest.raises(ValueError, match=r'hidden_act was "gelu" and is now "relu"'):
        trainer_for(tmp_path, classifier(hidden_act="relu"), taught=False).train(
            resume_from_checkpoint=True
        )


def test_another_class_of_student_is_refused(tmp_path: Path) -> None:
    trainer_for(tmp_path, classifier(), taught=False).train()
    trainer = DistillationTrainer(
        model=model_for("question-answering", seed=0),
        args=arguments(tmp_path, distillation_loss_weight=0.0),
        train_dataset=dataset_for("question-answering"),
    )
    with pytest.raises(ValueError, match=r"student.architectures was .*SequenceClassification"):
        trainer.train(resume_from_checkpoint=True)


def test_what_the_weights_do_not_depend_on_may_differ(begun: tuple[Path, bool]) -> None:
    folder, taught = begun
    student = classifier(hidden_dropout_prob=0.3, use_cache=False, initializer_range=1.0)
    student.config._name_or_path = "moved"
    student.config.problem_type = student.config.architectures = None
    student.config.unknown_before = 3
    trainer = trainer_for(folder, student, taught=taught)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert trainer.state.global_step == 2


def test_adapters_are_resumed_as_before(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        options = {"task_type": "SEQ_CLS", "target_modules": ["query"]}
        return peft.get_peft_model(classifier(), peft.LoraConfig(**options))

    trainer_for(tmp_path, adapted(), taught=True).train()
    assert not (tmp_path / "checkpoint-1" / "config.json").exists()
    trainer = trainer_for(tmp_path, adapted(), taught=True)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 2
