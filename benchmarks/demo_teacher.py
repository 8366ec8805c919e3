"""Train the adapter of the demo's teacher, once: `hf_distill/demo/data/teacher.safetensors`.

    python benchmarks/demo_teacher.py

The adapter is of rank 8, on all linear layers of the demo's encoder, and has the prediction head.
It learns passages of its own about the demo's training entities; the validation entities, which
are the same for every seed of the demo, it never sees. Takes some ten minutes on two cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

import hf_distill.demo
from hf_distill.cli.precision import bfloat16_pays
from hf_distill.demo.facts import write_squad_files
from hf_distill.demo.teacher import ADAPTER, load_encoder
from hf_distill.tasks.question_answering import (
    load_question_answering_dataset,
    prepare_train_features,
)

RANK, SCALE = 8, 2
PASSAGES = 2560


def main() -> None:
    set_seed(0)
    model, tokenizer = load_encoder()
    adapter = LoraConfig(
        r=RANK,
        lora_alpha=SCALE * RANK,
        target_modules=["query", "key", "value", "dense"],
        modules_to_save=["qa_outputs"],
    )
    adapted = get_peft_model(model, adapter)
    with tempfile.TemporaryDirectory() as folder:
        file, _ = write_squad_files(
            Path(folder), seed="teacher", train_passages=PASSAGES, validation_passages=1
        )
        args = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=32,
            train_sampling_strategy="group_by_length",
            learning_rate=2e-3,
            warmup_steps=0.1,
            bf16=bfloat16_pays(),
            use_cpu=not torch.accelerator.is_available(),
            dataloader_pin_memory=torch.accelerator.is_available(),
            save_strategy="no",
            logging_steps=20,
            report_to="none",
        )
        Trainer(
            adapted,
            args,
            train_dataset=prepare_train_features(load_question_answering_dataset(file), tokenizer),
            data_collator=DataCollatorWithPadding(tokenizer),
        ).train()
    tensors = {}
    for name, tensor in get_peft_model_state_dict(adapted).items():
        short = name.removeprefix("base_model.model.")
        if ".lora_" in short:
            short = short.removesuffix(".weight")
        scale = SCALE if short.endswith(".lora_B") else 1
        tensors[short] = (scale * tensor).half().contiguous()
    save_file(tensors, Path(hf_distill.demo.__path__[0], "data", ADAPTER))


if __name__ == "__main__":
    main()
