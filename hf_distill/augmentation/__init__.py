"""Data augmentation: copies of texts in which a model or word vectors have replaced words."""

from __future__ import annotations

from hf_distill.augmentation.dataset import augment_dataset
from hf_distill.augmentation.squad import AugmentationSummary, augment_squad
from hf_distill.augmentation.substitution import WordSubstituter

__all__ = ["AugmentationSummary", "WordSubstituter", "augment_dataset", "augment_squad"]
