"""Models at work without ``Trainer``: what `compare` measures latency and throughput of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = Sequence[Mapping[str, Any]]


def forward_predictor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    tokenize: Callable[[Rows], Mapping[str, Any]],
) -> Callable[[Rows], list[Tensor]]:
    """A function from examples to the most likely class of each, or of each token.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: pads.
        batch_size: examples at a time.
        tokenize: from examples to the inputs of the model, not padded.
    """
    accepted = inspect.signature(model.forward).parameters

    def predict(examples: Rows) -> list[Tensor]:
        found = []
        for begin in range(0, len(examples), batch_size):
            encoding = tokenize(examples[begin : begin + batch_size])
            inputs = {name: encoding[name] for name in encoding if name in accepted}
            batch = tokenizer.pad(inputs, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                # .cpu(): an accelerator has not finished computing when forward returns.
                found.append(model(**batch).logits.argmax(dim=-1).cpu())
        return found

    return predict
