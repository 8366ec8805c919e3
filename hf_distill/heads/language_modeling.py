"""Language models: masked, causal and sequence to sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.heads.base import (
    IGNORED,
    MASKED_TARGET,
    Batch,
    PositionHead,
    main_input,
    not_padding,
    output,
)

_START = "decoder_start_token_id"


class LanguageModelingHead(PositionHead):
    """One distribution over the vocabulary per token.

    Vocabularies may be padded to different sizes: the range that both share is compared, and its
    probabilities sum to 1.
    """

    def align(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        shared = min(student.shape[-1], teacher.shape[-1])
        return student[..., :shared], teacher[..., :shared]


class MaskedLMHead(LanguageModelingHead):
    """Predicts masked tokens, ``(batch, length, vocabulary)``."""

    task = "fill-mask"
    auto_model = "AutoModelForMaskedLM"

    def logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the logits of all tokens.

        Raises:
            ValueError: the model leaves out tokens.
        """
        logits = output(outputs, "logits")
        if logits.dim() != 3:
            raise ValueError(
                f"The model returned logits of the shape {tuple(logits.shape)} instead of (batch, "
                "length, vocabulary); set config.sparse_prediction=False, so that student and "
                "teacher give logits for the same tokens."
            )
        length = main_input(batch).shape[1]
        if logits.shape[1] != length:
            raise ValueError(
                f"The model returned logits for {logits.shape[1]} positions and its input has "
                f"{length}; pad the data to a length that it has logits for (tokenizer(…, "
                f"padding='max_length', max_length={logits.shape[1]})), as Perceiver needs it."
            )
        return logits


class CausalLMHead(LanguageModelingHead):
    """Predicts the next token: the logits of token i are compared where token i + 1 counts.

    Rows are ``(batch, length - 1)``. A token counts if it has a label; where there are no labels,
    if it is not padding.
    """

    task = "text-generation"
    auto_model = "AutoModelForCausalLM"

    def logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the logits of all but the last token, without those of a learned prompt."""
        logits = output(outputs, "logits")
        return logits[:, -main_input(batch).shape[1] :][:, :-1]

    def row_mask(self, batch: Batch) -> Tensor:
        """Tokens whose next token counts; padding (on the left) predicts none."""
        mask, inputs = super().row_mask(batch), not_padding(batch)
        return inputs[:, :-1] if mask is None else mask[:, 1:] & inputs[:, :-1]

    def compared_positions(self, batch: Batch) -> Tensor:
        return nn.functional.pad(self.row_mask(batch), (0, 1))

    def outputs(self, logits: Tensor) -> dict[str, Tensor]:
        """Add logits for the last token, which nothing looks at."""
        return {"logits": nn.functional.pad(logits, (0, 0, 0, 1))}

    def gold(self, batch: Batch) -> Tensor | None:
        labels = batch.get("labels")
        return None if labels is None else labels[:, 1:]


class Seq2SeqLMHead(LanguageModelingHead):
    """Predicts the target's tokens, ``(batch, target length, vocabulary)``.

    The teacher is given the target as the student is (teacher forcing): ``decoder_input_ids`` if
    the batch has them, else the labels shifted to the right. Tokens of the target with a label
    count; where there are no labels, those of ``decoder_input_ids`` that are not padding.

    Args:
        config: the student's configuration.
        auto_model: what loads a teacher, if it is not the usual class, as for speech.
    """

    task = "summarization"
    auto_model = "AutoModelForSeq2SeqLM"
    target_names = ("labels", "decoder_input_ids")

    def __init__(self, config: Any = None, auto_model: str | None = None) -> None:
        super().__init__(config)
        self.auto_model = auto_model or self.auto_model

    def row_mask(self, batch: Batch) -> Tensor | None:
        """Tokens of the target with a label, or all but padding."""
        labels = batch.get("labels")
        if labels is not None:
            return labels != IGNORED
        mask, ids = batch.get("decoder_attention_mask"), batch.get("decoder_input_ids")
        if mask is not None:
            return mask.bool()
        pad = getattr(self.config, "pad_token_id", None)
        if ids is None or pad is None:
            return None
        counts = ids != pad
        counts[:, 0] = True  # several models start the target with the padding token
        return counts

    def compared_positions(self, batch: Batch) -> Tensor:
        mask = self.row_mask(batch)
        if mask is None:
            mask = torch.ones_like(batch["decoder_input_ids"], dtype=torch.bool)
        return mask

    def count_rows(self, batch: Batch) -> int | Tensor:
        """Count the tokens of the target that count.

        Raises:
            ValueError: the batch has no target.
        """
        for name in ("labels", "decoder_input_ids"):
            if batch.get(name) is not None:
                mask = self.row_mask(batch)
                return batch[name].numel() if mask is None else mask.sum()
        raise ValueError(
            "A batch has neither labels nor decoder_input_ids, only: "
            f"{', '.join(batch)}. A sequence-to-sequence student needs a target, also with "
            "distillation_loss_weight=1: the teacher's own output, for example."
        )

    def target(self, batch: Batch) -> Tensor | None:
        """Return what the decoder reads: -1 for its start token, ``MASKED_TARGET``."""
        start, pad = (getattr(self.config, n, None) for n in (_START, "pad_token_id"))
        ids, labels = batch.get("decoder_input_ids"), batch.get("labels")
        if ids is not None:
            target = ids.clone()
            if start is not None:
                target[:, 0].masked_fill_(target[:, 0] == start, -1)
        elif labels is not None:
            target = labels.roll(1, dims=1)
            target.masked_fill_(target == IGNORED, IGNORED if pad is None else pad)
            target[:, 0] = -1
        else:
            return None
        mask = batch.get("decoder_attention_mask")
        if mask is None or mask.shape != target.shape:
            return target
        return target.masked_fill(mask == 0, MASKED_TARGET)

    def target_inputs(self, batch: Batch, model: nn.Module) -> dict[str, Any]:
        """Return the decoder's inputs: those of the batch, else the labels shifted to the right.

        A model whose targets start with a token other than the student's is given its own.
        """
        config: Any = getattr(model, "config", None)
        own = getattr(config, _START, None)
        ids, labels = batch.get("decoder_input_ids"), batch.get("labels")
        if ids is not None:
            start = getattr(self.config, _START, None)
            if None in (own, start) or own == start:
                return {}
            first = ids[:, :1]
            first = first.masked_fill(first == start, own)
            return {"decoder_input_ids": torch.cat((first, ids[:, 1:]), dim=1)}
        if labels is None or batch.get("decoder_inputs_embeds") is not None:
            return {}
        prepare: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if prepare is not None:
            return {"decoder_input_ids": prepare(labels=labels.clone())}  # FSMT writes to it
        ids = labels.roll(1, dims=1)
        ids[:, 0] = own
        return {"decoder_input_ids": ids.masked_fill(ids == IGNORED, config.pad_token_id)}
