"""How many tokens, and pairs of tokens, a batch has: what intermediate losses are means over."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.heads import TaskHead, find_head, unwrap_peft
from hf_distill.heads.base import as_visible, attention_mask, main_input

Batch = Mapping[str, Any]


class Tokens:
    """Which positions of the input are tokens, and how many there are.

    Args:
        model: the student.
    """

    def __init__(self, model: nn.Module) -> None:
        base: Any = getattr(model, "base_model", model)
        self._mask_of_features: Any = getattr(base, "_get_feature_vector_attention_mask", None)
        self._feature_lengths: Any = getattr(base, "_get_feat_extract_output_lengths", None)
        # Whisper pads sounds with silence, and listens to it.
        kind = getattr(getattr(model, "config", None), "model_type", None)
        self._has_padding = kind != "whisper"

    def mask(self, batch: Batch, length: int) -> Tensor | None:
        """Bool, ``(rows, length)``: False is padding; ``None`` if there is none.

        Raises:
            ValueError: the attention mask is of another length.
        """
        mask = self._attention_mask(batch)
        if mask is None:
            return None
        if mask.shape[-1] == length:
            return mask.bool()
        if self._mask_of_features is not None:
            features: Tensor = self._mask_of_features(length, mask)
            return features.bool()
        raise ValueError(
            f"The attention_mask has {mask.shape[-1]} positions and the hidden states {length}, so "
            "it is not known which of them are padding. Use stage='prediction'."
        )

    def lengths(self, batch: Batch) -> Tensor | None:
        """Count the tokens of each row, up to a factor; ``None`` if there is no padding."""
        mask = self._attention_mask(batch)
        if mask is None:
            return None
        lengths: Tensor = mask.sum(-1)
        return lengths if self._feature_lengths is None else self._feature_lengths(lengths)

    def count(self, batch: Batch, length: int | None = None) -> int | Tensor:
        """Count the tokens of a batch, up to a factor that is the same for all batches."""
        lengths = self.lengths(batch)
        return _rows(batch) * (length or _length(batch)) if lengths is None else lengths.sum()

    def _attention_mask(self, batch: Batch) -> Tensor | None:
        mask = attention_mask(batch) if self._has_padding else None
        return None if mask is None else mask.flatten(0, -2)  # of each choice, in multiple choice


class TargetTokens(Tokens):
    """Which positions of a decoder's input count: those whose logits do.

    For a task without a target, the decoder reads the input, one position later.

    Args:
        model: the student.
        head: its head.
    """

    def __init__(self, model: nn.Module, head: TaskHead | None) -> None:
        super().__init__(model)
        self._head = head if head is not None and head.target_names else None

    def mask(self, batch: Batch, length: int) -> Tensor:
        """Bool, ``(rows, length)``: False does not count."""
        if self._head is None:
            mask = super().mask(batch, length)
            return _all_of(batch, length) if mask is None else mask
        self._head.count_rows(batch)  # raises without a target
        mask = self._head.compared_positions(batch)
        assert mask is not None
        return mask

    def lengths(self, batch: Batch) -> Tensor:
        """Count the positions of each row that count."""
        length = 0 if self._head else _length(batch)
        return self.mask(batch, length).sum(-1)

    def keys(self, batch: Batch, length: int) -> Tensor:
        """Bool, ``(rows, length)``: the positions that the decoder attends to, if not later."""
        mask = batch.get("decoder_attention_mask")
        return _all_of(batch, length) if mask is None else mask.bool()


@dataclass(frozen=True)
class Part:
    """The tokens of a part of a model, and the pairs of them whose attention is compared."""

    queries: Tokens
    keys: Tokens
    causal: bool
    packs: bool = False
    """Whether rows may have several texts, by their ``position_ids``."""

    def masks(self, batch: Batch, queries: int, keys: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the masks of queries and keys as attention losses take them."""
        mask = self.queries.mask(batch, queries)
        if self.queries is not self.keys:
            key_mask = self.keys.mask(batch, keys)
            return mask, _all_of(batch, keys) if key_mask is None else key_mask
        if isinstance(self.queries, TargetTokens):
            return mask, self.queries.keys(batch, queries)
        return mask, None

    def pairs(self, batch: Batch, queries: int | None = None, keys: int | None = None) -> Any:
        """Count the pairs of tokens that see each other, up to a factor, if that is not local."""
        if self.queries is not self.keys:
            return self._crossed(batch, keys)
        if isinstance(self.queries, TargetTokens):
            return self._within_target(batch)
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            tokens = self.queries.mask(batch, mask.shape[-1])
            assert tokens is not None
            return (as_visible(mask).any(1) & tokens[:, :, None]).sum()
        if self.packs and (places := _places_in_texts(batch)) is not None:
            return places.sum() + places.numel()
        lengths = self.queries.lengths(batch)
        if lengths is None:
            return _rows(batch) * self._pairs_of(queries or _length(batch))
        return self._pairs_of(lengths).sum()

    def _pairs_of(self, length: Any) -> Any:
        return length * (length + 1) // 2 if self.causal else length * length

    def _crossed(self, batch: Batch, keys: int | None) -> Tensor:
        lengths, others = self.queries.lengths(batch), self.keys.lengths(batch)
        assert lengths is not None
        found: Tensor = lengths * (keys or _length(batch) if others is None else others)
        return found.sum()

    def _within_target(self, batch: Batch) -> Tensor:
        assert isinstance(self.queries, TargetTokens)
        mask = self.queries.mask(batch, _length(batch))
        seen: Tensor = self.queries.keys(batch, mask.shape[-1]).cumsum(-1)
        return (mask * seen).sum()


def parts_of(model: nn.Module, stacks: Collection[str]) -> dict[str, Part]:
    """Return the parts of a model with these stacks.

    Args:
        model: the student.
        stacks: as ``stacks_of`` names them.
    """
    tokens = Tokens(model)
    if "" in stacks:
        causal = any(getattr(module, "is_causal", False) for module in model.modules())
        takes = inspect.signature(unwrap_peft(model).forward).parameters
        return {"": Part(tokens, tokens, causal, packs=causal and "position_ids" in takes)}
    target = TargetTokens(model, find_head(model))
    return {
        "encoder": Part(tokens, tokens, causal=False),
        "decoder": Part(target, target, causal=True),
        "cross": Part(target, tokens, causal=False),
    }


def is_packed(batch: Batch) -> bool:
    """Whether a row has several texts that do not see each other."""
    if batch.get("cu_seq_lens_q") is not None:
        return True
    places = _places_in_texts(batch)
    return places is not None and bool((places == 0).sum() > len(places))


def _places_in_texts(batch: Batch) -> Tensor | None:
    """The place of each token in its text, from 0, where rows may have several.

    By the rule of transformers: a text begins where positions do not rise by 1, if there is no
    attention mask.
    """
    positions = batch.get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 2 or "attention_mask" in batch:
        return None
    index = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    goes_on = positions.diff(prepend=positions[:, :1] - 1) == 1
    begin = index.masked_fill(goes_on, 0).cummax(-1).values
    return index - begin


def _rows(batch: Batch) -> int:
    main = main_input(batch)
    if "input_ids" in batch:
        return main.numel() // main.shape[-1]
    return main.shape[0]


def _length(batch: Batch) -> int:
    """Without a mask, rows of images and sounds are equally long: how long does not matter."""
    return int(batch["input_ids"].shape[-1]) if "input_ids" in batch else 1


def _all_of(batch: Batch, length: int) -> Tensor:
    return torch.ones(_rows(batch), length, dtype=torch.bool, device=main_input(batch).device)
