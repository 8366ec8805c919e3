"""Bad input is refused before training, in words that name the value and the argument."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import arguments, distil
from tiny import bert_config, dataset_for, model_for, tokenizer
from torch import Tensor, nn
from transformers import BertForNextSentencePrediction, BertModel, Trainer

from hf_distill import DistillationTrainer, cache_teacher_outputs
from hf_distill.checks import NanGuard

QA = "question-answering"
CLASSIFICATION = "text-classification"
INTERMEDIATE = {"stage": "intermediate", "attention_loss_weight": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature must be a finite number above 0, but it is 0\.0"),
        ({"temperature": -2.0}, r"temperature must be a finite number above 0, but it is -2\.0"),
        ({"temperature": math.nan}, "temperature must be a finite number above 0, but it is nan"),
        ({"temperature": math.inf}, "temperature must be a finite number above 0, but it is inf"),
        ({"temperature": "hot"}, "temperature must be a finite number above 0, but it is 'hot'"),
        ({"temperature": True}, "temperature must be a finite number above 0, but it is True"),
        (
            {"temperature_schedule": "linear", "temperature_end": 0.0},
            "temperature_end must be a finite number above 0",
        ),
        ({"temperature_schedule": "linear"}, "needs temperature_end"),
        ({"temperature_end": 1.0}, "temperature_end=1.0 has no effect"),
        ({"temperature_schedule": "steps"}, "temperature_schedule must be one of constant, linear"),
        ({"distillation_loss_weight": -0.1}, r"distillation_loss_weight must be between 0.*-0\.1"),
        ({"distillation_loss_weight": 1.5}, r"distillation_loss_weight must be between 0.*1\.5"),
        ({"distillation_loss_weight": math.nan}, "distillation_loss_weight must be between.*nan"),
        ({"distillation_loss_weight_schedule": "cosine"}, "needs distillation_loss_weight_end"),
        (
            {"distillation_loss_weight_schedule": "linear", "distillation_loss_weight_end": 2.0},
            "distillation_loss_weight_end must be between 0",
        ),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number .* but it is nan"),
        ({"learning_rate": -1.0}, r"learning_rate must be .* but it is -1\.0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0, but it is -1"),
        ({"distillation_loss": "kl"}, "distillation_loss must be one of .*kl_div.*'kl'"),
        ({"teacher_dtype": "int8"}, "teacher_dtype must be one of auto, .*'int8'"),
    ],
)
def test_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def trainer(tmp_path: Path, task: str = QA, **options: Any) -> DistillationTrainer:
    """A trainer of tiny models, with what a test gets wrong."""
    args = arguments(tmp_path, **options.pop("args", {}))
    defaults: dict[str, Any] = {
        "model": model_for(task, seed=0, layers=1),
        "train_dataset": dataset_for(task),
        "teacher_model": model_for(task, seed=1),
    }
    return DistillationTrainer(args=args, **{**defaults, **options})


def test_a_missing_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a teacher; pass teacher_model"):
        trainer(tmp_path, teacher_model=None)


@pytest.mark.parametrize("name", ["no/such-model", "missing_directory"])
def test_a_teacher_that_does_not_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"teacher_model='{name}' cannot be loaded"):
        trainer(tmp_path, teacher_model=name)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="teacher_model=.*empty.*cannot be loaded"):
        trainer(tmp_path, teacher_model=tmp_path / "empty")


def test_a_teacher_that_was_never_fine_tuned(tmp_path: Path) -> None:
    BertModel(bert_config()).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="not fine-tuned for question-answering.*qa_outputs"):
        trainer(tmp_path, teacher_model=tmp_path / "encoder")


def test_a_teacher_with_another_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both must have the same task"):
        trainer(tmp_path, teacher_model=model_for(CLASSIFICATION, seed=1))


def test_a_teacher_that_shares_the_students_weights(tmp_path: Path) -> None:
    student = model_for(QA, seed=0, layers=1)
    with pytest.raises(ValueError, match="share .* weights"):
        trainer(tmp_path, model=student, teacher_model=student)
    teacher = copy.deepcopy(student)
    teacher.bert.embeddings = student.bert.embeddings
    with pytest.raises(ValueError, match="bert.embeddings"):
        trainer(tmp_path, model=student, teacher_model=teacher)
    assert all(p.requires_grad for p in student.parameters())  # refused before it was frozen


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, torch.float32), ("auto", torch.float16), ("bfloat16", None)]
)
def test_a_float16_teacher_runs_on_a_cpu(asked: Any, expected: Any, tmp_path: Path) -> None:
    model_for(QA, seed=1).half().save_pretrained(tmp_path / "teacher")
    run = trainer(
        tmp_path,
        teacher_model=tmp_path / "teacher",
        args={"teacher_dtype": asked, "bf16": True, "max_steps": 1},
    )
    assert run.teacher_model.dtype == (expected or torch.bfloat16)
    if asked is None:
        run.train()


def test_a_task_without_distillation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from the class BertForNextSentencePrediction"):
        trainer(tmp_path, model=BertForNextSentencePrediction(bert_config()))


def test_other_numbers_of_labels(tmp_path: Path) -> None:
    teacher = model_for(CLASSIFICATION, seed=1)
    student = type(teacher)(bert_config(num_labels=2))
    with pytest.raises(ValueError, match="teacher has 3 labels and the student 2.*num_labels=3"):
        trainer(tmp_path, CLASSIFICATION, model=student, teacher_model=teacher)


def labels(*names: str) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


@pytest.mark.parametrize(
    ("student", "teacher", "refused"),
    [
        (("no", "maybe", "yes"), ("yes", "maybe", "no"), False),
        (("no", "maybe", "maybe"), ("maybe", "no", "maybe"), True),
        (("no", "maybe", "yes"), ("sad", "neutral", "happy"), True),
        (("No", "Maybe", "Yes"), ("no", "maybe", "yes"), False),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("no", "maybe", "yes"), False),
    ],
)
def test_label_names(student: tuple, teacher: tuple, refused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cls = type(model_for(CLASSIFICATION, seed=1))
    models = {
        "model": cls(bert_config(**labels(*student))),
        "teacher_model": cls(bert_config(**labels(*teacher))),
    }
    if refused:
        with pytest.raises(ValueError, match="The labels differ"):
            trainer(tmp_path, CLASSIFICATION, **models)
    else:
        trainer(tmp_path, CLASSIFICATION, **models)


def test_another_problem_type(tmp_path: Path) -> None:
    teacher = model_for(CLASSIFICATION, seed=1, problem_type="multi_label_classification")
    student = model_for(CLASSIFICATION, seed=0, problem_type="single_label_classification")
    with pytest.raises(ValueError, match="problem_type='multi_label_classification'"):
        trainer(tmp_path, CLASSIFICATION, model=student, teacher_model=teacher)


def test_divergences_of_numbers(tmp_path: Path) -> None:
    models = {
        name: type(model_for(CLASSIFICATION, seed=0))(bert_config(num_labels=1))
        for name in ("model", "teacher_model")
    }
    with pytest.raises(ValueError, match="set distillation_loss='mse'"):
        trainer(tmp_path, CLASSIFICATION, **models)


# ---- data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_an_empty_data_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is empty"):
        trainer(tmp_path, **{name: dataset_for(QA).select([])})


def test_an_empty_one_of_several_evaluation_sets(tmp_path: Path) -> None:
    sets = {"good": dataset_for(QA), "bad": dataset_for(QA).select([])}
    with pytest.raises(ValueError, match=r"eval_dataset\['bad'\] is empty"):
        trainer(tmp_path, eval_dataset=sets)


@pytest.mark.parametrize(
    ("task", "missing"), [(QA, "start_positions and no end_positions"), (CLASSIFICATION, "labels")]
)
def test_no_labels_where_they_count(task: str, missing: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, task, train_dataset=dataset_for(task, labels=False))
    with pytest.raises(ValueError, match=f"no {missing} .*distillation_loss_weight=1"):
        run.train()
    assert run.state.global_step == 0


def test_labels_that_the_collator_drops(tmp_path: Path) -> None:
    """The columns have labels, the batches do not: seen at the first batch."""

    def collate(rows: list[dict]) -> dict[str, Tensor]:
        return {k: torch.tensor([row[k] for row in rows]) for k in rows[0] if "position" not in k}

    run = trainer(tmp_path, data_collator=collate)
    with pytest.raises(ValueError, match="no start_positions and no end_positions"):
        run.train()
    assert run.state.global_step == 0


def test_missing_labels_matter_at_the_end_of_a_schedule_too(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        train_dataset=dataset_for(QA, labels=False),
        args={
            "distillation_loss_weight": 1.0,
            "distillation_loss_weight_end": 0.5,
            "distillation_loss_weight_schedule": "linear",
        },
    )
    with pytest.raises(ValueError, match="no start_positions"):
        run.train()


def test_floating_point_labels_of_single_label_classification(tmp_path: Path) -> None:
    data = dataset_for(CLASSIFICATION, labels=False)
    data = data.add_column("labels", [0.5] * len(data))
    with pytest.raises(ValueError, match="labels are floating-point"):
        trainer(tmp_path, CLASSIFICATION, train_dataset=data).train()


def test_ids_outside_the_teachers_vocabulary(tmp_path: Path) -> None:
    run = trainer(tmp_path, teacher_model=type(model_for(QA, seed=1))(bert_config(vocab_size=50)))
    with pytest.raises(ValueError, match="input id .* teacher's vocabulary has only 50"):
        run.train()


def test_ids_outside_the_students_vocabulary(tmp_path: Path) -> None:
    run = trainer(tmp_path, model=type(model_for(QA, seed=1))(bert_config(vocab_size=50)))
    with pytest.raises(
        ValueError, match="student's vocabulary has only 50 .*tokenizer .* prepared .*resize"
    ):
        run.train()


@pytest.mark.parametrize(
    ("options", "missing", "message"),
    [
        ({"vocab_size": 50}, [], "input id .* teacher's vocabulary has only 50"),
        ({}, ["token_type_ids"], "token_type_ids, which tell question from context"),
    ],
)
def test_the_second_of_several_teachers_and_those_that_are_cached(
    options: dict[str, Any], missing: list[str], message: str, tmp_path: Path
) -> None:
    first, second = model_for(QA, seed=1, type_vocab_size=1), model_for(QA, seed=2, **options)
    data = dataset_for(QA).remove_columns(missing)
    run = trainer(tmp_path, teacher_model=[first, second], train_dataset=data)
    with pytest.raises(ValueError, match=message):
        run.train()
    for teachers in (second, [first, second]):
        with pytest.raises(ValueError, match=message):
            cache_teacher_outputs(teachers, data, output_dir=tmp_path / "cache", use_cpu=True)


def test_missing_token_types(tmp_path: Path) -> None:
    run = trainer(tmp_path, train_dataset=dataset_for(QA).remove_columns("token_type_ids"))
    with pytest.raises(ValueError, match="token_type_ids, which tell question from context"):
        run.train()


# ---- teacher outputs ---------------------------------------------------------------------------


class Broken(nn.Module):
    """A teacher whose start logits go wrong in the third batch."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.model = model_for(QA, seed=1)
        self.config, self.calls, self.value = self.model.config, 0, value

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Any:
        outputs = self.model(input_ids, attention_mask, token_type_ids)
        self.calls += 1
        if self.calls == 3:
            outputs.start_logits[2, 1] = self.value
        return outputs


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_with_nan_logits_names_the_batch(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"NaN or \+inf in a batch of training step 3, rows \[2\]"):
        distil(QA, tmp_path, teacher=Broken(value), max_steps=5)


def test_a_gpu_is_only_asked_about_nan_when_something_is_logged(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, teacher_model=Broken(math.nan), args={"max_steps": 6, "logging_steps": 5}
    )
    run.distiller.guard = NanGuard(at_once=False)
    with pytest.raises(ValueError, match=r"NaN or \+inf in a batch of training step 3\."):
        run.train()
    assert run.state.global_step == 5


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 6),  # at the end, before anything else is done with the student
        ({"save_strategy": "steps", "save_steps": 4}, 4),
        ({"eval_strategy": "steps", "eval_steps": 4}, 4),
        ({"steps_between": 5}, 5),
    ],
)
def test_without_a_log_nan_is_found_before_it_does_harm(
    options: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    guard = NanGuard(at_once=False)
    guard.steps_between = options.pop("steps_between", 100)
    run = trainer(
        tmp_path,
        teacher_model=Broken(math.nan),
        eval_dataset=dataset_for(QA),
        args={"max_steps": 6, "logging_strategy": "no", "teacher_check_samples": 0, **options},
    )
    run.distiller.guard = guard
    with pytest.raises(ValueError, match=r"NaN or \+inf in a batch of training step 3\."):
        run.train()
    assert run.state.global_step == steps
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("options", [{}, {"distillation_loss_weight": 0.0}, INTERMEDIATE])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_training_that_diverges_is_stopped(
    options: dict[str, Any], at_once: bool, tmp_path: Path
) -> None:
    """Trainer logs the mean of the finite losses, and saves weights that are all NaN."""
    args = {"learning_rate": 1e38, "max_steps": 6, "logging_strategy": "no"}
    teacher = {"teacher_model": None} if options.get("distillation_loss_weight") == 0 else {}
    saves = {"save_strategy": "steps", "save_steps": 4}
    run = trainer(tmp_path, args={**args, **saves, **options}, **teacher)
    run.distiller.guard = NanGuard(at_once=at_once)
    with pytest.raises(
        ValueError, match=r"loss of a batch of training step 2 is NaN.*smaller learn"
    ):
        run.train()
    assert run.state.global_step == (1 if at_once else 4)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("options", [{}, INTERMEDIATE])
def test_a_frozen_student(options: dict[str, Any], tmp_path: Path) -> None:
    """In the intermediate stage the projections would learn."""
    student = model_for(QA, seed=0, layers=1).requires_grad_(False)
    with pytest.raises(ValueError, match=r"All weights of the student .* frozen.*is_trainable"):
        trainer(tmp_path, model=student, args=options).train()


@pytest.mark.parametrize("named", [False, True])
def test_labels_to_evaluate_on(named: bool, tmp_path: Path) -> None:
    rows = dataset_for(CLASSIFICATION)
    wrong = rows.map(lambda row: {**row, "labels": 7})
    with pytest.raises(ValueError, match=r"eval_dataset\S* has the label 7, but the student has"):
        trainer(tmp_path, CLASSIFICATION, eval_dataset={"dev": wrong} if named else wrong).train()


def test_the_guard_keeps_one_number_however_many_steps_there_are() -> None:
    guard = NanGuard(at_once=False)
    fine, bad = torch.zeros(2, dtype=torch.bool), torch.tensor([False, True])
    sizes = set()
    for step in range(1, 300):
        guard.check(bad if step in (70, 200) else fine, step)
        sizes.add(len(pickle.dumps(guard)))
    assert len(sizes) == 1
    with pytest.raises(ValueError, match=r"training step 70\."):
        guard.raise_if_bad()
    guard.check(fine, 300)
    guard.raise_if_bad()
    guard.check(bad, 0)
    with pytest.raises(ValueError, match=r"a batch of an evaluation\."):
        guard.raise_if_bad()


def test_minus_infinity_is_a_legitimate_logit(tmp_path: Path) -> None:
    run, _ = distil(QA, tmp_path, teacher=Broken(-math.inf), max_steps=4)
    assert all(math.isfinite(entry.get("loss", 0)) for entry in run.state.log_history)


def test_another_number_of_positions(tmp_path: Path) -> None:
    class Shorter(Broken):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.model(input_ids[:, :-1], attention_mask[:, :-1])

    with pytest.raises(ValueError, match=r"\(4, 2, 24\) and the teacher's \(4, 2, 23\)"):
        distil(QA, tmp_path, teacher=Shorter(0.0))


def test_a_loss_of_ones_own_with_another_shape(tmp_path: Path) -> None:
    def loss(student: Tensor, teacher: Tensor, *, temperature: float, mask: Any) -> Tensor:
        return (student - teacher).square().mean()

    with pytest.raises(ValueError, match=r"one loss per row, shape \(4, 2\), but it returned \(\)"):
        distil(QA, tmp_path, trainer_options={"distillation_loss": loss})


# ---- tokenizers --------------------------------------------------------------------------------


def saved_teacher(path: Path, saved_tokenizer: Any) -> Path:
    model_for(QA, seed=1).save_pretrained(path)
    saved_tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"words": ("paris",)}, "'paris' .*is only in one of them"),
        ({"lowercase": False}, "same vocabulary, but encode the text .* differently"),
    ],
)
def test_another_tokenizer(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    teacher = saved_teacher(tmp_path / "teacher", tokenizer(**other))
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, teacher_model=teacher, processing_class=tokenizer())


def test_other_special_tokens(tmp_path: Path) -> None:
    swapped = tokenizer()
    swapped.pad_token, swapped.mask_token = swapped.mask_token, swapped.pad_token
    teacher = saved_teacher(tmp_path / "teacher", swapped)
    with pytest.raises(ValueError, match="pad_token_id is 4 for the teacher and 0 for the student"):
        trainer(tmp_path, teacher_model=teacher, processing_class=tokenizer())


def test_the_same_tokenizer_is_accepted(tmp_path: Path) -> None:
    teacher = saved_teacher(tmp_path / "teacher", tokenizer())
    trainer(tmp_path, teacher_model=teacher, processing_class=tokenizer())


def test_a_tokenizer_larger_than_a_teacher_passed_as_a_module(tmp_path: Path) -> None:
    teacher = type(model_for(QA, seed=1))(bert_config(vocab_size=50))
    with pytest.raises(ValueError, match="97 tokens and the teacher knows only 50"):
        trainer(tmp_path, teacher_model=teacher, processing_class=tokenizer())


def test_without_a_teacher_nothing_is_checked_that_trainer_does_not_check(tmp_path: Path) -> None:
    """w = 0 is a plain Trainer run for every model, also those without a head here."""
    data = dataset_for(QA, labels=False)
    data = data.add_column("labels", [i % 2 for i in range(len(data))])
    losses = []
    for cls, extra in ((Trainer, {}), (DistillationTrainer, {"distillation_loss_weight": 0.0})):
        torch.manual_seed(0)
        run, _ = distil(
            QA,
            tmp_path,
            student=BertForNextSentencePrediction(bert_config()),
            teacher=None,
            trainer_class=cls,
            train_dataset=data,
            gradient_accumulation_steps=2,
            **extra,
        )
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
