"""Distillation in the modes that users train in: adapters, quantised teachers, precisions, …"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CountingTeacher, distil, logged
from tiny import dataset_for, model_for, tokenizer
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertForQuestionAnswering,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from zoo import zoo_dataset, zoo_model

from hf_distill import DistillationTrainer
from hf_distill.checks import warn_of_half_precision
from hf_distill.heads import find_head
from hf_distill.loading import load_teacher
from hf_distill.teachers.identity import weights_hash

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


# ---- sampling and batch sizes --------------------------------------------------------------------


BOTH_STAGES = pytest.mark.parametrize("stage", ["prediction", "intermediate"])
ALL_LOSSES = ("loss", "loss_task", "loss_prediction", "loss_hidden_states", "loss_attention")


def qa(path: Path, stage: str, **options: Any) -> Any:
    """A narrower student, so that the first stage has projections."""
    trainer, _ = distil(
        "question-answering",
        path,
        student=options.pop("student", None)
        or model_for("question-answering", seed=0, layers=1, width=8),
        teacher=options.pop("teacher", None) or model_for("question-answering", seed=1),
        trainer_options=options.pop("trainer_options", None),
        stage=stage,
        attention_loss="scores",
        **options,
    )
    return trainer


def every_loss(trainer: Any) -> dict[str, list[float]]:
    return {name: logged(trainer, name) for name in ALL_LOSSES}


class Lengths(Dataset):
    """Rows as they are, and the lengths of those that were asked for."""

    def __init__(self) -> None:
        self.rows = [
            {key: value[: sum(row["attention_mask"])] if isinstance(value, list) else value
             for key, value in row.items()}
            for row in dataset_for("question-answering", 32)
        ]  # fmt: skip
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(len(self.rows[index]["input_ids"]))
        return self.rows[index]


@BOTH_STAGES
def test_grouped_by_length(stage: str, tmp_path: Path) -> None:
    collator = DataCollatorWithPadding(tokenizer())
    asked = {}
    for strategy in ("random", "group_by_length"):
        for trainer_class in (DistillationTrainer, Trainer):
            rows = Lengths()
            sampling = {"train_sampling_strategy": strategy, "num_train_epochs": 1, "max_steps": -1}
            if trainer_class is DistillationTrainer:
                trainer = qa(
                    tmp_path,
                    stage,
                    # As wide as its teacher: projections would look at some rows first.
                    student=model_for("question-answering", seed=0, layers=1),
                    train_dataset=rows,
                    trainer_options={"data_collator": collator},
                    **sampling,
                )
                assert len(logged(trainer, "loss")) == 8
            else:
                plain = {"output_dir": str(tmp_path), "use_cpu": True, "save_strategy": "no"}
                Trainer(
                    model_for("question-answering", seed=0, layers=1),
                    TrainingArguments(per_device_train_batch_size=4, **plain, **sampling),
                    train_dataset=rows,
                    data_collator=collator,
                ).train()
            asked[strategy, trainer_class] = rows.asked
        assert asked[strategy, DistillationTrainer] == asked[strategy, Trainer]
    spreads = {
        strategy: sum(max(seen[i : i + 4]) - min(seen[i : i + 4]) for i in range(0, 32, 4))
        for (strategy, kind), seen in asked.items()
        if kind is Trainer
    }
    assert spreads["group_by_length"] < spreads["random"]


class TooBig(nn.Module):
    """A student that runs out of memory once, at a training forward pass of its choice."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__()
        self.calls, self.at = 0, at
        model.register_forward_pre_hook(self.count)

    def count(self, model: nn.Module, *_: Any) -> None:
        self.calls += model.training
        if model.training and self.calls == self.at:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@BOTH_STAGES
@pytest.mark.parametrize("at", [1, 2])
def test_a_batch_size_that_is_found(stage: str, at: int, tmp_path: Path) -> None:
    """Out of memory in a micro-batch of the first step: what was done of it leaves no trace."""
    found = {}
    for batch, automatic in ((4, True), (3, False)):
        student = model_for("question-answering", seed=0, layers=1, width=8)
        teacher = CountingTeacher(model_for("question-answering", seed=1))
        trap = TooBig(student, at if automatic else 0)
        trainer = qa(
            tmp_path / str(batch),
            stage,
            student=student,
            teacher=teacher if stage == "prediction" else teacher.wrapped,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=2,
            auto_find_batch_size=automatic,
            train_sampling_strategy="sequential",
        )
        assert trainer._train_batch_size == 3
        assert trainer.state.global_step == 3 and trap.calls == 6 + (at if automatic else 0)
        if stage == "prediction":
            assert teacher.calls == trap.calls
        layers = trainer.distiller.layers
        found[automatic] = (
            every_loss(trainer),
            {k: v.clone() for k, v in student.state_dict().items()},
            {} if layers is None else layers._projections.state_dict(),
        )
    assert found[True][0] == found[False][0]
    for ours, theirs in zip(found[True][1:], found[False][1:], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert bool(found[True][2]) == (stage == "intermediate")


# ---- teachers that must not be moved -------------------------------------------------------------


@pytest.mark.parametrize(
    "mark", [{"hf_device_map": {"": "cpu"}}, {"is_quantized": True}], ids=["placed", "quantised"]
)
def test_a_teacher_that_is_where_it_belongs_is_left_there(
    mark: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = model_for("question-answering", seed=1)
    for name, value in mark.items():
        setattr(teacher, name, value)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("`.to` is not supported for such models")

    for method in ("to", "float", "cpu", "cuda"):
        monkeypatch.setattr(teacher, method, refuse, raising=True)
    trainer = qa(tmp_path, "prediction", teacher=teacher)
    assert all(logged(trainer, "loss_prediction"))
    assert trainer.teacher_model is teacher


def test_a_quantised_float16_teacher_that_is_loaded_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_for("question-answering", seed=1).half().save_pretrained(tmp_path / "teacher")
    monkeypatch.setattr(BertForQuestionAnswering, "is_quantized", True, raising=False)
    head = find_head(model_for("question-answering", seed=0))
    assert head is not None
    teacher: Any = (str(tmp_path / "teacher"), head.auto_model, head.task)
    device = torch.device("cpu")
    assert load_teacher(*teacher, device=device).dtype == torch.float16
    monkeypatch.delattr(BertForQuestionAnswering, "is_quantized")
    assert load_teacher(*teacher, device=device).dtype == torch.float32


# ---- half precision ------------------------------------------------------------------------------


@BOTH_STAGES
def test_bfloat16_in_both_stages(stage: str, tmp_path: Path) -> None:
    whole, half = (every_loss(qa(tmp_path, stage, **o)) for o in ({}, {"bf16": True}))
    for name, values in whole.items():
        assert half[name] == pytest.approx(values, rel=0.1), name
    assert half["loss"] != whole["loss"]


@BOTH_STAGES
def test_float16_on_a_cpu_is_float32(stage: str, tmp_path: Path) -> None:
    """accelerate leaves it off, as docs/many-processes.md says."""
    whole, half = (every_loss(qa(tmp_path, stage, **o)) for o in ({}, {"fp16": True}))
    assert half == whole


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_student_in_bfloat16_is_warned_of(
    weight: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert "are trained in it" not in caplog.text
        student = zoo_model(TASK, "bert", seed=0).to(dtype)
        run(tmp_path, student=student, max_steps=1, distillation_loss_weight=weight)
    assert "The student's weights are bfloat16" in caplog.text
    assert 'from_pretrained(…, dtype="float32")' in caplog.text


def test_only_weights_that_are_trained_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    student = nn.ModuleDict({"base": nn.Linear(4, 4).half(), "adapter": nn.Linear(4, 2)})
    student["base"].requires_grad_(False)
    warn_of_half_precision(student)
    assert not caplog.text
    student["base"].requires_grad_(True)
    warn_of_half_precision(student)
    assert "The student's weights are float16" in caplog.text


def test_the_hash_of_a_quantised_teacher_tells_its_weights() -> None:
    hashes = []
    for change in (0.0, 0.0, 1.0):
        teacher: Any = zoo_model(TASK, "bert", seed=1, layers=2).eval()
        teacher.bert.encoder.layer[0].attention.self.query.weight.data[0, 0] += change
        quantised = torch.ao.quantization.quantize_dynamic(teacher, {nn.Linear}, dtype=torch.qint8)
        hashes.append(weights_hash(quantised))
    assert hashes[0] == hashes[1] != hashes[2]
