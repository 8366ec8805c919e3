"""A teacher is given what the student is given, however it is wrapped and rows are packed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import arguments, distil, logged
from torch import nn
from transformers import DataCollatorWithFlattening, LlamaForCausalLM, default_data_collator
from zoo import zoo_config, zoo_dataset, zoo_model

from hf_distill import DistillationTrainer, cache_teacher_outputs, check_pair
from hf_distill.heads import find_head


class Doubled(nn.Module):
    """A wrapper of one's own, which has no configuration and changes what comes out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, **inputs: Any) -> Any:
        outputs = self.inner(**inputs)
        return {"logits": 2 * outputs.logits}


def replicated(model: nn.Module) -> nn.Module:
    return nn.DataParallel(nn.DataParallel(model))


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "replicated": replicated,
    "its own": Doubled,
    "compiled replicas": lambda model: compiled(replicated(model)),
}


def teacher_model(layers: int = 2) -> Any:
    """With token types, and labels in another order than the student's."""
    teacher = zoo_model("text-classification", "bert", seed=1, layers=layers)
    names = ("yes", "no", "maybe")
    teacher.config.id2label = dict(enumerate(names))
    teacher.config.label2id = {name: i for i, name in enumerate(names)}
    return teacher


def train(path: Path, teacher: Any, data: Dataset | None = None, **options: Any) -> Any:
    rows = zoo_dataset("text-classification") if data is None else data
    trainer, _ = distil(
        "text-classification",
        path,
        student=zoo_model("text-classification", "distilbert", seed=0),
        teacher=teacher,
        train_dataset=rows,
        trainer_options={"data_collator": default_data_collator},
        **options,
    )
    return trainer


@pytest.fixture
def without_compiling() -> Iterator[None]:
    """What is compiled is run as it is, which takes no time."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="nn.DataParallel would take the GPUs")
def test_a_wrapped_teacher_teaches_what_it_says(wrapper: str, tmp_path: Path) -> None:
    data = zoo_dataset("text-classification")
    types = [[int(i >= 4) for i in range(len(ids))] for ids in data["input_ids"]]
    data = data.add_column("token_type_ids", types)  # which only the teacher reads
    plain = teacher_model()
    if wrapper == "its own":
        with torch.no_grad():
            plain.classifier.weight.mul_(2)
            plain.classifier.bias.mul_(2)
    expected = train(tmp_path, plain, data)
    wrapped = WRAPPERS[wrapper](teacher_model())
    live = train(tmp_path, wrapped, data)
    stored = cache_teacher_outputs(
        wrapped,
        data,
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        dtype="float32",
        use_cpu=True,
    )
    for found in (live, train(tmp_path, None, stored)):
        assert logged(found, "loss") == pytest.approx(logged(expected, "loss"), rel=1e-5)
    report = check_pair(wrapped, zoo_model("text-classification", "distilbert", seed=0))
    assert "reordered by name" in str(report)


def test_a_teacher_that_names_no_input_is_refused(tmp_path: Path) -> None:
    teacher = Doubled(teacher_model())
    teacher.other = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="a Doubled whose forward names none of its inputs"):
        train(tmp_path, teacher)


@pytest.mark.slow
def test_layers_of_a_compiled_teacher(tmp_path: Path) -> None:
    options: Any = {"stage": "intermediate", "attention_loss": "relations", "relation_heads": 1}
    expected, found = (
        train(tmp_path, wrap(teacher_model(layers=1)), max_steps=1, **options)
        for wrap in (nn.Identity(), compiled)
    )
    for name in ("loss_hidden_states", "loss_attention"):
        assert logged(found, name) == pytest.approx(logged(expected, name), rel=1e-5)


@pytest.mark.usefixtures("without_compiling")
def test_a_wrapper_is_the_teacher_that_it_holds_in_a_resumed_run(tmp_path: Path) -> None:
    options: Any = {"save_strategy": "steps", "save_steps": 2}
    teacher = teacher_model()
    train(tmp_path, teacher, **options)
    resumed = DistillationTrainer(
        zoo_model("text-classification", "distilbert", seed=0),
        arguments(tmp_path, **options),
        teacher_model=compiled(teacher),
        train_dataset=zoo_dataset("text-classification"),
        data_collator=default_data_collator,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3


class PackedForCausalLM(LlamaForCausalLM):
    """Takes everything about packed rows through ``**kwargs``, and keeps what it was given."""

    seen: list[dict[str, Any]]

    def forward(
        self, input_ids: Any = None, labels: Any = None, use_cache: Any = None, **kwargs: Any
    ) -> Any:
        self.seen = [*getattr(self, "seen", ()), kwargs]
        return super().forward(
            input_ids, labels=labels, use_cache=use_cache, position_ids=kwargs["position_ids"]
        )


def test_packed_rows_are_packed_for_the_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = PackedForCausalLM(zoo_config("llama", 2))
    student = copy.deepcopy(teacher)
    rows = [
        {"input_ids": row["input_ids"][: sum(row["attention_mask"])]}
        for row in zoo_dataset("text-generation", 6)
    ]
    trainer = DistillationTrainer(
        student,
        arguments(tmp_path, remove_unused_columns=False, per_device_eval_batch_size=3),
        teacher_model=teacher,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithFlattening(
            return_flash_attn_kwargs=True, return_seq_idx=True
        ),
    )
    assert trainer.evaluate()["eval_loss_prediction"] < 1e-6
    assert len(student.seen) == 2
    for ours, theirs in zip(student.seen, teacher.seen[-2:], strict=True):
        packing = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
        assert set(ours) == packing | {"position_ids"}
        for name, value in ours.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name
    lengths = [len(row["input_ids"]) for row in rows[:3]]
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    assert student.seen[0]["cu_seq_lens_q"].flatten().tolist() == starts


HALF_KINDS = {
    "pixel_values": ("image-classification", "vit"),
    "input_values": ("audio-classification", "wav2vec2"),
    "input_features": ("automatic-speech-recognition", "whisper"),
    "inputs_embeds": ("text-classification", "bert"),
}
PRECISIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "a bfloat16 folder": ("bfloat16", {}),
    "a bfloat16 folder under bf16": ("bfloat16", {"bf16": True}),
    "float16 under bf16": ("float16", {"bf16": True, "teacher_dtype": "float16"}),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", HALF_KINDS)
def test_half_precision_teachers_are_given_their_number_format(
    kind: str, precision: str, tmp_path: Path
) -> None:
    task, architecture = HALF_KINDS[kind]
    name, options = PRECISIONS[precision]
    dtype = getattr(torch, name)
    student, teacher = (zoo_model(task, architecture, seed=seed) for seed in (0, 1))
    data = zoo_dataset(task)
    if kind == "inputs_embeds":
        values = student.get_input_embeddings()(torch.tensor(data["input_ids"]))
        data = data.remove_columns("input_ids").add_column(kind, values.tolist())
    batch = default_data_collator(list(data))
    head = find_head(teacher.to(dtype).eval())
    assert head is not None
    autocast = "folder under" in precision
    inputs = {**batch, kind: batch[kind].to(dtype)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = teacher(**inputs | head.target_inputs(batch, teacher)).logits.float()
    if "folder" not in precision:
        teacher.float()
    teacher.save_pretrained(tmp_path / "teacher")
    stored = cache_teacher_outputs(
        tmp_path / "teacher",
        data,
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        dtype="float32",
        use_cpu=True,
        teacher_dtype=options.get("teacher_dtype"),
        mixed_precision="bf16" if "bf16" in options else "no",
    )
    found = torch.cat([torch.tensor(row["teacher_logits"]) for row in stored])
    if kind == "input_features":
        expected = expected[batch["labels"] != -100]
    assert torch.allclose(
        found, expected.flatten(), rtol=2e-2, atol=2e-2 * float(expected.abs().max())
    )
    losses = []
    for rows, source in ((data, {"teacher_model": str(tmp_path / "teacher")}), (stored, {})):
        trainer = DistillationTrainer(
            student,
            arguments(tmp_path, **options, teacher_check_samples=0),
            train_dataset=rows,
            data_collator=default_data_collator,
            **source,
        )
        losses.append(trainer.evaluate(rows)["eval_loss_prediction"])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
