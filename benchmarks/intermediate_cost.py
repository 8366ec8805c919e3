"""What a step of intermediate-layer distillation costs, beside a step on the logits.

    OMP_NUM_THREADS=1 MALLOC_ARENA_MAX=1 python benchmarks/intermediate_cost.py --record

(Each way is a thread, and without MALLOC_ARENA_MAX each would keep the memory of its largest step.)

The student (6 layers) and the teacher (12) are 768 wide. Ways that train the same student on equal
batches take turns, step by step, in one process:

- ``prediction``: ``DistillationTrainer`` with weight 1, the teacher beside it;
- ``intermediate``: ``DistillationTrainer`` in that stage, hidden states and attention scores;
- each with the attention implementations ``sdpa`` and ``eager``;
- ``all maps``: hidden states and the full attention maps of eager attention are compared, as
  TinyBERT, Haystack and TextBrewer do; in a ``compute_loss`` of ``Trainer``, the same harness as
  ours, and in a bare loop, which has nothing else to do.

With dropout on attentions, SDPA itself computes full maps on a CPU: ``--dropouts 0`` is without it.
``--implementations sdpa`` leaves eager attention out, where all do not fit into memory together.

``--memory`` runs each way alone, in a process of its own, for its peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from datasets import Dataset
from report import circumstances, record_part, replace_section
from step_cost import TakeTurns, Turns
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments

IMPLEMENTATIONS = ("sdpa", "eager")
BATCH_SIZES = {128: 8, 384: 3, 512: 2, 1024: 1, 2048: 1, 4096: 1}
TEACHER_LAYERS, STUDENT_LAYERS, WIDTH, HEADS, VOCABULARY = 12, 6, 768, 12, 30522
WARM_UP = 3
"""Steps that are not counted: the first ones pay for memory that is new to the process."""
IN_TRAINER, IN_LOOP = "all maps, Trainer", "all maps, bare loop"
BASES = ("prediction", IN_TRAINER, IN_LOOP)
"""What an intermediate step is compared with."""


def ways_with(implementations: Sequence[str]) -> tuple[str, ...]:
    stages = ("prediction", "intermediate")
    ours = (f"{stage}, {name}" for stage in stages for name in implementations)
    return (*ours, IN_TRAINER, IN_LOOP)


def build(
    layers: int, length: int, implementation: str, attention_dropout: float
) -> BertForQuestionAnswering:
    torch.manual_seed(layers)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=max(length, 512),
        attention_probs_dropout_prob=attention_dropout,
    )
    model = BertForQuestionAnswering(config)
    model.set_attn_implementation(implementation)
    return model


def make_data(length: int, steps: int) -> Dataset:
    rows = BATCH_SIZES[length] * (steps + WARM_UP)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    return Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "token_type_ids": torch.zeros_like(ids).tolist(),
            "attention_mask": torch.ones_like(ids).tolist(),
        }
    )


def eager(layers: int, length: int, dropout: float) -> BertForQuestionAnswering:
    model = build(layers, length, "eager", dropout)
    return model if layers == STUDENT_LAYERS else model.eval().requires_grad_(False)


def all_maps_loss(
    student: nn.Module, teacher: nn.Module, batch: dict[str, Tensor], bf16: bool
) -> Tensor:
    """Every hidden state and every attention map of both models, compared in full."""
    outputs = {"output_hidden_states": True, "output_attentions": True}
    every = TEACHER_LAYERS // STUDENT_LAYERS
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            theirs = teacher(**batch, **outputs)
        ours = student(**batch, **outputs)
    pairs = [
        *zip(ours.hidden_states, theirs.hidden_states[::every], strict=True),
        *zip(ours.attentions, theirs.attentions[every - 1 :: every], strict=True),
    ]
    return sum((F.mse_loss(s.float(), t.float()) for s, t in pairs), start=torch.zeros(()))


def all_maps_in_loop(data: Dataset, length: int, bf16: bool, dropout: float, turns: Turns) -> None:
    student = eager(STUDENT_LAYERS, length, dropout).train()
    teacher = eager(TEACHER_LAYERS, length, dropout)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, fused=True)
    for batch in DataLoader(data, BATCH_SIZES[length], collate_fn=default_data_collator):
        all_maps_loss(student, teacher, batch, bf16).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.done(IN_LOOP)
        turns.wait(IN_LOOP)
    turns.done(IN_LOOP, last=True)


class AllMapsTrainer(Trainer):
    """What one would write as a first ``compute_loss``."""

    teacher: nn.Module

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The loss of full maps."""
        return all_maps_loss(model, self.teacher, inputs, self.args.bf16)


def common_arguments(length: int, steps: int, bf16: bool) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": BATCH_SIZES[length],
        "max_steps": steps + WARM_UP,
        "use_cpu": True,
        "bf16": bf16,
        "save_strategy": "no",
        "logging_steps": 100,
        "disable_tqdm": True,
        "report_to": "none",
    }


def all_maps_in_trainer(
    data: Dataset, length: int, steps: int, bf16: bool, dropout: float, turns: Turns, folder: str
) -> None:
    trainer = AllMapsTrainer(
        model=eager(STUDENT_LAYERS, length, dropout),
        args=TrainingArguments(
            folder, remove_unused_columns=False, **common_arguments(length, steps, bf16)
        ),
        train_dataset=data,
        data_collator=default_data_collator,
        callbacks=[TakeTurns(turns, IN_TRAINER)],
    )
    trainer.teacher = eager(TEACHER_LAYERS, length, dropout)
    trainer.train()


def trained(
    data: Dataset,
    length: int,
    steps: int,
    bf16: bool,
    dropout: float,
    turns: Turns,
    name: str,
    folder: str,
) -> None:
    stage, implementation = name.split(", ")
    trainer = DistillationTrainer(
        model=build(STUDENT_LAYERS, length, implementation, dropout),
        teacher_model=build(TEACHER_LAYERS, length, implementation, dropout),
        args=DistillationTrainingArguments(
            folder,
            stage=stage,
            attention_loss="scores",
            distillation_loss_weight=1.0,
            **common_arguments(length, steps, bf16),
        ),
        train_dataset=data,
        data_collator=default_data_collator,
        callbacks=[TakeTurns(turns, name)],
    )
    trainer.train()


def measure(length: int, steps: int, bf16: bool, ways: tuple[str, ...], dropout: float) -> Turns:
    data, turns = make_data(length, steps), Turns(ways)
    with tempfile.TemporaryDirectory() as folder:
        functions: dict[str, Callable[[], Any]] = {
            name: lambda name=name: trained(  # type: ignore[misc]
                data, length, steps, bf16, dropout, turns, name, folder
            )
            for name in ways
        }
        if IN_LOOP in functions:
            functions[IN_LOOP] = lambda: all_maps_in_loop(data, length, bf16, dropout, turns)
        if IN_TRAINER in functions:
            functions[IN_TRAINER] = lambda: all_maps_in_trainer(
                data, length, steps, bf16, dropout, turns, folder
            )
        turns.run(functions)
    return turns


def compare(
    length: int, steps: int, bf16: bool, ways: tuple[str, ...], dropout: float
) -> dict[str, Any]:
    """CPU seconds of a step, and the ratios of neighbours in time."""
    cpu = measure(length, steps, bf16, ways, dropout).cpu
    kept = {name: times[WARM_UP : WARM_UP + steps] for name, times in cpu.items()}
    seconds = {name: median(times) for name, times in kept.items()}
    best = {
        stage: min((name for name in ways if name.startswith(stage)), key=seconds.__getitem__)
        for stage in ("prediction", "intermediate")
    }
    ours = kept[best["intermediate"]]
    ratios = {
        base: quantiles([a / b for a, b in zip(ours, kept[best.get(base, base)], strict=True)], n=4)
        for base in BASES
    }
    return {
        "length": length,
        "batch_size": BATCH_SIZES[length],
        "precision": "bf16" if bf16 else "float32",
        "attention_dropout": dropout,
        "steps": steps,
        "cpu_seconds": seconds,
        "fastest": best,
        "ratio": ratios,
    }


def peak_memory(length: int, bf16: bool, name: str) -> float | None:
    """Of a process that does nothing else, in GB; ``None`` if the machine has not enough."""
    command = [sys.executable, __file__, "--alone", json.dumps([length, bf16, name])]
    # What makes the time even keeps memory that is not in use.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == -signal.SIGKILL:
        return None
    done.check_returncode()
    return float(done.stdout.split()[-1])


def alone(length: int, bf16: bool, name: str) -> None:
    # If there is not enough, the system ends this process and no other one.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    measure(length, 1, bf16, (name,), dropout=0.0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def processor(row: dict[str, Any]) -> str:
    """Its name, from the circumstances of a measurement: "2 × AMD EPYC, Linux"."""
    return str(row["machine"]).split(" × ")[1].split(",")[0].replace("(R)", "")


def render(measured: dict[str, dict[str, Any]]) -> str:
    """The tables of time and of memory."""
    rows = sorted(
        measured.values(),
        key=lambda row: (
            processor(row),
            -row.get("attention_dropout", 0.0),
            row["length"],
            row.get("precision") == "bf16",
        ),
    )
    results = [row for row in rows if "cpu_seconds" in row]
    memory = [row for row in rows if "gigabytes" in row]
    columns = ways_with(IMPLEMENTATIONS)
    lines = [
        "| processor | dropout of attentions | length × batch | precision | "
        f"{' | '.join(f'{way}, s' for way in columns)} | "
        f"{' | '.join(f'intermediate / {base}' for base in BASES)} |",
        "|---|---|---|---|" + "---|" * (len(columns) + len(BASES)),
    ]
    for result in results:
        seconds = result["cpu_seconds"]
        cells = [f"{seconds[way]:.2f}" if way in seconds else "" for way in columns]
        for base in BASES:
            a, b, c = result["ratio"].get(base, (None, None, None))
            cells.append("" if b is None else f"{b:.3f} ({a:.3f}–{c:.3f})")
        size = f"{result['length']:,} × {result['batch_size']}"
        dropout, precision = result["attention_dropout"], result["precision"]
        lines.append(
            f"| {processor(result)} | {dropout} | {size} | {precision} | {' | '.join(cells)} |"
        )
    if memory:
        ways = list(memory[0]["gigabytes"])
        lines += [
            "",
            f"| length × batch | {' | '.join(f'{way}, GB' for way in ways)} | "
            "intermediate / prediction (aim: 1.15) |",
            "|---|" + "---|" * (len(ways) + 1),
        ]
        for row in memory:
            used = row["gigabytes"]
            cells = ["too much" if used[way] is None else f"{used[way]:.2f}" for way in ways]
            ratio = used["intermediate, sdpa"] / used["prediction, sdpa"]
            size = f"{row['length']:,} × {BATCH_SIZES[row['length']]}"
            lines.append(f"| {size} | {' | '.join(cells)} | {ratio:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="write results/ and RESULTS.md; settings that are not measured now stay as they were",
    )
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 384, 512, 1024, 2048])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.1, 0.0])
    parser.add_argument(
        "--implementations", nargs="+", default=IMPLEMENTATIONS, choices=IMPLEMENTATIONS
    )
    parser.add_argument("--memory", type=int, nargs="*", default=[384, 1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(*json.loads(options.alone))
        return
    measured: dict[str, dict[str, Any]] = {}

    def done(setting: str, figures: dict[str, Any]) -> None:
        measured[setting] = figures | circumstances()
        print(json.dumps(figures), flush=True)
        if options.record:
            everything = record_part("intermediate_cost", setting, figures)
            replace_section("intermediate_cost", render(everything))

    for length, precision, dropout in product(
        options.lengths, options.precisions, options.dropouts
    ):
        bf16, ways = precision == "bf16", ways_with(options.implementations)
        figures = compare(length, options.steps, bf16, ways, dropout)
        setting = f"{length}, {precision}, dropout {dropout}, {processor(circumstances())}"
        done(setting, figures)
    for length in options.memory:
        ways = ("prediction, sdpa", "intermediate, sdpa", IN_LOOP)
        row = {way: peak_memory(length, False, way) for way in ways}
        done(f"{length}, memory", {"length": length, "gigabytes": row})
    print(render(measured))


if __name__ == "__main__":
    main()
