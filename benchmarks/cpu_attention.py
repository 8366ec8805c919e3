"""How long a training step on a CPU takes with eager attention, of one with SDPA.

    OMP_NUM_THREADS=1 python benchmarks/cpu_attention.py --record

Forward and backward pass of a two-layer BERT with 12 heads, in float32 and under bf16 autocast,
with and without padding. Both ways take turns; CPU seconds of one thread, ratio of the medians.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch
from report import circumstances, replace_section, write_json
from transformers import AutoModelForSequenceClassification, BertConfig

WAYS = ("sdpa", "eager")
HEAD_DIMS = (16, 32, 64)
BATCHES = ((32, 32), (16, 128), (6, 384), (4, 512))
HEADS, TURNS = 12, 7


def step(model: Any, inputs: dict[str, torch.Tensor], bf16: bool) -> float:
    """Return the CPU seconds of a forward and a backward pass."""
    began = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(**inputs).logits.float().square().mean()
    loss.backward()
    model.zero_grad()
    return time.process_time() - began


def take_turns(
    models: dict[Any, Any], inputs: dict[str, torch.Tensor], bf16: bool, turns: int
) -> dict[Any, list[float]]:
    """Return the seconds of each model's steps, by its name; a first turn is not counted."""
    seconds: dict[Any, list[float]] = {name: [] for name in models}
    for turn in range(turns + 1):
        for name, model in models.items():
            took = step(model, inputs, bf16)
            if turn:
                seconds[name].append(took)
    return seconds


def measure(head_dim: int, batch: int, length: int, padded: bool, bf16: bool) -> dict[str, Any]:
    """Time both ways in turn."""
    torch.manual_seed(0)
    width = HEADS * head_dim
    config = BertConfig(
        num_hidden_layers=2, hidden_size=width, num_attention_heads=HEADS,
        intermediate_size=4 * width, vocab_size=1000,
    )  # fmt: skip
    models = {
        way: AutoModelForSequenceClassification.from_config(config, attn_implementation=way).train()
        for way in WAYS
    }
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:, length // 2 :] = 1 - int(padded)
    inputs = {"input_ids": torch.randint(1000, (batch, length)), "attention_mask": mask}
    seconds = take_turns(models, inputs, bf16, TURNS)
    return {
        "head_dim": head_dim, "batch": batch, "length": length, "padded": padded, "bf16": bf16,
        "seconds": seconds,
        "eager_of_sdpa": median(seconds["eager"]) / median(seconds["sdpa"]),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the ratios, a row for each shape."""
    kinds = [(bf16, padded) for bf16 in (True, False) for padded in (True, False)]
    titles = [
        f"{'bf16' if bf16 else 'float32'}, {'padded' if padded else 'no padding'}"
        for bf16, padded in kinds
    ]
    lines = [f"| head_dim | batch × length | {' | '.join(titles)} |", "|---|---|---|---|---|---|"]
    for head_dim in HEAD_DIMS:
        for batch, length in BATCHES:
            found = {
                (row["bf16"], row["padded"]): row["eager_of_sdpa"]
                for row in rows
                if (row["head_dim"], row["length"]) == (head_dim, length)
            }
            cells = " | ".join(f"{found[kind]:.2f}" for kind in kinds)
            lines.append(f"| {head_dim} | {batch} × {length} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    record = parser.parse_args().record
    rows = []
    for head_dim in HEAD_DIMS:
        for batch, length in BATCHES:
            for padded in (True, False):
                for bf16 in (True, False):
                    rows.append(measure(head_dim, batch, length, padded, bf16))
                    print(*list(rows[-1].values())[:5], round(rows[-1]["eager_of_sdpa"], 3))
    if record:
        write_json("cpu_attention", {"rows": rows, **circumstances()})
        replace_section("cpu_attention", table(rows))
