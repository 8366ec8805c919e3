"""Searching for the options of a training: what is tried, what came of it."""

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
    "check_optuna",
    "in_use",
    "read_search_space",
]
