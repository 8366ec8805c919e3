"""A causal teacher with another tokenizer: does it help a student with few texts?

A small GPT-2 with a byte-level vocabulary of 1,000 entries learns from most of a text; a smaller
one with 400 entries learns from a fortieth of it, from its labels alone and with the teacher's
probabilities of chunks of text as well. Both are scored in bits per byte of held-out text, which
does not depend on the tokenizer. About two minutes on one core:

    OMP_NUM_THREADS=1 python benchmarks/other_tokenizer_lm.py --text DIR/wikitext2-valid.txt.gz
    python benchmarks/other_tokenizer_lm.py --table
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from datasets import Dataset
from report import RESULTS, circumstances, replace_section, write_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.alignment import encode_texts_for_teacher
from hf_distill.tasks.language_modeling import BlockCollator

NAME = "other_tokenizer_lm"
SEEDS = (0, 1, 2)
PASSAGE = 120
"""Characters of a row."""
WAYS = {
    "labels alone": {"distillation_loss_weight": 0.0},
    "labels and chunks": {"distillation_loss_weight": 0.7, "temperature": 10.0},
}


def byte_level(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer that puts a token before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )


def model(tokenizer: PreTrainedTokenizerFast, layers: int, width: int) -> GPT2LMHeadModel:
    """A random GPT-2."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def rows(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Tokenised texts with labels."""
    data = Dataset.from_dict({"text": texts})
    return data.map(lambda row: (ids := tokenizer(row["text"])) | {"labels": ids["input_ids"]})


def train(student: Any, tokenizer: Any, data: Dataset, steps: int, seed: int, **given: Any) -> None:
    """Train in place, with 16 rows a step."""
    teacher = {n: given.pop(n) for n in ("teacher_model", "teacher_processing_class") if n in given}
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            seed=seed,
            save_strategy="no",
            logging_steps=50,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **given,
        )
        trainer = DistillationTrainer(
            model=student,
            args=args,
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=BlockCollator(tokenizer),
            **teacher,
        )
        trainer.train()


def bits_per_byte(lm: Any, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Score held-out texts."""
    lm.eval()
    total = 0.0
    collator = BlockCollator(tokenizer)
    data = rows(texts, tokenizer)
    for begin in range(0, len(data), 32):
        batch = collator(list(data.select(range(begin, min(begin + 32, len(data))))))
        with torch.no_grad():
            logits = lm(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )
        total += float(losses)
    return total / math.log(2) / sum(len(text.encode()) for text in texts)


def run(options: argparse.Namespace) -> None:
    """Train the teacher and all students, and record the figures."""
    begun = time.process_time()
    with gzip.open(options.text, "rt", encoding="utf-8") as file:
        text = file.read()
    passages = [text[i : i + PASSAGE] for i in range(0, len(text), PASSAGE)]
    held_out, rest = passages[::40], [p for i, p in enumerate(passages) if i % 40]
    few = rest[::40]
    theirs, ours = byte_level(rest, 1000), byte_level(few, 400)
    set_seed(0)
    teacher = model(theirs, 2, 96)
    whole = rows(rest, theirs)
    train(teacher, theirs, whole, options.teacher_steps, 0, distillation_loss_weight=0.0)
    data = encode_texts_for_teacher(rows(few, ours), ours, theirs)
    tokens = sum(len(ids) - 1 for ids in data["input_ids"])
    found: dict[str, Any] = {
        "rows": {"teacher": len(rest), "student": len(few), "held out": len(held_out)},
        "teacher": bits_per_byte(teacher, theirs, held_out),
        "chunks per student's token": sum(max(row) + 1 for row in data["student_chunks"]) / tokens,
        "bits per byte": {way: [] for way in WAYS},
    }
    for seed in SEEDS:
        for way, given in WAYS.items():
            set_seed(seed)
            student = model(ours, 1, 48)
            taught = given["distillation_loss_weight"] > 0
            more = {"teacher_model": teacher, "teacher_processing_class": theirs} if taught else {}
            train(student, ours, data, options.steps, seed, **more, **given)
            found["bits per byte"][way].append(bits_per_byte(student, ours, held_out))
            print(seed, way, found["bits per byte"][way][-1], flush=True)
    found["cpu_seconds"] = round(time.process_time() - begun)
    found["steps"] = {"teacher": options.teacher_steps, "student": options.steps}
    write_json(NAME, {**found, **circumstances()})


def render() -> str:
    """Markdown: the losses of all ways."""
    found = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    lines = ["| student's loss | bits per byte | better than labels alone |", "|---|---|---|"]
    alone = found["bits per byte"]["labels alone"]
    for way, values in found["bits per byte"].items():
        gains = [a - b for a, b in zip(alone, values, strict=True)]
        gain = "–" if way == "labels alone" else f"{mean(gains):+.3f} ({min(gains):+.3f} at least)"
        lines.append(f"| {way} | {mean(values):.3f} ± {stdev(values):.3f} | {gain} |")
    lines.append(f"| (the teacher) | {found['teacher']:.3f} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--teacher_steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    if not chosen.table:
        run(chosen)
    replace_section(NAME, render())
