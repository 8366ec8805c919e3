r"""What cached teacher outputs cost, and what they save: a step, three epochs, disk.

    OMP_NUM_THREADS=1 MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=4294967296 \
        MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 \
        python benchmarks/cached_outputs.py step epochs [--record]
    OMP_NUM_THREADS=1 python benchmarks/cached_outputs.py size [--record]

The settings keep glibc from giving blocks back to the system at every step, which costs one thread
more than the other, by chance.

- ``step``: a student that learns from cached outputs and a plain ``Trainer`` that fine-tunes it
  take turns, step by step, in one process. A step is everything from the end of one optimizer step
  to the end of the next, so it includes reading the columns.
- ``epochs``: three epochs with the live teacher, and from a cache with the making of the cache.
- ``size``: the files of several tasks, columns and the rest apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from report import record_part, replace_section
from step_cost import WARM_UP, Setting, TakeTurns, Turns, build, make_data
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments, cache_teacher_outputs

AIM = 1.03
STEPS = (
    Setting("3 layers of 384, float32", 384, 12, 1, 3, 30522, 8, 384, 16, False),
    Setting("3 layers of 384, bf16", 384, 12, 1, 3, 30522, 8, 384, 24, True),
    Setting("6 layers of 768, float32", 768, 12, 1, 6, 30522, 8, 384, 8, False),
)
EPOCHS = 3
RUNS = (
    Setting("12 → 3 layers of 768", 768, 12, 12, 3, 30522, 8, 128, 32, True),
    Setting("6 → 3 layers of 384", 384, 12, 6, 3, 30522, 8, 128, 32, True),
)
TINY: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def options(setting: Setting, **further: Any) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": setting.batch_size,
        "use_cpu": True,
        "bf16": setting.bf16,
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "report_to": "none",
        **further,
    }


def cached(setting: Setting, data: Dataset, folder: str) -> Dataset:
    return cache_teacher_outputs(
        build(setting, setting.teacher_layers, seed=2),
        data,
        output_dir=Path(folder) / "teacher_outputs",
        data_collator=default_data_collator,
        batch_size=setting.batch_size,
        mixed_precision="bf16" if setting.bf16 else "no",
        use_cpu=True,
    )


# ---- a step --------------------------------------------------------------------------------------


def compare_step(setting: Setting) -> dict[str, Any]:
    """CPU seconds of neighbouring steps, after the first WARM_UP."""
    data, turns = make_data(setting), Turns(("cached", "Trainer"))
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = options(setting, max_steps=setting.steps + WARM_UP)

        def train(trainer_class: Any, args: Any, name: str, rows: Dataset) -> None:
            trainer_class(
                model=build(setting, setting.student_layers, seed=1),
                args=args,
                train_dataset=rows,
                data_collator=default_data_collator,
                callbacks=[TakeTurns(turns, name)],
            ).train()

        stored = cached(setting, data, folder)
        ours = DistillationTrainingArguments(folder, temperature=2.0, **common)
        plain = TrainingArguments(folder, **common)
        turns.run(
            {
                "cached": lambda: train(DistillationTrainer, ours, "cached", stored),
                "Trainer": lambda: train(Trainer, plain, "Trainer", data),
            }
        )
    kept = {k: times[WARM_UP : WARM_UP + setting.steps] for k, times in turns.cpu.items()}
    ratios = [a / b for a, b in zip(kept["cached"], kept["Trainer"], strict=True)]
    return {
        "setting": setting.name,
        "steps": setting.steps,
        **{f"{name}_ms": [1e3 * seconds for seconds in times] for name, times in kept.items()},
        "ratio": quantiles(ratios, n=4),
        "ratio_of_sums": sum(kept["cached"]) / sum(kept["Trainer"]),
    }


def render_step(results: list[dict[str, Any]]) -> str:
    lines = [
        f"| student, 8 × 384 tokens | cached, CPU ms | `Trainer`, CPU ms | ratio (aim: {AIM}) |",
        "|---|---|---|---|",
    ]
    for result in results:
        middle = [quantiles(result[f"{name}_ms"], n=4)[1] for name in ("cached", "Trainer")]
        low, ratio, high = result["ratio"]
        lines.append(
            f"| {result['setting']} | {middle[0]:.0f} | {middle[1]:.0f} | "
            f"{ratio:.3f} ({low:.3f}–{high:.3f}) |"
        )
    return "\n".join(lines) + "\n"


# ---- three epochs --------------------------------------------------------------------------------


def compare_epochs(setting: Setting) -> dict[str, Any]:
    """Seconds of whole runs."""
    data = make_data(setting)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationTrainingArguments(
            folder, temperature=2.0, **options(setting, num_train_epochs=EPOCHS)
        )

        def train(rows: Dataset, **teacher: Any) -> None:
            DistillationTrainer(
                model=build(setting, setting.student_layers, seed=1),
                args=args,
                train_dataset=rows,
                data_collator=default_data_collator,
                **teacher,
            ).train()

        live = timed(
            lambda: train(data, teacher_model=build(setting, setting.teacher_layers, seed=2))
        )
        caching = timed(lambda: cached(setting, data, folder))
        from_cache = timed(lambda: train(cached(setting, data, folder)))
    return {
        "setting": setting.name,
        "rows": len(data),
        "live": live,
        "caching": caching,
        "from_cache": from_cache,
        "break_even_epochs": caching["wall"] / ((live["wall"] - from_cache["wall"]) / EPOCHS),
    }


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the wall clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def render_epochs(results: list[dict[str, Any]]) -> str:
    lines = [
        "| teacher → student | live, s (CPU s) | caching | from the cache | live : "
        f"cached, caching included, {EPOCHS} epochs | 10 epochs | break-even, epochs |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        spent = [result[k] for k in ("live", "caching", "from_cache")]
        live, caching, trained = (seconds["wall"] for seconds in spent)
        gains = [live * n / (caching + trained * n) for n in (1, 10 / EPOCHS)]
        cells = " | ".join(f"{seconds['wall']:.0f} ({seconds['cpu']:.0f})" for seconds in spent)
        lines.append(
            f"| {result['setting']} | {cells} | "
            f"{gains[0]:.2f} × | {gains[1]:.2f} × | {result['break_even_epochs']:.1f} |"
        )
    return "\n".join(lines) + "\n"


# ---- disk ----------------------------------------------------------------------------------------


def tokens(rows: int, length: int, **labels: Any) -> Dataset:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (rows,), generator=random).tolist()
    ids = [torch.randint(5, 1000, (n,), generator=random).tolist() for n in lengths]
    columns: dict[str, Any] = {"input_ids": ids, "attention_mask": [[1] * n for n in lengths]}
    return Dataset.from_dict(columns | {name: make(ids) for name, make in labels.items()})


def sizes() -> list[dict[str, Any]]:
    cases: list[tuple[str, Any, Dataset, dict[str, Any]]] = [
        (
            "question answering",
            BertForQuestionAnswering(BertConfig(**TINY)),
            tokens(4096, 384),
            {},
        )
    ]
    for labels in (2, 3):
        tiny = BertConfig(**TINY, num_labels=labels)  # type: ignore[call-arg]
        model: Any = BertForSequenceClassification(tiny)
        cases.append((f"text classification, {labels} labels", model, tokens(4096, 64), {}))
    model = BertForTokenClassification(BertConfig(**TINY, num_labels=9))  # type: ignore[call-arg]
    marked = tokens(4096, 64, labels=lambda ids: [[0] * len(row) for row in ids])
    cases.append(("token classification, 9 labels", model, marked, {}))
    config = GPT2Config(vocab_size=50257, n_embd=16, n_head=2, n_layer=1)
    written = tokens(256, 384, labels=lambda ids: ids)
    cases.append(("language model, top_k 64", GPT2LMHeadModel(config), written, {"top_k": 64}))
    return [size_of(*case) for case in cases]


def size_of(name: str, teacher: Any, data: Dataset, further: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cache_teacher_outputs(
            teacher, data, output_dir=folder, data_collator=padded, use_cpu=True, **further
        )
        columns: dict[str, int] = {}
        offsets = files = 0
        for path in Path(folder).glob("*.arrow"):
            files += path.stat().st_size
            with pyarrow.OSFile(str(path)) as file:
                table = pyarrow.ipc.open_stream(file).read_all()
            for column in table.column_names:
                for chunk in table[column].chunks:
                    # A list's offsets are no content.
                    content = chunk.nbytes if chunk.type.num_fields == 0 else chunk.flatten().nbytes
                    columns[column] = columns.get(column, 0) + content
                    offsets += chunk.nbytes - content
    return {
        "task": name,
        "rows": len(data),
        "tokens": sum(map(len, data["input_ids"])),
        "columns": columns,
        "offsets": offsets,
        "files": files,
    }


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"labels": -100}
    return {
        name: torch.tensor(
            [row[name] + [fill.get(name, 0)] * (longest - len(row[name])) for row in rows]
        )
        for name in rows[0]
    }


def render_sizes(results: list[dict[str, Any]]) -> str:
    lines = [
        "| task | tokens a row | logits, ids, rest: bytes a token | bytes a row | checksum, "
        "bytes a row | offsets, bytes a row | rest of the file | in all, bytes a row |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        rows, columns = result["rows"], dict(result["columns"])
        checksums = columns.pop("teacher_checksum")
        content = sum(columns.values())
        rest = result["files"] - content - checksums - result["offsets"]
        lines.append(
            f"| {result['task']} | {result['tokens'] / rows:.0f} | "
            f"{content / result['tokens']:.2f} | {content / rows:,.1f} | {checksums / rows:.1f} | "
            f"{result['offsets'] / rows:.1f} | {rest:,} B a part | {result['files'] / rows:,.1f} |"
        )
    return "\n".join(lines) + "\n"


MEASUREMENTS: dict[str, tuple[Callable[[], list[dict[str, Any]]], Callable[..., str]]] = {
    "step": (lambda: [compare_step(setting) for setting in STEPS], render_step),
    "epochs": (lambda: [compare_epochs(setting) for setting in RUNS], render_epochs),
    "size": (sizes, render_sizes),
}


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", choices=[*MEASUREMENTS, []], help="all by default")
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    arguments = parser.parse_args()
    for name in arguments.what or MEASUREMENTS:
        measure, render = MEASUREMENTS[name]
        results = measure()
        print(render(results))
        if arguments.record:
            record_part("cached_outputs", name, {"results": results})
            replace_section(f"cached_outputs_{name}", render(results))


if __name__ == "__main__":
    main()
