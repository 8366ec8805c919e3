"""What a step of ``DistillationTrainer`` costs, beside a bare loop and beside ``Trainer``.

    OMP_NUM_THREADS=1 python benchmarks/step_cost.py --record
    python benchmarks/step_cost.py --record                         # on a machine with a GPU

Ways to train the same student on equal batches take turns in one process: a bare loop with a
teacher, ``DistillationTrainer`` with the teacher, ``Trainer``, ``DistillationTrainer`` with
``distillation_loss_weight=0``, with cached teacher outputs, and in the intermediate stage, on
hidden states and on hidden states and attention scores. A turn is a step on a CPU, and some steps
on a GPU, without the first two. A step is everything from the end of one optimizer step to the end
of the next: data loading, callbacks and logging included.

The floor is what the processor cannot do without: the floating-point operations of the products of
matrices (the student's three times, for its backward pass has twice those of the forward pass) at
the rate at which it multiplies matrices of a layer's sizes, and the bytes that AdamW reads and
writes at the rate at which it copies memory. Both rates are measured before the steps. It is that
of a step with a teacher on the prediction layer.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from datasets import Dataset
from gpu_paths import device, synchronize
from report import measure_and_record
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments, cache_teacher_outputs

TEMPERATURE = 2.0
OPTIONS: dict[str, dict[str, Any]] = {
    "distilled": {"distillation_loss_weight": 1.0},
    "weight 0": {"distillation_loss_weight": 0.0},
    "cached": {"distillation_loss_weight": 1.0},
    "hidden states": {"stage": "intermediate", "attention_loss_weight": 0.0},
    "attention scores": {"stage": "intermediate", "attention_loss": "scores"},
}
"""Ways of ``DistillationTrainer``."""
WAYS = ("bare loop", "Trainer", *OPTIONS)
COMPARED = (
    ("distilled", "bare loop", 1.01),
    ("weight 0", "Trainer", 1.01),
    ("cached", "Trainer", 1.01),
    ("hidden states", "distilled", 1.03),
    ("attention scores", "distilled", None),
)
"""What is divided by what, and the aim."""


@dataclass(frozen=True)
class Setting:
    """Sizes of one comparison."""

    name: str
    width: int
    heads: int
    teacher_layers: int
    student_layers: int
    vocabulary: int
    batch_size: int
    length: int
    steps: int
    bf16: bool
    block: int = 1
    """Steps of a turn; the first ones of a longer turn are not counted."""

    @property
    def warm_up(self) -> int:
        """Steps that are not counted: the first turn, or turns."""
        return WARM_UP if self.block == 1 else self.block


ON_CPU = (
    Setting("float32, 6 → 3 layers of 384, 8 × 256", 384, 12, 6, 3, 30522, 8, 256, 14, False),
    Setting("bf16, 6 → 3 layers of 384, 8 × 256", 384, 12, 6, 3, 30522, 8, 256, 20, True),
    Setting("float32, 12 → 6 layers of 384, 16 × 128", 384, 12, 12, 6, 30522, 16, 128, 14, False),
    Setting("bf16, 6 → 3 layers of 384, 1 × 2,048", 384, 12, 6, 3, 30522, 1, 2048, 20, True),
    Setting("float32, tiny: 2 → 1 layers of 32, 4 × 16", 32, 2, 2, 1, 1000, 4, 16, 300, False),
)
ON_GPU = (
    Setting("float32, 12 → 6 × 768, 32 × 384", 768, 12, 12, 6, 30522, 32, 384, 10, False, 5),
    Setting("bf16, 12 → 6 × 768, 32 × 384", 768, 12, 12, 6, 30522, 32, 384, 70, True, 10),
    Setting("bf16, 12 → 6 × 768, 8 × 2,048", 768, 12, 12, 6, 30522, 8, 2048, 50, True, 10),
    Setting("bf16, 6 → 3 × 384, 8 × 256", 384, 12, 6, 3, 30522, 8, 256, 90, True, 10),
)
WARM_UP = 3
FLOOR_CALLS = 30


class Turns:
    """Lets threads work one after the other, ``block`` steps each, and measures each step."""

    def __init__(self, names: tuple[str, ...], block: int = 1) -> None:
        self._names = names
        self._block = block
        self._turn = 0
        self._condition = threading.Condition()
        self._began = (0.0, 0.0)
        self.wall: dict[str, list[float]] = {name: [] for name in names}
        self.cpu: dict[str, list[float]] = {name: [] for name in names}
        self.error: BaseException | None = None

    def wait(self, name: str) -> None:
        """Block until it is the turn of ``name``."""
        with self._condition:
            while self._names[self._turn] != name and self.error is None:
                self._condition.wait()
        if self.error is not None:
            raise RuntimeError("another way of training failed") from self.error
        self._began = (time.perf_counter(), time.process_time())

    def done(self, name: str, *, last: bool = False) -> None:
        """Record a step, when all that was asked of the device is done.

        Hand over after the ``last`` step, or that of a block.
        """
        synchronize()
        ended = (time.perf_counter(), time.process_time())
        self.wall[name].append(ended[0] - self._began[0])
        self.cpu[name].append(ended[1] - self._began[1])
        if len(self.wall[name]) % self._block and not last:
            return
        with self._condition:
            self._turn = (self._turn + 1) % len(self._names)
            self._condition.notify_all()

    def run(self, ways: dict[str, Callable[[], Any]]) -> None:
        """Run one function a name, each in a thread of its own."""

        def guarded(name: str) -> None:
            try:
                self.wait(name)
                ways[name]()
            except BaseException as error:
                with self._condition:
                    self.error = self.error or error
                    self._condition.notify_all()

        threads = [threading.Thread(target=guarded, args=(name,)) for name in self._names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error


class TakeTurns(TrainerCallback):
    """Ends a turn with every optimizer step of a Trainer."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.turns = turns
        self.name = name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand over, and go on when it is this one's turn again."""
        self.turns.done(self.name)
        self.turns.wait(self.name)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand over for good."""
        self.turns.done(self.name, last=True)


def build(setting: Setting, layers: int, seed: int) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.width,
        num_hidden_layers=layers,
        num_attention_heads=setting.heads,
        intermediate_size=4 * setting.width,
        max_position_embeddings=max(setting.length, 512),
    )
    with device():
        model = BertForQuestionAnswering(config)
    model.set_attn_implementation("sdpa")
    return model


def make_data(setting: Setting) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch_size * (setting.steps + setting.warm_up), setting.length)
    positions = torch.randint(1, setting.length, (2, shape[0]), generator=generator)
    return Dataset.from_dict(
        {
            "input_ids": torch.randint(5, setting.vocabulary, shape, generator=generator).tolist(),
            "token_type_ids": torch.zeros(shape, dtype=torch.long).tolist(),
            "attention_mask": torch.ones(shape, dtype=torch.long).tolist(),
            "start_positions": positions[0].tolist(),
            "end_positions": positions[1].tolist(),
        }
    )


def bare_loop(setting: Setting, data: Dataset, turns: Turns) -> None:
    """What the trainer is measured against: nothing but the arithmetic."""
    student = build(setting, setting.student_layers, seed=1).train()
    teacher = build(setting, setting.teacher_layers, seed=2).eval()
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, fused=True)
    loader = DataLoader(
        data, setting.batch_size, shuffle=True, collate_fn=default_data_collator, drop_last=True
    )
    for batch in loader:
        labels = ("start_positions", "end_positions")
        inputs = {n: value.to(device()) for n, value in batch.items() if n not in labels}
        autocast = torch.autocast(device().type, torch.bfloat16, enabled=setting.bf16)
        with torch.inference_mode(), autocast:
            wanted = teacher(**inputs)
        with autocast:
            got = student(**inputs)
        loss = torch.zeros((), device=device())
        for name in ("start_logits", "end_logits"):
            loss = loss + 0.5 * TEMPERATURE**2 * F.kl_div(
                F.log_softmax(got[name].float() / TEMPERATURE, dim=-1),
                F.softmax(wanted[name].float() / TEMPERATURE, dim=-1),
                reduction="batchmean",
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.done("bare loop")
        turns.wait("bare loop")
    turns.done("bare loop", last=True)


def trained(setting: Setting, data: Dataset, turns: Turns, name: str, folder: str) -> None:
    options: dict[str, Any] = {
        "per_device_train_batch_size": setting.batch_size,
        "max_steps": setting.steps + setting.warm_up,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": setting.bf16,
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "report_to": "none",
    }
    common: dict[str, Any] = {
        "model": build(setting, setting.student_layers, seed=1),
        "train_dataset": data,
        "data_collator": default_data_collator,
        "callbacks": [TakeTurns(turns, name)],
    }
    if name == "Trainer":
        trainer = Trainer(args=TrainingArguments(folder, **options), **common)
    else:
        teacher = build(setting, setting.teacher_layers, seed=2)
        if name == "cached":
            common["train_dataset"] = cache_teacher_outputs(
                teacher, data, output_dir=f"{folder}/outputs", batch_size=setting.batch_size,
                data_collator=default_data_collator, use_cpu=not torch.cuda.is_available(),
            )  # fmt: skip
        trainer = DistillationTrainer(
            args=DistillationTrainingArguments(
                folder,
                temperature=TEMPERATURE,
                **OPTIONS[name],
                **options,
            ),
            teacher_model=None if name == "cached" else teacher,
            **common,
        )
    trainer.train()


def operations(setting: Setting, layers: int) -> float:
    """Floating-point operations of the products of matrices in a forward pass."""
    width, length = setting.width, setting.length
    per_token = layers * (2 * 12 * width**2 + 2 * 2 * length * width)
    return float(setting.batch_size * length * per_token)


def floor(setting: Setting) -> dict[str, float]:
    """The least time of a step with a teacher, by measured rates of arithmetic and memory."""
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    rows, width = setting.batch_size * setting.length, setting.width
    left = torch.randn(rows, width, dtype=dtype, device=device())
    right = torch.randn(width, 4 * width, dtype=dtype, device=device())
    times = 2 * rows * width * 4 * width / _fastest(lambda: left @ right)
    source = torch.randn(2**28 if torch.cuda.is_available() else 2**24, device=device())
    target = torch.empty_like(source)
    speed = 2 * 4 * source.numel() / _fastest(lambda: target.copy_(source))
    work = operations(setting, setting.teacher_layers)
    work += 3 * operations(setting, setting.student_layers)
    parameters = build(setting, setting.student_layers, seed=1).num_parameters()
    moved = 7 * 4 * parameters  # reads weight, gradient and both moments; writes all but gradients
    return {
        "gflop": work / 1e9, "gflop_per_s": times / 1e9, "optimizer_mb": moved / 1e6,
        "gb_per_s": speed / 1e9, "ms": 1e3 * (work / times + moved / speed),
    }  # fmt: skip


def _fastest(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(FLOOR_CALLS):
        began = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def of_turns(setting: Setting, times: list[float]) -> list[float]:
    """The median step of each turn, without the first turns and the last, which ends a training."""
    counted = times[setting.warm_up : setting.warm_up + setting.steps]
    settled = min(2, setting.block - 1)
    return [
        median(counted[begin + settled : begin + setting.block])
        for begin in range(0, setting.steps, setting.block)
    ]


def compare(setting: Setting) -> dict[str, Any]:
    """Medians of the steps after the first ones, and quartiles of the ratios of turns."""
    data, turns, least = make_data(setting), Turns(WAYS, setting.block), floor(setting)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], Any]] = {
            name: lambda name=name: trained(setting, data, turns, name, folder)  # type: ignore[misc]
            for name in WAYS[1:]
        }
        ways["bare loop"] = lambda: bare_loop(setting, data, turns)
        turns.run(ways)
    result: dict[str, Any] = {"setting": setting.name, "steps": setting.steps, "floor": least}
    for clock, seconds in (("cpu", turns.cpu), ("wall", turns.wall)):
        kept = {name: of_turns(setting, times) for name, times in seconds.items()}
        result[f"{clock}_ms"] = {name: 1e3 * median(times) for name, times in kept.items()}
        # Three quartiles: the middle one is the figure, the outer ones tell how much to trust it.
        result[f"{clock}_ratio"] = {
            f"{ours} / {base}": quantiles(
                [a / b for a, b in zip(kept[ours], kept[base], strict=True)], n=4
            )
            for ours, base, _ in COMPARED
        }
    return result


def render(results: list[dict[str, Any]]) -> str:
    lines = [
        "| setting | clock | floor, ms | "
        + " | ".join(f"{way}, ms" for way in WAYS)
        + " | "
        + " | ".join(
            f"{ours} / {base}" + (f" (aim: {aim})" if aim else "") for ours, base, aim in COMPARED
        )
        + " |",
        "|---|---|---|" + "---|" * (len(WAYS) + len(COMPARED)),
    ]
    for result in results:
        for clock in ("cpu", "wall"):
            cells = [f"{result['floor']['ms']:.1f}"]
            cells += [f"{result[f'{clock}_ms'][way]:.1f}" for way in WAYS]
            cells += [
                f"{middle:.3f} ({low:.3f}–{high:.3f})"
                for low, middle, high in result[f"{clock}_ratio"].values()
            ]
            lines.append(f"| {result['setting']} | {clock} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    on_gpu = torch.cuda.is_available()
    measure_and_record(
        "step_cost_gpu" if on_gpu else "step_cost",
        str(__doc__),
        lambda: list(map(compare, ON_GPU if on_gpu else ON_CPU)),
        render,
    )
