"""What the workers of ``peers.py`` are given: random models and rows, as safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLS, SEP = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")


@dataclass(frozen=True)
class Sizes:
    """Of a teacher and a student."""

    teacher_layers: int
    student_layers: int
    width: int
    heads: int
    vocabulary: int


FULL = Sizes(12, 6, 384, 12, 30522)
QUICK = Sizes(4, 2, 32, 2, 500)


def write_models(kind: str, sizes: Sizes, folder: Path, **options: Any) -> Path:
    """Write teacher and student with their tokenizer, if they are not there; return where.

    Options are those of their configurations; the folder should tell which.
    """
    shape = "-".join(str(number) for number in vars(sizes).values())
    place = folder / f"{kind}-{shape}"
    mark = place / "complete"
    if mark.exists():
        return place
    tokenizer = _tokenizer(sizes.vocabulary)
    layers = {"teacher": sizes.teacher_layers, "student": sizes.student_layers}
    for seed, (name, count) in enumerate(layers.items()):
        torch.manual_seed(seed)
        _model(kind, sizes, count, **options).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    mark.touch()
    return place


def _model(kind: str, sizes: Sizes, layers: int, **options: Any) -> Any:
    if kind == "lm":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=sizes.vocabulary,
                n_positions=512,
                n_embd=sizes.width,
                n_layer=layers,
                n_head=sizes.heads,
                bos_token_id=CLS,
                eos_token_id=SEP,
                **options,
            )
        )
    of_kinds: dict[str, dict[str, Any]] = {
        "qa": {},
        "classification": {"num_labels": 3},
        "scores": {"num_labels": 1, "problem_type": "regression"},
    }
    labels = of_kinds[kind]
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=layers,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        **labels,
        **options,
    )
    return (BertForQuestionAnswering if kind == "qa" else BertForSequenceClassification)(config)


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Make one whose token n is the word ``wn``, for the peers that read texts."""
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), size))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", eos_token="[SEP]",
    )  # fmt: skip


def write_rows(kind: str, sizes: Sizes, count: int, length: int, folder: Path) -> Path:
    """Write rows of random tokens without padding, all of the same length; return where."""
    path = folder / f"{kind}-{sizes.vocabulary}-{count}x{length}.safetensors"
    if path.exists():  # a worker may have mapped it
        return path
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    ids = draw(len(SPECIAL), sizes.vocabulary, count, length)
    columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind != "lm":
        columns["token_type_ids"] = torch.zeros_like(ids)
    if kind == "qa":
        columns["start_positions"] = draw(1, length, count)
        columns["end_positions"] = draw(1, length, count)
    if kind == "scores":
        # [CLS] one text [SEP] another [SEP]
        middle = length // 2
        ids[:, 0], ids[:, middle], ids[:, -1] = CLS, SEP, SEP
        columns["token_type_ids"][:, middle + 1 :] = 1
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(columns, partial)
    partial.replace(path)
    return path
