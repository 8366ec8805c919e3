"""The most that a fresh process holds while it caches 10,000 and 100,000 rows.

OMP_NUM_THREADS=1 python benchmarks/cached_memory.py [--record]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import pyarrow
import torch
from cached_outputs import TINY
from datasets import Dataset
from memory import watch
from report import record_part, replace_section
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    default_data_collator,
)

from hf_distill import cache_teacher_outputs

ROWS = (10_000, 100_000)
LENGTHS = {"text-classification": 32, "question-answering": 128}


def measure() -> list[dict[str, Any]]:
    results = []
    for task, length in LENGTHS.items():
        for rows in ROWS:
            with tempfile.TemporaryDirectory() as folder:
                generated(rows, length).save_to_disk(f"{folder}/data")
                child = [sys.executable, __file__, "--child", task, folder]
                done = subprocess.run(child, check=True, capture_output=True, text=True)
                results.append(
                    {"task": task, "rows": rows, "length": length, **json.loads(done.stdout)}
                )
    return results


def generated(rows: int, length: int) -> Dataset:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (rows, length), generator=random, dtype=torch.int32).numpy()
    mask = pyarrow.array(torch.ones(rows * length, dtype=torch.int8).numpy())
    columns = {"input_ids": pyarrow.array(ids.ravel()), "attention_mask": mask}
    lists = {
        name: pyarrow.ListArray.from_arrays(range(0, rows * length + 1, length), values)
        for name, values in columns.items()
    }
    return Dataset(pyarrow.table(lists))


def cache_and_watch(task: str, folder: str) -> None:
    """In a process of its own: cache, and say what was held at most."""
    data = Dataset.load_from_disk(f"{folder}/data")
    classes: dict[str, Any] = {
        "question-answering": BertForQuestionAnswering,
        "text-classification": BertForSequenceClassification,
    }

    def cache() -> None:
        cache_teacher_outputs(
            classes[task](BertConfig(**TINY)),
            data,
            output_dir=f"{folder}/teacher_outputs",
            data_collator=default_data_collator,
            use_cpu=True,
        )

    start = time.process_time()
    figures = watch(cache)
    print(json.dumps({**figures, "cpu_s": time.process_time() - start}))


def render(results: list[dict[str, Any]]) -> str:
    lines = [
        "| task | rows × tokens | own memory before, MB | own memory at most, MB | with mapped "
        "files (VmHWM), MB | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        figures = [result[k] / 1e6 for k in ("anonymous_before", "anonymous", "VmHWM")]
        lines.append(
            f"| {result['task']} | {result['rows']:,} × {result['length']} | "
            + " | ".join(f"{figure:.0f}" for figure in figures)
            + f" | {result['cpu_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        cache_and_watch(*arguments.child)
        return
    results = measure()
    print(render(results))
    if arguments.record:
        record_part("cached_outputs", "memory", {"results": results})
        replace_section("cached_outputs_memory", render(results))


if __name__ == "__main__":
    main()
