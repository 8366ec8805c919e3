"""PEFT adapters as teachers: loaded on top of their base, or refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from runs import distil, logged
from transformers import AutoModel, default_data_collator
from zoo import AUTO_MODELS, zoo_dataset, zoo_model

from hf_distill import cache_teacher_outputs, check_pair
from hf_distill import loading as loading_module
from hf_distill.cli.loading import check_model_source
from hf_distill.heads import find_head
from hf_distill.loading import UnsafeSourceError, load_teacher, read_config

BERT = {"target_modules": ["query", "value"]}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "text-classification": ("bert", {**BERT, "task_type": "SEQ_CLS"}),
    "token-classification": ("bert", {**BERT, "modules_to_save": ["classifier"]}),
    "text-generation": ("llama", {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}),
}


def adapter(task: str, folder: Path, base_labels: int = 3, **options: Any) -> Any:
    """A trained adapter in ``folder / "adapter"``, on a base without its head."""
    architecture, settings = TASKS[task]
    base = zoo_model(task, architecture, seed=1)
    encoder = base if task == "text-generation" else AutoModel.from_config(base.config)
    encoder.config.num_labels = base_labels
    encoder.save_pretrained(folder / "base")
    base = getattr(transformers, AUTO_MODELS[task]).from_pretrained(folder / "base", num_labels=3)
    torch.manual_seed(5)
    model = get_peft_model(base, LoraConfig(**{**settings, **options}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize("task", TASKS)
def test_an_adapter_teaches_what_it_was_saved_with(task: str, tmp_path: Path) -> None:
    model, folder = adapter(task, tmp_path), tmp_path / "adapter"
    data = zoo_dataset(task)
    student = zoo_model(task, TASKS[task][0], seed=0)
    stored = cache_teacher_outputs(
        folder,
        data,
        task=task,
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        dtype="float32",
        use_cpu=True,
    )
    batch = default_data_collator(list(data))
    kept = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model.eval()(**kept).logits
    found = torch.cat([torch.tensor(row["teacher_logits"]) for row in stored])
    head = find_head(student)
    assert head is not None
    positions = head.compared_positions(batch)
    expected = expected if positions is None else expected[positions]
    assert torch.allclose(found, expected.flatten(), rtol=1e-4, atol=1e-4)
    losses = [
        logged(
            distil(
                task,
                tmp_path,
                student=zoo_model(task, TASKS[task][0], seed=0),
                teacher=teacher,
                train_dataset=data,
                trainer_options={"data_collator": default_data_collator},
            )[0],
            "loss",
        )
        for teacher in (model, folder)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert check_pair(folder, student).ok
    assert check_model_source("teacher_model", str(folder)) == str(folder)
    assert read_config(str(folder), "teacher").num_labels == 3


def test_what_cannot_be_loaded_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = "text-classification"
    head = find_head(zoo_model(task, "bert", seed=0))
    assert head is not None

    def message(folder: Path, error: type[Exception] = ValueError) -> str:
        with pytest.raises(error) as raised:
            load_teacher(folder / "adapter", head.auto_model, head.task)
        return str(raised.value)

    adapter(task, tmp_path / "random", task_type=None)
    assert "is not fine-tuned for text-classification: its weights lack classifier.bias" in message(
        tmp_path / "random"
    )
    adapter(task, tmp_path / "labels", base_labels=2)
    assert "number and the names of labels" in message(tmp_path / "labels")
    assert "neither a local" not in message(tmp_path / "labels")
    with pytest.raises(ValueError, match="--student_model .* is a PEFT adapter; name the folder"):
        check_model_source("student_model", str(tmp_path / "labels" / "adapter"))
    monkeypatch.setattr(loading_module, "is_peft_available", lambda: False)
    assert "pip install peft" in message(tmp_path / "labels")
    monkeypatch.undo()
    (tmp_path / "labels" / "adapter" / "adapter_model.safetensors").unlink()
    assert "refused; save it with safetensors" in message(tmp_path / "labels", UnsafeSourceError)
