"""A teacher with another tokenizer, over two processes: promise 1 of the design."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
import vocabularies
from cli.cli_runs import WINDOWS, squad
from cli.task_runs import LABELS, save_model, write_data
from safetensors.torch import load_file
from tiny import model_for, tokenizer
from torch import allclose
from transformers import AutoModel, PreTrainedModel

pytestmark = pytest.mark.slow
QA = "question-answering"


def pair(task: str, folder: Path) -> list[str]:
    """Write teacher, student and data; the options that name them."""
    if task == QA:
        for name, seed in (("base", 1), ("student", 5)):
            model_for(task, seed=seed).save_pretrained(folder / name)
            tokenizer().save_pretrained(folder / name)
        data, options = folder / "train.json", WINDOWS
        data.write_text(json.dumps(squad()))
    else:
        for name, seed in (("base", 1), ("student", 2)):
            save_model(folder / name, task, seed=seed, **LABELS.get(task, {}))
        data, options = Path(write_data(folder, task)), []
    words = vocabularies.byte_level()
    architecture = AutoModel.from_pretrained(folder / "base").config.architectures[0]
    module = __import__("transformers", fromlist=[architecture])
    teacher: PreTrainedModel = getattr(module, architecture).from_pretrained(folder / "base")
    teacher.resize_token_embeddings(len(words))
    teacher.config.pad_token_id = words.pad_token_id
    teacher.save_pretrained(folder / "teacher")
    if teacher.config.model_type == "bert":
        words.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    words.save_pretrained(folder / "teacher")
    return [
        *("--task", task, "--teacher_model", str(folder / "teacher")),
        *("--student_model", str(folder / "student"), "--train_file", str(data), *options),
    ]


@pytest.mark.parametrize("task", [QA, "token-classification", "text-generation"])
def test_losses_and_weights_do_not_depend_on_how_a_step_is_split(task: str, tmp_path: Path) -> None:
    options, losses = pair(task, tmp_path), {}
    # Of answers, the loss of the labels alone depends on how far a batch is padded.
    weight, names = ("1.0", ["prediction"]) if task == QA else ("0.5", ["task", "prediction"])
    for name, processes, batch, accumulation in (("whole", 1, 4, 1), ("two", 2, 1, 2)):
        done = forked.run(
            "hf_distill",
            *("train", *options, "--use_cpu", "--max_steps", "2", "--optim", "sgd"),
            *("--distillation_loss_weight", weight, "--learning_rate", "0.1"),
            *("--per_device_train_batch_size", str(batch), "--logging_steps", "1"),
            *("--gradient_accumulation_steps", str(accumulation)),
            *("--teacher_check_samples", "0", "--disable_tqdm", "true"),
            *("--output_dir", str(tmp_path / name)),
            processes=processes,
        )
        assert done.ok, done.stderr
        state = json.loads((tmp_path / name / "checkpoint-2" / "trainer_state.json").read_text())
        losses[name] = [
            step[f"loss_{loss}"]
            for step in state["log_history"]
            for loss in names
            if f"loss_{loss}" in step
        ]
    assert len(losses["whole"]) == 2 * len(names)
    assert losses["two"] == pytest.approx(losses["whole"], rel=1e-5)
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for name, value in load_file(tmp_path / "two" / "model.safetensors").items():
        assert allclose(value, expected[name], rtol=1e-5, atol=1e-6), name
