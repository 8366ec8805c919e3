"""How long a training step of a student takes without dropout, of one with it.

    OMP_NUM_THREADS=1 python benchmarks/student_dropout.py --record

Forward and backward pass of BERT encoders as small as created students, under bf16 autocast with
eager attention and in float32 with SDPA, as ``shrink`` trains. Both ways take turns; CPU seconds of
one thread, ratio of the medians.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from cpu_attention import take_turns
from report import measure_and_record
from transformers import AutoModelForSequenceClassification, BertConfig

SHAPES = ((6, 192), (6, 288), (3, 384))
BATCHES = ((16, 24), (16, 128), (16, 256))
DROPOUTS = (0.1, 0.0)
TURNS = 9


def measure(layers: int, width: int, batch: int, length: int, bf16: bool) -> dict[str, Any]:
    """Time a student with and without dropout in turn."""
    torch.manual_seed(0)
    models = {}
    for dropout in DROPOUTS:
        config = BertConfig(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 32,
            intermediate_size=4 * width, vocab_size=1000, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        attention = "eager" if bf16 else "sdpa"
        models[dropout] = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=attention
        ).train()
    inputs = {
        "input_ids": torch.randint(1000, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
    }
    seconds = take_turns(models, inputs, bf16, TURNS)
    return {
        "layers": layers, "width": width, "batch": batch, "length": length, "bf16": bf16,
        "seconds": {str(dropout): times for dropout, times in seconds.items()},
        "without_of_with": median(seconds[0.0]) / median(seconds[0.1]),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the ratios, a row for each student and batch."""
    lines = ["| student | batch × length | bf16 | float32 |", "|---|---|---|---|"]
    for layers, width in SHAPES:
        for batch, length in BATCHES:
            found = {
                row["bf16"]: row["without_of_with"]
                for row in rows
                if (row["layers"], row["width"], row["length"]) == (layers, width, length)
            }
            cells = f"{found[True]:.2f} | {found[False]:.2f}"
            lines.append(f"| {layers} × {width} | {batch} × {length} | {cells} |")
    return "\n".join(lines) + "\n"


def measure_all() -> list[dict[str, Any]]:
    """Time all students and batches."""
    rows = []
    for layers, width in SHAPES:
        for batch, length in BATCHES:
            for bf16 in (True, False):
                rows.append(measure(layers, width, batch, length, bf16))
                print(*list(rows[-1].values())[:5], round(rows[-1]["without_of_with"], 3))
    return rows


if __name__ == "__main__":
    measure_and_record("student_dropout", __doc__, measure_all, table)
