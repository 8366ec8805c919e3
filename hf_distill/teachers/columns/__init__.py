"""A teacher's outputs as columns of a data set: what they mean, how they are written and read."""

from hf_distill.teachers.columns.collator import TeacherSignalCollator
from hf_distill.teachers.columns.description import (
    DTYPES,
    SignalDescription,
    check_not_lost,
    describe_model,
)
from hf_distill.teachers.columns.encoding import (
    checksum,
    encode,
    identities,
    largest_with,
    split_rows,
    take_hidden_states,
    take_logits,
    to_array,
    to_dense,
)

__all__ = [
    "DTYPES",
    "SignalDescription",
    "TeacherSignalCollator",
    "check_not_lost",
    "checksum",
    "describe_model",
    "encode",
    "identities",
    "largest_with",
    "split_rows",
    "take_hidden_states",
    "take_logits",
    "to_array",
    "to_dense",
]
