"""Tiny saved models and data files for every task of the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import VOCABULARY, bert_config, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

LENGTH = 64

TEXTS = (
    ("a good film", "pos"),
    ("so very good", "pos"),
    ("good, and short", "pos"),
    ("a bad film", "neg"),
    ("bad from start to end", "neg"),
    ("so bad. so long. it went on and on and on", "neg"),
)
SENTENCES = (
    (["ada", "lives", "in", "new", "york", "."], ["B-per", "O", "O", "B-loc", "I-loc", "O"]),
    (["i", "met", "bob"], ["O", "O", "B-per"]),
    (["rome", "!"], ["B-loc", "O"]),
    (["no", "names", "here"], ["O", "O", "O"]),
)
LINES = "the cat sat on the mat.\nthe dog sat on the cat.\n\nthen both of them slept.\n"
PAIRS = (("one two three four", "one four"), ("five six seven", "five seven"), ("eight", "eight"))


def letters(*, end: bool, pad: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, GPT-2's without its merges; with ``end``, texts end in </s>."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    fast = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    if end:
        fast.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        **({"pad_token": "<pad>"} if pad else {}),
    )


def tiny_model(task: str, *, seed: int = 0, layers: int = 1, **options: Any) -> PreTrainedModel:
    """A random model: BERT, GPT-2 or BART."""
    torch.manual_seed(seed)
    if task == "text-generation":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=261, n_positions=LENGTH, n_embd=16, n_layer=layers, n_head=2,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
                bos_token_id=2, eos_token_id=2,
            )
        )  # fmt: skip
    if task in ("summarization", "translation"):
        return BartForConditionalGeneration(
            BartConfig(
                vocab_size=261, d_model=16, encoder_layers=layers, decoder_layers=layers,
                encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                decoder_ffn_dim=32, max_position_embeddings=LENGTH, dropout=0.0, init_std=0.2,
                bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
                forced_eos_token_id=None,
            )
        )  # fmt: skip
    classes: dict[str, Any] = {
        "text-classification": BertForSequenceClassification,
        "token-classification": BertForTokenClassification,
        "fill-mask": BertForMaskedLM,
    }
    return classes[task](bert_config(layers, **options))


def tiny_tokenizer(task: str) -> PreTrainedTokenizerFast:
    """The tokenizer of ``tiny_model(task)``."""
    if task == "text-generation":
        return letters(end=False, pad=False)
    if task in ("summarization", "translation"):
        return letters(end=True, pad=True)
    return tokenizer()


def save_model(folder: Path, task: str, **options: Any) -> str:
    """Save a tiny model with its tokenizer."""
    tiny_model(task, **options).save_pretrained(folder)
    tiny_tokenizer(task).save_pretrained(folder)
    return str(folder)


def labelled(*names: str) -> dict[str, Any]:
    """The options of a configuration with these labels."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def write_data(folder: Path, task: str) -> str:
    """The data of a task in the form that it comes in most often."""
    if task == "text-classification":
        path = folder / "data.csv"
        lines = [f'"{text}",{label}' for text, label in TEXTS]
        path.write_text("\n".join(["text,label", *lines]) + "\n")
    elif task == "token-classification":
        path = folder / "data.conll"
        blocks = [
            "".join(f"{word}\t{tag}\n" for word, tag in zip(*sentence, strict=True))
            for sentence in SENTENCES
        ]
        path.write_text("\n".join(blocks))
    elif task in ("fill-mask", "text-generation"):
        path = folder / "data.txt"
        path.write_text(LINES)
    elif task == "summarization":
        path = folder / "data.jsonl"
        rows = [{"document": text, "summary": target} for text, target in PAIRS]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path = folder / "data.jsonl"
        rows = [{"translation": {"en": text, "xx": target}} for text, target in PAIRS]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


LABELS = {
    "text-classification": labelled("pos", "neg"),
    "token-classification": labelled("O", "I-loc", "B-loc", "B-per"),
}
OPTIONS = {
    "fill-mask": ["--block_size", "16"],
    "text-generation": ["--block_size", "16"],
    "summarization": ["--max_target_length", "12"],
    "translation": ["--source_lang", "en", "--target_lang", "xx", "--max_target_length", "12"],
}
assert VOCABULARY < 261
