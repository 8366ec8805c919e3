"""Tiny real models and data sets, made here, that the tests train in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

VOCABULARY = 97
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LENGTH = 24


def bert_config(layers: int = 2, width: int = 16, **options: Any) -> BertConfig:
    return BertConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 2 * width,
            "max_position_embeddings": 64,
            "initializer_range": 0.5,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            **options,
        }
    )


def model_for(task: str, *, seed: int, layers: int = 2, **options: Any) -> nn.Module:
    """A random BERT for ``question-answering`` or ``text-classification``."""
    torch.manual_seed(seed)
    if task == "question-answering":
        return BertForQuestionAnswering(bert_config(layers, **options))
    return BertForSequenceClassification(bert_config(layers, num_labels=3, **options))


def dataset_for(
    task: str, rows: int = 16, *, seed: int = 0, labels: bool = True, ignored: tuple[int, ...] = ()
) -> Dataset:
    """Random padded features; rows in ``ignored`` have labels that do not count."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (rows,), generator=random)
    ids = torch.randint(5, VOCABULARY, (rows, LENGTH), generator=random)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    columns: dict[str, Any] = {
        "input_ids": (ids * mask).tolist(),
        "attention_mask": mask.tolist(),
        "token_type_ids": ((torch.arange(LENGTH) >= 6).long() * mask).tolist(),
    }
    if labels and task == "question-answering":
        start = [int(torch.randint(0, int(n), (1,), generator=random)) for n in lengths]
        end = [min(s + 2, int(n) - 1) for s, n in zip(start, lengths, strict=True)]
        for row in ignored:
            start[row] = end[row] = 10_000
        columns |= {"start_positions": start, "end_positions": end}
    elif labels:
        column = torch.randint(0, 3, (rows,), generator=random).tolist()
        for row in ignored:
            column[row] = -100
        columns["labels"] = column
    return Dataset.from_dict(columns)


def tokenizer(words: tuple[str, ...] = (), *, lowercase: bool = True) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with BERT's special tokens and exactly ``VOCABULARY`` tokens."""
    letters = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789.,?!-"]
    pieces = [*WORDS, *letters, *(f"##{c}" for c in letters), *words]
    pieces += [f"word{i}" for i in range(VOCABULARY - len(pieces))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
