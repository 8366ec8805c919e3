"""Search for the options of a training: what is tried next, and what came of it."""

from hf_distill.sweeping.space import SearchSpace, Value, read_search_space
from hf_distill.sweeping.study import begin_trial, interrupted_trial, open_study

__all__ = [
    "SearchSpace",
    "Value",
    "begin_trial",
    "interrupted_trial",
    "open_study",
    "read_search_space",
]
