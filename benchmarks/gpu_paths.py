"""What ``gpu_check.py`` runs: training on any device, measured, and what is compared with what."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    default_data_collator,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments, cache_teacher_outputs
from hf_distill.augmentation.masked_lm import MaskedLanguageModel
from hf_distill.augmentation.words import Span
from hf_distill.losses import AttentionInputs, scores_loss

LOSSES = ("loss", "loss_prediction", "loss_hidden_states", "loss_attention")


@dataclass(frozen=True)
class Sizes:
    """How much is computed."""

    width: int
    heads: int
    teacher_layers: int
    student_layers: int
    vocabulary: int
    batch_size: int
    length: int
    lengths: tuple[int, ...]
    tokens: int
    """In a batch of one of ``lengths``."""
    steps: int
    warm_up: int

    def batch_at(self, length: int) -> int:
        """Rows in a batch of this length."""
        return max(1, self.tokens // length)


ON_GPU = Sizes(768, 12, 12, 6, 30522, 32, 384, (128, 256, 512, 1024, 2048, 4096), 8192, 20, 5)
ON_CPU = Sizes(32, 2, 2, 1, 200, 4, 16, (16, 32), 64, 2, 1)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def build(sizes: Sizes, layers: int, length: int, attention: str = "sdpa") -> Any:
    torch.manual_seed(layers)
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=layers,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        max_position_embeddings=max(length, 512),
        # Else two number formats could not be compared.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with device():
        model = BertForQuestionAnswering(config)
    model.set_attn_implementation(attention)
    return model


def make_data(sizes: Sizes, rows: int, length: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, sizes.vocabulary, (rows, length), generator=generator)
    places = torch.randint(1, length, (2, rows), generator=generator).tolist()
    return Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "token_type_ids": torch.zeros_like(ids).tolist(),
            "attention_mask": torch.ones_like(ids).tolist(),
            "start_positions": places[0],
            "end_positions": places[1],
        }
    )


class Clock(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.began, self.seconds = 0.0, list[float]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, when all that was asked of the device is done."""
        synchronize()
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End, when all that was asked of the device is done."""
        synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def train(
    sizes: Sizes,
    *,
    stage: str,
    length: int | None = None,
    batch_size: int | None = None,
    attention: str = "sdpa",
    kernels: AbstractContextManager[Any] | None = None,
    data: Dataset | None = None,
    teacher: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Train for some steps: milliseconds of a step, peak memory, and the losses of each step."""
    length = length or sizes.length
    batch_size = batch_size or sizes.batch_size
    steps = sizes.steps + sizes.warm_up
    clock = Clock()
    reset_peak()
    theirs = build(sizes, sizes.teacher_layers, length, attention) if teacher else None
    with tempfile.TemporaryDirectory() as folder, kernels or nullcontext():
        arguments = DistillationTrainingArguments(
            folder,
            stage=stage,
            attention_loss="scores",
            distillation_loss_weight=1.0,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            # tf32 is a setting of the process, which an earlier training would leave behind.
            **{"use_cpu": not torch.cuda.is_available(), "tf32": False, **options},
        )
        if arguments.world_size == 1 and arguments.n_gpu > 1:
            arguments._n_gpu = 1  # one of the machine's; nn.DataParallel would be refused
        trainer = DistillationTrainer(
            model=build(sizes, sizes.student_layers, length, attention),
            teacher_model=theirs,
            args=arguments,
            train_dataset=data or make_data(sizes, steps * batch_size, length),
            data_collator=default_data_collator,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    log = trainer.state.log_history
    losses = {name: [entry[name] for entry in log if name in entry] for name in LOSSES}
    if not all(torch.tensor(values).isfinite().all() for values in losses.values()):
        raise ArithmeticError(f"a loss is not finite: {losses}")
    return {
        "ms": 1e3 * median(clock.seconds[sizes.warm_up :]),
        "peak_gb": peak_gigabytes(),
        "losses": losses,
    }


def full_maps(sizes: Sizes, length: int, *, bf16: bool) -> dict[str, Any]:
    """A bare loop over all hidden states and full maps of eager attention, as others do it."""
    student = build(sizes, sizes.student_layers, length, "eager").to(device()).train()
    teacher = build(sizes, sizes.teacher_layers, length, "eager").to(device()).eval()
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, fused=True)
    batch_size = sizes.batch_at(length)
    data = make_data(sizes, batch_size * (sizes.steps + sizes.warm_up), length)
    data = data.remove_columns(["start_positions", "end_positions"])
    every = sizes.teacher_layers // sizes.student_layers
    seconds = []
    reset_peak()
    for batch in DataLoader(data, batch_size, collate_fn=default_data_collator):
        synchronize()
        began = time.perf_counter()
        inputs = {name: value.to(device()) for name, value in batch.items()}
        inputs |= {"output_hidden_states": True, "output_attentions": True}
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                theirs = teacher(**inputs)
            ours = student(**inputs)
        pairs = [
            *zip(ours.hidden_states, theirs.hidden_states[::every], strict=True),
            *zip(ours.attentions, theirs.attentions[every - 1 :: every], strict=True),
        ]
        torch.stack([F.mse_loss(s.float(), t.float()) for s, t in pairs]).sum().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        seconds.append(time.perf_counter() - began)
    return {"ms": 1e3 * median(seconds[sizes.warm_up :]), "peak_gb": peak_gigabytes()}


def largest_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Of the losses of two runs, relative, over the steps of both."""
    pairs = [
        pair
        for name, values in expected["losses"].items()
        for pair in zip(found["losses"][name], values, strict=True)
    ]
    return max(abs(one - other) / abs(other) for one, other in pairs)


def scores_against_float64(
    sizes: Sizes, length: int, dtype: torch.dtype, route: str
) -> dict[str, Any]:
    """The loss between attention scores by a route, against full maps in float64."""
    torch.manual_seed(0)
    shape = (sizes.batch_at(length), length, sizes.heads, sizes.width // sizes.heads)
    tensors = [torch.randn(shape, device=device()).to(dtype).transpose(1, 2) for _ in range(4)]

    def inputs(query: Tensor, key: Tensor) -> AttentionInputs:
        return AttentionInputs(query, key, key.detach(), shape[-1] ** -0.5)

    def gradients(kind: torch.dtype, *, exact: bool) -> list[Tensor]:
        ours = [t.to(kind).requires_grad_(True) for t in tensors[:2]]
        theirs = [t.to(kind) for t in tensors[2:]]
        if exact:
            maps = [q @ k.transpose(-1, -2) * shape[-1] ** -0.5 for q, k in (ours, theirs)]
            loss = (maps[0] - maps[1]).square().sum() / sizes.heads
        else:
            loss = scores_loss(inputs(*ours), inputs(*theirs), route=route)
        return [loss.detach(), *torch.autograd.grad(loss, ours)]

    wanted = gradients(torch.float64, exact=True)
    gradients(dtype, exact=False)  # the first call finds its kernels
    reset_peak()
    synchronize()
    began = time.perf_counter()
    found = gradients(dtype, exact=False)
    synchronize()
    seconds = time.perf_counter() - began
    errors = [
        float((one.double() - other).norm() / other.norm())
        for one, other in zip(found, wanted, strict=True)
    ]
    return {
        "ms": 1e3 * seconds,
        "peak_gb": peak_gigabytes(),
        "error_of_loss": errors[0],
        "error_of_gradient": max(errors[1:]),
    }


def cached(sizes: Sizes, folder: str) -> dict[str, Any]:
    """Teacher outputs computed once on the device, and a run on them against a live teacher."""
    rows = sizes.batch_size * (sizes.steps + sizes.warm_up)
    data = make_data(sizes, rows, sizes.length)
    began = time.perf_counter()
    columns = cache_teacher_outputs(
        build(sizes, sizes.teacher_layers, sizes.length),
        data,
        output_dir=folder,
        data_collator=default_data_collator,
        dtype="float32",
        batch_size=sizes.batch_size,
        use_cpu=not torch.cuda.is_available(),
    )
    seconds = time.perf_counter() - began
    live = train(sizes, stage="prediction", data=data)
    read = train(sizes, stage="prediction", data=columns, teacher=False)
    return {
        "rows_per_second": rows / seconds,
        "ms": read["ms"],
        "ms_live": live["ms"],
        "difference": largest_difference(read, live),
    }


def augmented(sizes: Sizes, dtype: str, words: Sequence[str]) -> tuple[list[list[str]], float]:
    """What a random masked language model proposes for the words of a text; words a second."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    fast = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, pieces, strict=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, **special)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=sizes.width,
        num_hidden_layers=sizes.teacher_layers,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        initializer_range=0.05,  # with 0.2 so deep a network makes much of the last digits
    )
    model = BertForMaskedLM(config).to(getattr(torch, dtype))
    masked = MaskedLanguageModel(model, tokenizer, device=device())
    texts = [" ".join(words[i % 7 : i % 7 + 20]) for i in range(sizes.batch_size)]
    spans = []
    for text in texts:
        starts = [0, *(i + 1 for i, letter in enumerate(text) if letter == " ")]
        ends = [*(i - 1 for i in starts[1:]), len(text)]
        spans.append([Span(*pair) for pair in zip(starts, ends, strict=True)])
    list(masked.propose(texts[:1], spans[:1], 5))
    synchronize()
    began = time.perf_counter()
    found = sorted(masked.propose(texts, spans, 5), key=lambda item: (item.text, item.span.start))
    synchronize()
    return [item.words for item in found], len(found) / (time.perf_counter() - began)
