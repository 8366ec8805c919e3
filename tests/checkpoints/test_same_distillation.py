"""A run goes on as what it was: another teacher, loss or stage is refused, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_runs import TASK, same, teacher, trainer_for, weights
from runs import arguments
from tiny import dataset_for, model_for
from transformers import Trainer, default_data_collator

from hf_distill import DistillationTrainer, cache_teacher_outputs
from hf_distill.losses import get_logits_loss


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    trainer_for(folder, max_steps=2).train()
    return folder


def my_loss(*args: Any, **kwargs: Any) -> Any:
    return get_logits_loss("kl_div")(*args, **kwargs)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 3.0}, "temperature was 2.0 and is now 3.0"),
    "weight": (
        {"distillation_loss_weight": 0.75},
        "distillation_loss_weight was 0.5 and is now 0.75",
    ),
    "schedule": (
        {"temperature_schedule": "linear", "temperature_end": 1.0},
        "temperature_end was not used and is now 1.0",
    ),
    "loss": ({"distillation_loss": "mse"}, 'distillation_loss was "kl_div" and is'),
    "function": ({"custom_loss": my_loss}, "test_same_distillation.my_loss"),
    "stage": (
        {"stage": "intermediate"},
        'stage was "prediction" and is now "intermediate"',
    ),
    "layer weight": ({"hidden_states_loss_weight": 0.5}, "hidden_states_loss_weight was 1.0"),
    "another layer loss": (
        {"attention_loss_weight": 1.0},
        "attention_loss_weight was 0.0 and is now 1.0",
    ),
    "mapping": ({"layer_mapping": "last"}, 'layer_mapping was "uniform"'),
    "no teacher": (
        {"distillation_loss_weight": 0.0, "hidden_states_loss_weight": 0.0},
        "teacher_model was 1 and is now 0",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_distillation_is_refused(change: str, begun: Path) -> None:
    options, told = CHANGES[change]
    before = sorted(str(p) for p in begun.rglob("*"))
    with pytest.raises(ValueError, match="is of another distillation") as error:
        trainer_for(begun, max_steps=3, **options).train(resume_from_checkpoint=True)
    assert told in str(error.value)
    assert sorted(str(p) for p in begun.rglob("*")) == before


def test_another_teacher_is_refused(begun: Path) -> None:
    other = teacher(change=1e-6)
    with pytest.raises(ValueError, match=r"teacher_model was 'Bert.*\(weights .* now"):
        trainer_for(begun, max_steps=3, teacher_model=other).train(resume_from_checkpoint=True)


def test_a_teacher_that_has_moved_is_the_same(begun: Path, tmp_path: Path) -> None:
    unbroken = trainer_for(tmp_path / "unbroken")
    unbroken.train()
    teacher().save_pretrained(tmp_path / "elsewhere")
    trainer = trainer_for(
        begun, max_steps=3, teacher_model=str(tmp_path / "elsewhere"), save_strategy="no"
    )
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert trainer.distiller.teacher.identities[0].name == "elsewhere"


def test_a_teacher_that_is_gone_is_named_and_nothing_is_lost(begun: Path, tmp_path: Path) -> None:
    before = sorted(str(p) for p in begun.rglob("*"))
    with pytest.raises(ValueError, match="gone'? cannot be loaded"):
        trainer_for(begun, teacher_model=str(tmp_path / "gone"))
    assert sorted(str(p) for p in begun.rglob("*")) == before


def test_a_value_that_a_callback_changes_is_no_other_distillation(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Warmer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.temperature = 2.0 + state.global_step

    unbroken = trainer_for(tmp_path / "unbroken", callbacks=[Warmer()])
    unbroken.train()
    trainer_for(tmp_path / "run", max_steps=3, save_steps=2, callbacks=[Warmer()]).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    resumed = trainer_for(tmp_path / "run", callbacks=[Warmer()])
    resumed.train(resume_from_checkpoint=checkpoint)
    assert same(weights(resumed), weights(unbroken))


def plain(trainer_class: Callable[..., Trainer], folder: Path, **options: Any) -> Trainer:
    steps = {"save_strategy": "steps", "save_steps": 1, "distillation_loss_weight": 0.0}
    return trainer_class(
        model=model_for(TASK, seed=0),
        args=arguments(folder, **{**steps, **options}),
        train_dataset=dataset_for(TASK),
    )


def test_without_a_teacher_the_checkpoint_of_a_plain_trainer_will_do(tmp_path: Path) -> None:
    plain(Trainer, tmp_path, max_steps=2).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    trainer = plain(DistillationTrainer, tmp_path)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 3
    with pytest.raises(ValueError, match="it has no distillation_checkpoint.json"):
        trainer_for(tmp_path).train(resume_from_checkpoint=checkpoint)


def test_cached_and_live_outputs_are_of_one_teacher(begun: Path, tmp_path: Path) -> None:
    options = {"hidden_states_loss_weight": 0.0, "save_steps": 2, "max_steps": 2}
    trainer_for(tmp_path / "run", **options).train()
    data = cache_teacher_outputs(
        teacher(), dataset_for(TASK), output_dir=tmp_path / "cache", use_cpu=True,
        data_collator=default_data_collator,
    )  # fmt: skip

    def cached(**changes: Any) -> DistillationTrainer:
        return DistillationTrainer(
            model=model_for(TASK, seed=0, layers=2, width=8, hidden_dropout_prob=0.1),
            args=arguments(tmp_path / "run", **changes),
            train_dataset=data,
        )

    trainer = cached()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    with pytest.raises(ValueError, match="temperature was 2.0 and is now 4.0"):
        cached(temperature=4.0).train(resume_from_checkpoint=True)


def test_the_record_has_no_path(begun: Path) -> None:
    text = (begun / "checkpoint-2" / "distillation_checkpoint.json").read_text()
    assert str(begun) not in text
    settings = json.loads(text)["settings"]
    assert settings["teachers"][0]["name"] == "BertForQuestionAnswering"
    assert settings["layer_pairs"] == [[0, 0], [1, 2], [2, 4]]


@pytest.mark.parametrize(
    ("saved_at", "repeats", "accumulation", "is_refused"),
    [
        (1, False, 1, False),
        (2, False, 1, False),  # the end of the first pass
        (3, False, 1, True),
        (3, True, 1, False),
        (2, False, 3, True),  # its last micro-batch was in that step
        (2, True, 3, False),
    ],
)
def test_data_without_a_length(
    saved_at: int, repeats: bool, accumulation: int, is_refused: bool, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "train_dataset": dataset_for(TASK, 8).to_iterable_dataset(),
        "max_steps": 4,
        "per_device_train_batch_size": 4 if accumulation == 1 else 2,
        "gradient_accumulation_steps": accumulation,
    }
    if repeats:
        options["train_dataset"] = options["train_dataset"].repeat(None)
    whole = trainer_for(tmp_path, **options)
    whole.train()
    again = trainer_for(tmp_path, **options)
    folder = str(tmp_path / f"checkpoint-{saved_at}")
    if is_refused:
        with pytest.raises(ValueError, match=r"in pass 2 over .*repeat\(None\).*ignore_data_skip"):
            again.train(resume_from_checkpoint=folder)
        again = trainer_for(tmp_path, ignore_data_skip=True, **options)
        again.train(resume_from_checkpoint=folder)
        assert again.state.global_step == 4
    else:
        again.train(resume_from_checkpoint=folder)
        assert same(weights(again), weights(whole))
