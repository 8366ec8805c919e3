"""Labels from a language model: its next-token scores over words, as a column of probabilities."""

from hf_distill.labelling.label import Labelled, label_dataset

__all__ = ["Labelled", "label_dataset"]
