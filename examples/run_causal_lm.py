"""Distil a causal language model in your own script.

    python examples/run_causal_lm.py --teacher TEACHER --student_layers 6 \
        --dataset text --train_file train.txt --validation_file dev.txt --output_dir distilled

TEACHER is a directory or Hub id. The student is the teacher with fewer layers (`--student_layers`),
or another model with the same tokenizer (`--student`). The data are files (`--dataset text`,
`csv`, `json` or `parquet`) or a data set of the Hub (`--dataset Salesforce/wikitext
--dataset_config wikitext-2-raw-v1`). `--baseline` trains without the teacher, from the same start,
to compare with.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

from datasets import Dataset, load_dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    default_data_collator,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments


@dataclass
class ScriptArguments:
    """Options of the script in addition to the training arguments."""

    teacher: str
    dataset: str
    student: str | None = None
    student_layers: int | None = None
    baseline: bool = False
    dataset_config: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    validation_split: str = "validation"
    text_column: str = "text"
    block_size: int = 512


def load_blocks(script: ScriptArguments, tokenizer: Any) -> list[Dataset]:
    """The texts for training and validation, one after the other and cut into equal blocks."""
    files = {"train": script.train_file, "validation": script.validation_file}
    splits = load_dataset(
        script.dataset,
        script.dataset_config,
        data_files=files if script.train_file else None,
        split=["train", script.validation_split],
        **({"keep_linebreaks": True} if script.dataset == "text" else {}),
    )
    size, end = script.block_size, tokenizer.eos_token or ""

    def cut(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [text if text.endswith("\n") else text + end for text in batch[script.text_column]]
        encoding = tokenizer(texts, add_special_tokens=False, verbose=False)
        ids = list(chain.from_iterable(encoding["input_ids"]))
        # What is left over of each 1,000 texts is dropped: without padding the loss of a batch is
        # the mean over all tokens.
        blocks = [ids[begin : begin + size] for begin in range(0, len(ids) - size + 1, size)]
        return {"input_ids": blocks, "labels": blocks}

    return [split.map(cut, batched=True, remove_columns=split.column_names) for split in splits]


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of a model, from the first to the last."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def shallow_student(teacher: str, layers: int) -> Any:
    """The teacher with some of its layers, evenly spaced, the first and the last among them."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype="float32")
    last = len(layers_of(model)) - 1
    kept = [round(place * last / max(layers - 1, 1)) for place in range(layers)]
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):  # where layers differ, as with sliding windows
        config.layer_types = [config.layer_types[place] for place in kept]
    student = AutoModelForCausalLM.from_config(config)
    student.load_state_dict(model.state_dict(), strict=False)  # embeddings and head
    for layer, place in zip(layers_of(student), kept, strict=True):
        layer.load_state_dict(layers_of(model)[place].state_dict())
    return student


def main() -> None:
    """Train, evaluate and save."""
    parser = HfArgumentParser((ScriptArguments, DistillationTrainingArguments))
    script, args = parser.parse_args_into_dataclasses()
    if (script.student is None) == (script.student_layers is None):
        parser.error("give one of --student and --student_layers")
    if script.baseline:
        args.distillation_loss_weight = 0.0

    tokenizer = AutoTokenizer.from_pretrained(script.student or script.teacher)
    with args.main_process_first(desc="preparing the data"):
        train, validation = load_blocks(script, tokenizer)
    if script.student_layers is not None:
        student = shallow_student(script.teacher, script.student_layers)
    else:  # float32, for many are saved in half precision
        student = AutoModelForCausalLM.from_pretrained(script.student, dtype="float32")

    trainer = DistillationTrainer(
        model=student,
        teacher_model=script.teacher,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    metrics["eval_perplexity"] = math.exp(metrics["eval_loss"])
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model()


if __name__ == "__main__":
    main()
