"""Tiny causal language models, tokenizers of several kinds, and a reference for scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from vocabularies import KINDS

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def language_model(kind: str = "llama", *, seed: int = 0, vocabulary: int = 512) -> Any:
    """A random language model in evaluation mode, with large weights: no two words alike."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": 16, "initializer_range": 0.5}
    if kind == "llama":
        config = LlamaConfig(
            **sizes, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=32, max_position_embeddings=64,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64,
            initializer_range=0.5,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()
    return BloomForCausalLM(BloomConfig(**sizes, n_layer=2, n_head=2)).eval()


def tokenizer(kind: str = "byte_level", *, chat: bool = False) -> PreTrainedTokenizerFast:
    made = KINDS[kind]()
    if chat:
        made.chat_template = CHAT
    return made


def log_probability(model: Any, ids: Sequence[int], start: int) -> float:
    """``log p(ids[start:] | ids[:start])``, one token at a time, without padding."""
    total = 0.0
    for place in range(start, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([list(ids[:place])])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[ids[place]])
    return total
