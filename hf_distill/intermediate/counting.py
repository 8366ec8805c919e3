"""How many tokens, and pairs of tokens, a batch has: what intermediate losses are means over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_distill.heads.base import main_input


class TokenCount:
    """Which positions of a batch are tokens, and how many tokens and pairs of them it has.

    Args:
        model: the student.
    """

    def __init__(self, model: nn.Module) -> None:
        self._causal = any(getattr(module, "is_causal", False) for module in model.modules())
        base: Any = getattr(model, "base_model", model)
        self._mask_of_features: Any = getattr(base, "_get_feature_vector_attention_mask", None)
        self._feature_lengths: Any = getattr(base, "_get_feat_extract_output_lengths", None)

    def mask(self, batch: Mapping[str, Any], length: int) -> Tensor | None:
        """Bool, ``(rows, length)``: False is padding; ``None`` if there is none.

        Args:
            batch: as the student gets it.
            length: of its hidden states.

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
        lengths = self._lengths(batch)
        if lengths is None:
            return _rows(batch) * self._pairs_of(length or _length(batch))
        total: Tensor = self._pairs_of(lengths).sum()
        return total

    def _pairs_of(self, length: Any) -> Any:
        return length * (length + 1) // 2 if self._causal else length * length

    def _lengths(self, batch: Mapping[str, Any]) -> Tensor | None:
        mask = _attention_mask(batch)
        if mask is None:
            return None
        lengths: Tensor = mask.sum(-1)
        return lengths if self._feature_lengths is None else self._feature_lengths(lengths)


def _attention_mask(batch: Mapping[str, Any]) -> Tensor | None:
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor):
        return None
    return mask.flatten(0, -2)  # of each choice, in multiple choice


def _rows(batch: Mapping[str, Any]) -> int:
    main = main_input(batch)
    if "input_ids" in batch:
        return main.numel() // main.shape[-1]
    return main.shape[0]


def _length(batch: Mapping[str, Any]) -> int:
    """Without a mask, rows of images and sounds are equally long: how long does not matter."""
    return int(batch["input_ids"].shape[-1]) if "input_ids" in batch else 1
