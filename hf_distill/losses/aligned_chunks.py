"""Loss between the probabilities that two models give the same parts of a text.

The models may have different tokenizers: of each, only the log-probabilities of the text's own
tokens are needed, added up over the tokens of a chunk that both tokenizers cut out (approximate
likelihood matching, ALM: Minixhofer et al. 2025, *Universal Cross-Tokenizer Distillation via
Approximate Likelihood Matching*, arXiv 2503.20083, the binarised f-divergence). With p the
teacher's and q the student's probability of a chunk, given the text before it, the loss of the
chunk is

    ``T D(Bernoulli(p^(1/T)) ‖ Bernoulli(q^(1/T)))``

where D is any divergence between two distributions (``losses.logits``): the chunk is compared with
all other text that could have been there. Probabilities of long chunks are tiny; a large T brings
them into sight. For T → ∞ and ``kl_div`` it becomes ``a log(a/b) - a + b`` between the surprisals
``a = -log p`` and ``b = -log q``, so the factor T keeps the size of gradients when T changes.
(Between logits that takes T².) Chunks are compared as they are: the paper's correction for what a
token tells about the text behind it is not made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALLEST = torch.finfo(torch.float32).eps
"""What -log p / T is at least: where a model is as good as certain, 1 - p is only rounding."""


def token_log_probs(logits: Tensor, token_ids: Tensor, counts: Tensor) -> Tensor:
    """Return the log-probability of each token that counts, 0 for others.

    Args:
        logits: ``(*rows, vocabulary)``. Of tokens that do not count, they do not matter, NaN
            included.
        token_ids: ``(*rows)``.
        counts: bool, ``(*rows)``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.masked_fill(~counts[..., None], 0.0)
    chosen = logits.gather(-1, token_ids.masked_fill(~counts, 0)[..., None])[..., 0]
    return (chosen - logits.logsumexp(dim=-1)).masked_fill(~counts, 0.0)


def chunk_sums(values: Tensor, chunks: Tensor, count: int) -> Tensor:
    """Add up the values of the tokens of each chunk.

    Args:
        values: ``(batch, tokens)``.
        chunks: ``(batch, tokens)``, the chunk of each token; below 0 for a token in none.
        count: the number of chunks, or more.

    Returns:
        ``(batch, count)``.
    """
    sums = values.new_zeros(len(values), count)
    return sums.scatter_add(1, chunks.clamp(min=0), values.masked_fill(chunks < 0, 0))


def binarised(log_probs: Tensor, temperature: float) -> Tensor:
    """Return the logits of ``p^(1/T)`` and of what is left of 1, times T.

    Divided by T, as losses do with logits, they are the logs of the two probabilities.

    Args:
        log_probs: ``(*rows)``, log p.
        temperature: T > 0.

    Returns:
        ``(*rows, 2)``.
    """
    kept = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32)) / temperature
    kept = kept.clamp(max=-_SMALLEST)
    # Each is exact where the other cancels.
    rest = torch.where(
        kept > -math.log(2), torch.log(-torch.expm1(kept)), torch.log1p(-torch.exp(kept))
    )
    return temperature * torch.stack((kept, rest), dim=-1)
