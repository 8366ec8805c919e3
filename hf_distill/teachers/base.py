"""``Teacher``: called with a batch, it returns a teacher's outputs for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from hf_distill.layers.mapping import LayerPairs
from hf_distill.teachers.identity import TeacherIdentity

MIXED_PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class OneProcess:
    """What a teacher needs of an ``Accelerator``, without the global state that one sets up."""

    device: torch.device
    mixed_precision: str = "no"
    distributed_type: DistributedType = DistributedType.NO

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the mixed precision."""
        dtype = MIXED_PRECISIONS[self.mixed_precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


Runtime: TypeAlias = Accelerator | OneProcess


class Teacher:
    """A model that runs, several that are averaged, or outputs that come with the data.

    Attributes:
        model: the frozen teacher; an ``nn.ModuleList`` of several; a model without weights if the
            outputs are cached.
        input_names: the entries of a batch that are read.
        identities: which teachers they are.
        is_cached: whether the outputs come with the data, so that no model runs.
    """

    model: nn.Module
    input_names: frozenset[str]
    identities: Sequence[TeacherIdentity] = ()
    is_cached = False

    def __call__(
        self,
        batch: Mapping[str, Any],
        runtime: Runtime,
        further_inputs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Mapping[str, Any]:
        """Return the outputs for a batch, without gradient.

        Args:
            batch: the student's batch.
            runtime: the student's accelerator: devices and precision.
            further_inputs: inputs that ask for more than logits, such as ``output_attentions``.
        """
        raise NotImplementedError

    @property
    def members(self) -> Sequence[Teacher]:
        """The teachers that are averaged; this one alone if there is one."""
        return [self]

    def has_outputs(self, batch: Mapping[str, Any]) -> bool:
        """Return whether there are outputs for a batch."""
        return True

    def check_data(self, dataset: Any, name: str) -> None:
        """Check that teacher columns of ``dataset``, called ``name`` in errors, can be read."""

    def check_layers(self, pairs: LayerPairs) -> None:
        """Check that there are outputs of the layers that are compared."""

    def read_columns(self, dataset: Any, data_collator: Any) -> tuple[Any, Any]:
        """Return training data and data collator so that batches carry the teacher columns."""
        return dataset, data_collator
