"""Searching for the options of a training: what is tried, what came of it."""

from hf_distill.sweeping.manifest import changed_parts, content_hash, read_manifest
from hf_distill.sweeping.space import Choices, Range, SearchSpace, Value, read_search_space
from hf_distill.sweeping.study import SAMPLERS, SweepStudy, Trial, check_optuna, in_use

__all__ = [
    "SAMPLERS",
    "Choices",
    "Range",
    "SearchSpace",
    "SweepStudy",
    "Trial",
    "Value",
    "changed_parts",
    "check_optuna",
    "content_hash",
    "in_use",
    "read_manifest",
    "read_search_space",
]
