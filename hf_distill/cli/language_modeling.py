"""Language models, masked and causal, for the commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from hf_distill.cli.forward import Rows, forward_predictor
from hf_distill.cli.tasks import Measures, Scorer, Task
from hf_distill.heads.base import IGNORED
from hf_distill.tasks.encoding import Encoded, input_length
from hf_distill.tasks.language_modeling import (
    DEFAULT_BLOCK,
    BlockCollator,
    encode_blocks,
    text_rows,
)
from hf_distill.tasks.metrics import perplexity_scores, token_scores
from hf_distill.tasks.resampling import resample_perplexity
from hf_distill.tasks.tables import load_table

_MEASURES = Measures(
    {"perplexity": "perplexity", "accuracy": "accuracy (most likely token)"},
    {"identical": "same most likely token as the teacher"},
    frozenset({"perplexity"}),
)
# Of the masks that scores are computed with; any number, but always the same.
_MASK_SEED = 0
_GENERATED = 32


class _LanguageModelingTask(Task):
    """What both kinds have in common."""

    masked: bool
    limit = "--block_size"

    def load_data(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load texts; the lines of a text file are put together to passages."""
        table = load_table(source, split=split, config_name=config_name, revision=revision)
        return text_rows(table, text_column=self.options.text_column, join=self.options.join_texts)

    def features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        training: bool,
        num_proc: int | None,
    ) -> Encoded:
        """One row a block; masks are drawn here for scores, by the collator in training."""
        return encode_blocks(
            examples,
            tokenizer,
            model,
            block_size=self.options.block_size,
            join=self.options.join_texts,
            masked=self.masked,
            mask_seed=None if training else _MASK_SEED,
            mlm_probability=self.options.mlm_probability,
            num_proc=num_proc,
        )

    def data_collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> Callable[..., Any]:
        """Pads, and masks in training."""
        probability = self.options.mlm_probability if self.masked else None
        return BlockCollator(tokenizer, mlm_probability=probability)

    def scorer(
        self,
        examples: Dataset,
        features: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
    ) -> LanguageModelingScorer:
        """Perplexity."""
        return LanguageModelingScorer(shifted=not self.masked)

    def _length(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
        return input_length(
            self.options.block_size,
            tokenizer,
            model,
            option="block_size",
            default=DEFAULT_BLOCK,
        )


class MaskedLanguageModelingTask(_LanguageModelingTask):
    """Blocks of text with masks in, the hidden tokens out."""

    name = "fill-mask"
    auto_model = "AutoModelForMaskedLM"
    timed = "text to the most likely token in each place"
    masked = True

    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """Texts in, the most likely token in each place out."""
        length = self._length(tokenizer, model)

        def tokenize(rows: Rows) -> Mapping[str, Any]:
            return tokenizer([row["text"] for row in rows], truncation=True, max_length=length)

        return forward_predictor(model, tokenizer, batch_size, tokenize)


class CausalLanguageModelingTask(_LanguageModelingTask):
    """Blocks of text in, the next token of each place out."""

    name = "text-generation"
    auto_model = "AutoModelForCausalLM"
    timed = f"{_GENERATED} tokens written after the beginning of a text"
    masked = False

    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """The beginnings of texts in, their continuation by ``_GENERATED`` tokens out."""
        room = self._length(tokenizer, model) - _GENERATED
        length = max(1, min(_GENERATED, room))
        new = min(_GENERATED, self._length(tokenizer, model) - length)
        pad = tokenizer.pad_token_id or 0
        generator: Any = model

        def predict(examples: Rows) -> object:
            written = []
            for begin in range(0, len(examples), batch_size):
                rows = [
                    tokenizer(row["text"], truncation=True, max_length=length)["input_ids"] or [pad]
                    for row in examples[begin : begin + batch_size]
                ]
                width = max(map(len, rows))
                # On the left: a text goes on where it ends.
                ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
                lengths = torch.tensor([[len(row)] for row in rows])
                mask = (torch.arange(width) >= width - lengths).long()
                with torch.inference_mode():
                    # As many tokens for all models, so that their times can be compared.
                    written += generator.generate(
                        input_ids=ids.to(model.device),
                        attention_mask=mask.to(model.device),
                        do_sample=False,
                        num_beams=1,
                        min_new_tokens=new,
                        max_new_tokens=new,
                        pad_token_id=pad,
                    ).tolist()
            return written

        return predict


class LanguageModelingScorer(Scorer):
    """Scores the likelihood of each token, and keeps the most likely ones.

    Args:
        shifted: the logits of a token are about the next one, as in causal models.
    """

    measures = _MEASURES

    def __init__(self, *, shifted: bool) -> None:
        self.shifted = shifted
        self._loss = math.nan

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Two numbers a token instead of a whole vocabulary."""
        return token_scores(logits, labels, shifted=self.shifted)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Score what ``preprocess_logits`` kept."""
        kept: Any = eval_prediction.predictions
        losses, top = kept
        labels: Any = eval_prediction.label_ids
        labels = labels[:, 1:] if self.shifted else labels
        counts = labels != IGNORED
        self.predictions = top[counts]
        self.rows = len(labels)
        self.resampler = resample_perplexity(
            losses.sum(1), ((top == labels) & counts).sum(1), counts.sum(1)
        )
        scores = perplexity_scores(losses, top, labels)
        self._loss = scores.pop("loss_per_token")
        return scores

    def finish(self, trainer: Trainer) -> dict[str, float]:
        """The loss as the mean over tokens; ``Trainer`` takes the mean over batches."""
        return {"loss": self._loss}

    def agreement(self, teacher: LanguageModelingScorer) -> dict[str, float]:
        """The share of tokens for which both find the same token most likely."""
        sides = [np.asarray(scorer.predictions) for scorer in (self, teacher)]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"The models cut the same text into {len(sides[0])} and {len(sides[1])} tokens, so "
                "they have different tokenizers or lengths; pass --block_size, and compare models "
                "with the same tokenizer."
            )
        return {"identical": float(np.mean(sides[0] == sides[1]))}
