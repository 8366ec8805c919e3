"""What ``peers_correctness.py`` gives to workers: tiny models, and rows of unequal lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peer_files import QUICK, write_models, write_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

SIZES = QUICK
ROWS = 8
"""In a step."""
LENGTHS = (24, 5, 3, 7, 3, 6, 4, 5)
"""Of rows in turn. The half with the first has far more tokens, whichever the others are."""
LENGTH = max(LENGTHS)
PADDING = 16
KINDS = {"qa_cached": "qa", "attention": "qa", "scores_cached": "scores"}
"""Kinds of models and rows of tasks whose name is another one."""
LABELS = ("negative", "neutral", "positive")
ORDER = (2, 0, 1)
"""The labels of the teacher with another order, by their place in the first one."""
DROPOUT = {
    "lm": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "other": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
}


def models(task: str, run: str, folder: Path) -> Path:
    """Write teacher and student of a training, if they are not there; return where."""
    kind = KINDS.get(task, task)
    dropout = 0.1 if run in ("uninterrupted", "resumed") else 0.0
    options: dict[str, Any] = dict.fromkeys(DROPOUT.get(kind, DROPOUT["other"]), dropout)
    options["initializer_range"] = 0.2  # with less, all logits are nearly the same
    if kind == "classification":
        options["id2label"] = dict(enumerate(LABELS))
        options["label2id"] = {name: number for number, name in enumerate(LABELS)}
    parent = folder / f"correctness-dropout-{dropout}"
    if run != "permuted":
        place = write_models(kind, SIZES, parent, **options)
        return place
    place = write_models(kind, SIZES, parent.with_name(f"{parent.name}-permuted"), **options)
    permute_labels(place / "teacher")
    return place


def permute_labels(folder: Path) -> None:
    """Give a classifier the same labels in another order, with all it says of each."""
    names = [LABELS[number] for number in ORDER]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    if [model.config.id2label[number] for number in range(len(names))] == names:
        return
    order = torch.tensor(ORDER)
    with torch.no_grad():
        for weights in model.classifier.parameters():
            weights.copy_(weights[order])
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)


def rows(task: str, run: str, steps: int, folder: Path) -> Path:
    """Write the rows of a training; return where.

    Rows of question answering and language models are padded, and end one after the other; the
    labels of padding are -100. Pairs of texts, which a tool tokenises itself, are not.
    """
    kind = KINDS.get(task, task)
    count = ROWS * max(steps // 2, 1)  # four steps take four rows each
    path = write_rows(kind, SIZES, count, LENGTH, folder)
    if kind == "scores":
        return path
    columns = load_file(path)
    ends = torch.tensor([LENGTHS[row % len(LENGTHS)] for row in range(count)])
    valid = torch.arange(LENGTH) < ends[:, None]
    columns["attention_mask"] = valid.long()
    columns["input_ids"] = columns["input_ids"] * valid
    for name in ("start_positions", "end_positions"):
        if name in columns:
            columns[name] = columns[name] % ends
    if kind == "lm":
        columns["labels"] = columns["input_ids"].masked_fill(~valid, -100)
    if kind == "classification":
        columns["labels"] = torch.arange(count) % len(LABELS)
    padding = PADDING if run == "padded" else 0
    filled = {
        name: torch.nn.functional.pad(column, (0, padding), value=-100 if name == "labels" else 0)
        if column.dim() == 2
        else column
        for name, column in columns.items()
    }
    place = path.with_name(f"correctness-{padding}-{path.name}")
    save_file({name: column.contiguous() for name, column in filled.items()}, place)
    return place
