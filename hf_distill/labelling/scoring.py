"""A causal language model's probabilities of labels, by the words that stand for them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_distill.compatibility.precision import rounding_of, rounding_unit
from hf_distill.labelling.prompts import EncodedRow


class WordScorer:
    """Scores words as continuations of prompts.

    The log-probability of a word is the sum over its tokens ``Σ log p(token | all before)``. It is
    exact: each token is scored after the tokens before it, without a cache of keys and values, in
    as few sequences as possible. Words of one token need the prompt alone.

    Args:
        model: a causal language model in evaluation mode, on its device.
        batch_size: rows at a time.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model = model
        self.batch_size = batch_size
        accepted = inspect.signature(model.forward).parameters
        self._takes = [
            name for name in ("position_ids", "logits_to_keep", "use_cache") if name in accepted
        ]
        self._vocabulary = model.get_input_embeddings().weight.shape[0]

    def check(self, rows: Sequence[EncodedRow]) -> None:
        """Check that a model looks at earlier tokens alone, and that padding changes nothing.

        Raises:
            ValueError: it is not a causal language model, its batches cannot be padded, or it
                gives NaN.
        """
        shortest, *_, longest = sorted(rows, key=lambda row: len(row.prefix))
        together, alone = self.scores([shortest, longest])[0], self.scores([shortest])[0]
        ids = [*longest.prefix[:8], 0][:8]
        with torch.inference_mode():
            logits = self._logits([ids, [*ids[:-1], (ids[-1] + 1) % self._vocabulary]], len(ids))
        rounding = rounding_of(logits, rounding_unit(self._model))
        first, second = logits[:, :-1]
        if not torch.equal(first, second) and self._looks_ahead(ids):
            raise ValueError(
                f"teacher_model is a {type(self._model).__name__}, and what it predicts depends on "
                "later tokens, as in an encoder; take a causal language model."
            )
        most = rounding * max(map(len, shortest.endings))
        if self.batch_size > 1 and not torch.allclose(together, alone, rtol=0.0, atol=most):
            raise ValueError(
                f"The scores of a {type(self._model).__name__} depend on how far a batch is "
                "padded; set batch_size=1."
            )

    def _looks_ahead(self, ids: Sequence[int]) -> bool:
        """Tell whether predictions depend on the last token.

        By their gradient: it is exactly zero where a mask forbids to look, and the rounding of a
        number format, which can hide a small influence, does not.
        """
        embedded: list[Tensor] = []

        def record(module: Any, args: Any, output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_())
            return embedded[0]

        handle = self._model.get_input_embeddings().register_forward_hook(record)
        try:
            with torch.enable_grad():
                logits = self._logits([ids], len(ids))[:, :-1]
                [gradient] = torch.autograd.grad(logits.square().sum(), embedded)
        finally:
            handle.remove()
        return bool((gradient[:, -1].abs() > 0).any())

    @torch.inference_mode()
    def scores(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the log-probabilities of words in float64, of shape ``(rows, words)``.

        They lack the tokens that all words of a row begin with.

        Raises:
            ValueError: the model gives NaN or infinite numbers.
        """
        inputs: list[tuple[int, ...]] = []
        places: list[dict[tuple[int, ...], int]] = []
        for row in rows:
            needed = _needed(row.endings)
            places.append({ending: len(inputs) + n for n, ending in enumerate(needed)})
            inputs += [row.prefix + ending for ending in needed]
        keep = 1 + max(len(ending) for one in places for ending in one)
        found = self._logits(inputs, keep).log_softmax(dim=-1).cpu()
        scores = torch.zeros(len(rows), len(rows[0].endings), dtype=torch.float64)
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            for word, ending in enumerate(row.endings):
                before = next(one for one in place if one[: len(ending[:-1])] == ending[:-1])
                # The last position that is kept predicts what follows `before`.
                begin = keep - 1 - len(before)
                steps = torch.arange(begin, begin + len(ending))
                scores[number, word] = found[place[before], steps, list(ending)].double().sum()
        if not scores.isfinite().all():
            raise ValueError(
                "teacher_model gives NaN or infinite scores. Check its weights, and that its "
                "number format does not overflow (try teacher_dtype='float32')."
            )
        return scores

    def _logits(self, inputs: Sequence[Sequence[int]], keep: int) -> Tensor:
        """Return the logits at the last positions: ``(sequences, keep, vocabulary)``."""
        width = max(map(len, inputs))
        # What stands in the padding does not matter, so no pad token is needed.
        ids = torch.tensor([[0] * (width - len(one)) + list(one) for one in inputs])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in inputs])
        options: dict[str, Any] = {
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "logits_to_keep": keep,
            "use_cache": False,
        }
        device = next(self._model.parameters()).device
        batch = {"input_ids": ids, "attention_mask": mask, **options}
        kept = ("input_ids", "attention_mask", *self._takes)
        outputs = self._model(
            **{
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in batch.items()
                if name in kept
            }
        )
        logits: Tensor = outputs.logits[:, -keep:].float()
        return logits


def label_probabilities(scores: Tensor, words_of: Sequence[Sequence[int]]) -> Tensor:
    """Return ``softmax`` over labels of ``logsumexp`` over the words of a label.

    Args:
        scores: log-probabilities of words, of shape ``(rows, words)``.
        words_of: the places of each label's words.

    Returns:
        Probabilities of shape ``(rows, labels)``.
    """
    labels = [scores[:, list(words)].logsumexp(dim=1) for words in words_of]
    return torch.stack(labels, dim=1).softmax(dim=1)


def calibrated(probabilities: Tensor, content_free: Tensor) -> Tensor:
    """Divide probabilities by those that the model gives without a text, and normalise them.

    Contextual calibration: ``W = diag(p_cf)^-1``, ``b = 0`` (Zhao et al. 2021, "Calibrate Before
    Use", section 5). The paper takes the largest entry of ``W p``, which is the same label.
    """
    divided = probabilities / content_free
    return divided / divided.sum(dim=1, keepdim=True)


def _needed(endings: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return what must stand after a prompt so that each token of the endings is predicted.

    That is every ending without its last token, unless another one begins with that.
    """
    inner = sorted({ending[:-1] for ending in endings}, key=lambda one: (-len(one), one))
    needed: list[tuple[int, ...]] = []
    for ending in inner:
        if not any(longer[: len(ending)] == ending for longer in needed):
            needed.append(ending)
    return needed
