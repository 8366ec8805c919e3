"""Data augmentation: copies of texts in which a model or word vectors have replaced words."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_distill.augmentation.options import AugmentationOptions, SquadAugmentationOptions

if TYPE_CHECKING:
    from hf_distill.augmentation.dataset import augment_dataset
    from hf_distill.augmentation.squad import AugmentationSummary, augment_squad
    from hf_distill.augmentation.substitution import WordSubstituter

__all__ = [
    "AugmentationOptions",
    "AugmentationSummary",
    "SquadAugmentationOptions",
    "WordSubstituter",
    "augment_dataset",
    "augment_squad",
]

# Imported when first used: `hf-distill augment --help` should not wait for torch.
_HOMES = {
    "AugmentationSummary": "squad",
    "WordSubstituter": "substitution",
    "augment_dataset": "dataset",
    "augment_squad": "squad",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
