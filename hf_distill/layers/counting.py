"""How many tokens, and pairs of tokens, a batch has: what intermediate losses are means over."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.heads import unwrap_peft
from hf_distill.heads.base import as_visible, attention_mask, main_input


class TokenCount:
    """Which positions of a batch are tokens, and how many tokens and pairs of them it has.

    Args:
        model: the student.
    """

    def __init__(self, model: nn.Module) -> None:
        self._causal = any(getattr(module, "is_causal", False) for module in model.modules())
        takes = inspect.signature(unwrap_peft(model).forward).parameters
        self._packs = self._causal and "position_ids" in takes
        base: Any = getattr(model, "base_model", model)
        self._mask_of_features: Any = getattr(base, "_get_feature_vector_attention_mask", None)
        self._feature_lengths: Any = getattr(base, "_get_feat_extract_output_lengths", None)

    def mask(self, batch: Mapping[str, Any], length: int) -> Tensor | None:
        """Bool, ``(rows, length)``: False is padding; ``None`` if there is none.

        Raises:
            ValueError: the attention mask is of another length.
        """
        mask = _attention_mask(batch)
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

    def tokens(self, batch: Mapping[str, Any], length: int | None = None) -> int | Tensor:
        """How many tokens a batch has, up to a factor that is the same for all batches."""
        lengths = self._lengths(batch)
        return _rows(batch) * (length or _length(batch)) if lengths is None else lengths.sum()

    def pairs(self, batch: Mapping[str, Any], length: int | None = None) -> int | Tensor:
        """How many pairs of tokens see each other, up to a factor, if attention is not local."""
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            queries = _attention_mask(batch)
            assert queries is not None
            seen: Tensor = (as_visible(mask).any(1) & queries[:, :, None]).sum()
            return seen
        if self._packs and (places := _places_in_texts(batch)) is not None:
            return places.sum() + places.numel()
        lengths = self._lengths(batch)
        if lengths is None:
            return _rows(batch) * self._pairs_of(length or _length(batch))
        total: Tensor = self._pairs_of(lengths).sum()
        return total

    @staticmethod
    def is_packed(batch: Mapping[str, Any]) -> bool:
        """Whether a row has several texts that do not see each other."""
        if batch.get("cu_seq_lens_q") is not None:
            return True
        places = _places_in_texts(batch)
        return places is not None and bool((places == 0).sum() > len(places))

    def _pairs_of(self, length: Any) -> Any:
        return length * (length + 1) // 2 if self._causal else length * length

    def _lengths(self, batch: Mapping[str, Any]) -> Tensor | None:
        mask = _attention_mask(batch)
        if mask is None:
            return None
        lengths: Tensor = mask.sum(-1)
        return lengths if self._feature_lengths is None else self._feature_lengths(lengths)


def _attention_mask(batch: Mapping[str, Any]) -> Tensor | None:
    """``(rows, length)``: which tokens are no padding; ``None`` if all are."""
    mask = attention_mask(batch)
    return None if mask is None else mask.flatten(0, -2)  # of each choice, in multiple choice


def _places_in_texts(batch: Mapping[str, Any]) -> Tensor | None:
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


def _rows(batch: Mapping[str, Any]) -> int:
    main = main_input(batch)
    if "input_ids" in batch:
        return main.numel() // main.shape[-1]
    return main.shape[0]


def _length(batch: Mapping[str, Any]) -> int:
    """Without a mask, rows of images and sounds are equally long: how long does not matter."""
    return int(batch["input_ids"].shape[-1]) if "input_ids" in batch else 1
