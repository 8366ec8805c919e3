"""Heads: which rows and classes are compared, against formulas written out here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import distil, logged
from tiny import bert_config, dataset_for, model_for
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    XLNetConfig,
    XLNetForQuestionAnsweringSimple,
)

from hf_distill import DistillationTrainer
from hf_distill.heads import (
    QuestionAnsweringHead,
    SequenceClassificationHead,
    find_head,
    head_of_class,
    unwrapped,
)


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (lambda: model_for("question-answering", seed=0), QuestionAnsweringHead),
        (
            lambda: XLNetForQuestionAnsweringSimple(
                XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=2, d_inner=8)
            ),
            QuestionAnsweringHead,
        ),
        (lambda: model_for("text-classification", seed=0), SequenceClassificationHead),
        (lambda: BertForNextSentencePrediction(bert_config()), type(None)),
        (lambda: nn.Linear(1, 1), type(None)),
    ],
)
def test_the_head_is_found_by_class(model: Any, head: type) -> None:
    assert type(find_head(model())) is head


def test_adapters_are_seen_through() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = model_for("question-answering", seed=0)

        def get_base_model(self) -> nn.Module:
            return self.base

    assert isinstance(find_head(Adapted()), QuestionAnsweringHead)


@pytest.mark.parametrize(
    ("name", "is_encoder_decoder", "task", "auto_model"),
    [
        ("WhisperForConditionalGeneration", True, "summarization", "AutoModelForSpeechSeq2Seq"),
        ("BartForConditionalGeneration", True, "summarization", "AutoModelForSeq2SeqLM"),
        ("BartForSequenceClassification", True, "text-classification", None),
        ("AstForAudioClassification", False, "audio-classification", None),
        ("MyOwnForTokenClassification", False, "token-classification", None),
        ("MyOwnLMHeadModel", False, "text-generation", None),
        ("MyOwnModel", False, None, None),
        ("XLNetLMHeadModel", False, None, None),
    ],
)
def test_heads_by_the_name_of_a_class(
    name: str, is_encoder_decoder: bool, task: str | None, auto_model: str | None
) -> None:
    head = head_of_class(name, SimpleNamespace(is_encoder_decoder=is_encoder_decoder))
    assert (head and head.task) == task
    if auto_model is not None:
        assert head is not None and head.auto_model == auto_model


def test_wrappers_without_inputs_of_their_own_are_seen_through() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    class Named(Wrapper):
        def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
            return self.inner(input_ids, **kwargs)

    model = nn.Linear(1, 1)
    assert unwrapped(Wrapper(Wrapper(model))) is model
    named = Named(model)
    assert unwrapped(named) is named and unwrapped(Wrapper(named)) is named


def evaluated(student: nn.Module, teacher: nn.Module, data: Any, path: Path, **options: Any) -> Any:
    run, _ = distil(
        "text-classification",
        path,
        student=student,
        teacher=teacher,
        train_dataset=data,
        max_steps=1,
        learning_rate=0.0,
        per_device_train_batch_size=len(data),
        **options,
    )
    return run


def logits_of(model: nn.Module, data: Any) -> Tensor:
    inputs = {k: torch.tensor(v) for k, v in data.to_dict().items() if k != "labels"}
    with torch.no_grad():
        return model(**inputs).logits.double()


def test_several_labels_are_compared_as_independent_yes_or_no(tmp_path: Path) -> None:
    options = {"problem_type": "multi_label_classification"}
    student = model_for("text-classification", seed=0, **options)
    teacher = model_for("text-classification", seed=1, **options)
    data = dataset_for("text-classification", 8, labels=False)
    gold = torch.randint(0, 2, (8, 3), generator=torch.Generator().manual_seed(0)).double()
    data = data.add_column("labels", gold.float().tolist())
    run = evaluated(student, teacher, data, tmp_path, temperature=3.0)
    t = 3.0
    z_s, z_t = logits_of(student, data), logits_of(teacher, data)
    p, q = torch.sigmoid(z_t / t), torch.sigmoid(z_s / t)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert logged(run, "loss_prediction") == [pytest.approx(float(t**2 * kl.mean()), rel=1e-5)]
    bce = F.binary_cross_entropy_with_logits(z_s, gold)
    assert logged(run, "loss_task") == [pytest.approx(float(bce), rel=1e-5)]


def test_regression_compares_the_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, teacher = (BertForSequenceClassification(bert_config(num_labels=1)) for _ in range(2))
    data = dataset_for("text-classification", 8, labels=False)
    data = data.add_column("labels", [float(i) for i in range(8)])
    run = evaluated(student, teacher, data, tmp_path, distillation_loss="mse")
    expected = F.mse_loss(logits_of(student, data), logits_of(teacher, data))
    assert logged(run, "loss_prediction") == [pytest.approx(float(expected), rel=1e-5)]


def test_a_student_without_token_types_learns_from_a_teacher_with_them(tmp_path: Path) -> None:
    """They are kept for the teacher, although the student's forward would have them removed."""
    task = "question-answering"
    teacher = model_for(task, seed=1)
    torch.manual_seed(0)
    student = DistilBertForQuestionAnswering(
        DistilBertConfig(
            vocab_size=97, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=64
        )
    )
    data = dataset_for(task, 8)
    trainer = DistillationTrainer(
        student,
        distil(task, tmp_path)[0].args,
        eval_dataset=data,
        teacher_model=teacher,
    )
    metrics = trainer.evaluate()
    batch = {k: torch.tensor(v) for k, v in data.to_dict().items() if "positions" not in k}
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        z_t = teacher(**batch)
        z_s = student.eval()(batch["input_ids"], batch["attention_mask"])
    expected = 0.0
    for name in ("start_logits", "end_logits"):
        log_p, log_q = (
            (z[name].double() / 2).masked_fill(~mask, -1e30).log_softmax(-1) for z in (z_t, z_s)
        )
        expected += float(4 * (log_p.exp() * (log_p - log_q)).sum(-1).mean() / 2)
    assert metrics["eval_loss_prediction"] == pytest.approx(expected, rel=1e-5)


def test_answers_outside_the_sequence_do_not_count() -> None:
    batch = {
        "input_ids": torch.zeros(3, 7, dtype=torch.long),
        "start_positions": torch.tensor([0, 7, 3]),
        "end_positions": torch.tensor([1, 9, 6]),
    }
    assert int(QuestionAnsweringHead().count_labelled(batch)) == 2
    assert QuestionAnsweringHead().count_rows(batch) == 6
