"""Can this teacher teach this student? What would train quietly and badly is refused here."""

from hf_distill.compatibility.check import PairReport, check_pair, head_of
from hf_distill.compatibility.findings import Finding, raise_on_errors
from hf_distill.compatibility.inputs import check_inputs, input_names
from hf_distill.compatibility.models import check_models, input_limit, longest_input
from hf_distill.compatibility.processors import check_preparation
from hf_distill.compatibility.teacher_check import check_teacher
from hf_distill.compatibility.tokenizers import vocabulary_size

__all__ = [
    "Finding",
    "PairReport",
    "check_inputs",
    "check_models",
    "check_pair",
    "check_preparation",
    "check_teacher",
    "head_of",
    "input_limit",
    "input_names",
    "longest_input",
    "raise_on_errors",
    "vocabulary_size",
]
