"""Distillation in the modes that users train in: adapters, quantised teachers, precisions, …"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distil, logged
from torch import nn
from transformers import default_data_collator
from zoo import zoo_dataset, zoo_model

TASK = "text-classification"


def run(path: Path, task: str = TASK, architecture: str = "bert", **options: Any) -> Any:
    models = {
        "student": options.pop("student", None) or zoo_model(task, architecture, seed=0),
        "teacher": options.pop("teacher", None) or zoo_model(task, architecture, seed=1, layers=2),
    }
    trainer, _ = distil(
        task,
        path,
        train_dataset=zoo_dataset(task),
        trainer_options={"data_collator": default_data_collator},
        temperature=2.0,
        **models,
        **options,
    )
    return trainer


def losses(trainer: Any) -> tuple[list[float], list[float]]:
    return logged(trainer, "loss_task"), logged(trainer, "loss_prediction")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[float]]:
    return losses(run(tmp_path_factory.mktemp("plain")))


def close(found: Any, expected: Any, **tolerance: float) -> bool:
    return all(
        one == pytest.approx(other, **tolerance) for one, other in zip(found, expected, strict=True)
    )


# ---- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "architecture", "modules", "kind"),
    [
        (TASK, "bert", ["query", "value"], "SEQ_CLS"),
        ("token-classification", "bert", ["query"], "TOKEN_CLS"),
        ("question-answering", "bart", ["q_proj"], "QUESTION_ANS"),
        ("question-answering", "bert", ["query"], None),
        ("fill-mask", "bert", ["query"], None),
        ("text-generation", "llama", ["q_proj"], "CAUSAL_LM"),
        ("summarization", "t5", ["q"], "SEQ_2_SEQ_LM"),
        ("image-classification", "vit", ["q_proj", "query"], None),
    ],
)
def test_a_student_with_lora_adapters(
    task: str, architecture: str, modules: list[str], kind: str | None, tmp_path: Path
) -> None:
    """A new adapter changes nothing, so the first step has the losses of the student without."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type=kind, r=2, target_modules=modules)
    student = peft.get_peft_model(zoo_model(task, architecture, seed=0), config)
    embeds = task != "image-classification"
    frozen = student.get_base_model().get_input_embeddings() if embeds else None
    before = None if frozen is None else frozen.weight.clone()
    adapted = run(tmp_path / "lora", task, architecture, student=student, learning_rate=0.1)
    without = run(tmp_path / "without", task, architecture)
    for found, expected in zip(losses(adapted), losses(without), strict=True):
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert len(set(found)) == 3  # it learns
    if before is not None:
        assert torch.equal(frozen.weight, before)
    adapted.save_model(str(tmp_path / "adapter"))
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names


def test_adapters_that_drop_token_types_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peft = pytest.importorskip("peft")
    student = zoo_model("question-answering", "bert", seed=0).eval()
    batch = default_data_collator(list(zoo_dataset("question-answering")))
    with torch.no_grad():
        without = student(**{**batch, "token_type_ids": None}).loss
        config = peft.LoraConfig(task_type="QUESTION_ANS", r=2, target_modules=["query"])
        student = peft.get_peft_model(student, config)
        assert torch.equal(student(**batch).loss, without)  # PEFT does; should it stop, so do we
    run(tmp_path, "question-answering", student=student)
    assert "drops token_type_ids" in caplog.text


def test_a_student_with_a_learned_prompt(tmp_path: Path) -> None:
    """Its logits are longer than the batch: those of the prompt are not compared."""
    peft = pytest.importorskip("peft")
    task, architecture = "text-generation", "gpt2"
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    student = peft.get_peft_model(zoo_model(task, architecture, seed=0), config)
    teacher = zoo_model(task, architecture, seed=1, layers=2)
    trainer = run(tmp_path, task, architecture, student=student, teacher=teacher, learning_rate=0.0)
    batch = default_data_collator(list(zoo_dataset(task))[:4])
    with torch.no_grad():
        ours = student.eval()(**batch).logits[:, 3:].double()
        theirs = teacher.eval()(**{**batch, "labels": None}).logits.double()
    counts = batch["labels"][:, 1:] != -100
    p, q = ((z[:, :-1][counts] / 2.0).log_softmax(-1) for z in (theirs, ours))
    trainer.args.train_sampling_strategy = "sequential"
    metrics = trainer.evaluate(zoo_dataset(task).select(range(4)))
    expected = 4.0 * float((p.exp() * (p - q)).sum(-1).mean())
    assert metrics["eval_loss_prediction"] == pytest.approx(expected, rel=1e-5)


# ---- teachers in other number formats ------------------------------------------------------------


def test_a_quantised_teacher(plain: Any, tmp_path: Path) -> None:
    teacher = zoo_model(TASK, "bert", seed=1, layers=2).eval()
    teacher = torch.ao.quantization.quantize_dynamic(teacher, {nn.Linear}, dtype=torch.qint8)
    found = losses(run(tmp_path, teacher=teacher))
    assert close(found, plain, rel=0.25)  # eight bits
    assert found[1] != plain[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_half_precision_teacher(
    dtype: torch.dtype, autocast: bool, plain: Any, tmp_path: Path
) -> None:
    teacher = zoo_model(TASK, "bert", seed=1, layers=2).to(dtype)
    found = losses(run(tmp_path, teacher=teacher, bf16=autocast))
    assert close(found, plain, rel=0.1)
    assert teacher.dtype == dtype
    assert found[1] != plain[1]


def test_autocast(plain: Any, tmp_path: Path) -> None:
    found = losses(run(tmp_path, bf16=True))
    assert close(found, plain, rel=0.1)
    assert found != plain


# ---- memory and speed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "architecture"), [(TASK, "bert"), ("text-generation", "gpt2"), ("summarization", "t5")]
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(
    task: str, architecture: str, reentrant: bool, tmp_path: Path
) -> None:
    found = [
        losses(run(tmp_path, task, architecture, **options))
        for options in (
            {},
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
            },
        )
    ]
    assert close(found[1], found[0], rel=1e-3)


@pytest.mark.slow
def test_a_compiled_student(plain: Any, tmp_path: Path) -> None:
    assert close(losses(run(tmp_path, torch_compile=True)), plain, rel=1e-4)
