"""What the loss between attention scores costs, by each route and by full maps.

    OMP_NUM_THREADS=1 python benchmarks/attention_kernels.py --record

One layer of 12 heads, forward and backward, on random Q and K that lie in memory as models leave
them. The ways take turns; shown are medians of CPU seconds of one thread. ``full maps`` is what one
writes down first: both maps in float32, subtracted, squared, with autograd. Peak memory is what the
process has grown by at its largest, inputs apart.

The last column says whether ``faster_route`` picks the faster route.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import circumstances, replace_section, write_json
from torch import Tensor

from hf_distill.losses import AttentionInputs, scores_loss
from hf_distill.losses.attention_scores import faster_route

HEADS, TOKENS = 12, 3072
LENGTHS = (64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
HEAD_DIMS = (32, 64)
DTYPES = (torch.float32, torch.bfloat16)
SECONDS = 3.0
"""About how long a setting may take."""


def full_maps(student: AttentionInputs, teacher: AttentionInputs) -> Tensor:
    maps = [
        values.query.float() @ values.key.float().transpose(-1, -2) * values.scaling
        for values in (student, teacher)
    ]
    return (maps[0] - maps[1]).square().sum() / HEADS


WAYS: dict[str, Callable[[AttentionInputs, AttentionInputs], Tensor]] = {
    "gram": lambda student, teacher: scores_loss(student, teacher, route="gram"),
    "rows": lambda student, teacher: scores_loss(student, teacher, route="rows"),
    "full maps": full_maps,
}


def random_inputs(
    batch: int, length: int, head_dim: int, dtype: torch.dtype, trained: bool
) -> AttentionInputs:
    query, key = (
        torch.randn(batch, length, HEADS, head_dim).to(dtype).transpose(1, 2) for _ in range(2)
    )
    query.requires_grad_(trained)
    key.requires_grad_(trained)
    return AttentionInputs(query, key, key.detach(), head_dim**-0.5)


def step(way: str, student: AttentionInputs, teacher: AttentionInputs) -> None:
    torch.autograd.grad(WAYS[way](student, teacher), (student.query, student.key))


def memory_of_process(field: str) -> int:
    """A field of the process's status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def peak_memory(way: str, student: AttentionInputs, teacher: AttentionInputs) -> int:
    """By how much the process grows during a step, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = memory_of_process("VmRSS")
    step(way, student, teacher)
    return memory_of_process("VmHWM") - before


def measure(length: int, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    batch = max(1, TOKENS // length)
    student = random_inputs(batch, length, head_dim, dtype, trained=True)
    teacher = random_inputs(batch, length, head_dim, dtype, trained=False)
    memory = {way: peak_memory(way, student, teacher) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    began = time.process_time()
    while len(times["gram"]) < 3 or time.process_time() - began < SECONDS:
        for way in WAYS:
            start = time.process_time()
            step(way, student, teacher)
            times[way].append(time.process_time() - start)
    medians = {way: median(values) for way, values in times.items()}
    picked = faster_route(length, head_dim, head_dim)
    other = "rows" if picked == "gram" else "gram"
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "head_dim": head_dim,
        "length": length,
        "batch": batch,
        "seconds": medians,
        "spread": {way: [min(values), max(values)] for way, values in times.items()},
        "repetitions": len(times["gram"]),
        "peak_bytes": memory,
        "picked": picked,
        "picked_to_other": medians[picked] / medians[other],
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| inputs | head_dim | batch × length | gram ms | rows ms | full maps ms | best | "
        "gram MB | rows MB | full maps MB | picked |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, memory = row["seconds"], row["peak_bytes"]
        best = seconds["full maps"] / min(seconds["gram"], seconds["rows"])
        right = "right" if row["picked_to_other"] <= 1 else f"{row['picked_to_other']:.2f} × other"
        cells = [
            row["dtype"],
            str(row["head_dim"]),
            f"{row['batch']} × {row['length']}",
            *(f"{1e3 * seconds[way]:.1f}" for way in WAYS),
            f"{best:.1f} ×",
            *(f"{memory[way] / 2**20:.0f}" for way in WAYS),
            f"{row['picked']}, {right}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(row["picked_to_other"] for row in rows)
    lines.append(f"\nThe picked route takes at most {worst:.2f} of the other's time.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--head_dims", type=int, nargs="+", default=HEAD_DIMS)
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(length, head_dim, dtype)
        for dtype in DTYPES
        for head_dim in options.head_dims
        for length in options.lengths
    ]
    print(table(rows))
    if options.record:
        write_json("attention_kernels", {"rows": rows, **circumstances()})
        replace_section("attention_kernels", table(rows))


if __name__ == "__main__":
    main()
