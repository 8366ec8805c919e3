"""The teachers that are cached: loaded, checked against each other, run without a student."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from hf_distill.checks import check_inputs
from hf_distill.compatibility import check_models, check_preparation, enforce
from hf_distill.files import display_name
from hf_distill.heads import TaskHead, find_head, head_of_class, head_of_task, unwrapped
from hf_distill.loading import read_config
from hf_distill.teachers import EnsembleTeacher, LiveTeacher, load_teacher
from hf_distill.teachers.caching.fingerprints import weights_hash
from hf_distill.teachers.columns import describe_model

logger = logging.getLogger(__name__)

MIXED_PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class _Runtime:
    """What a teacher asks an ``Accelerator`` for, where there is no student to share one with."""

    device: torch.device
    mixed_precision: str
    distributed_type: DistributedType = DistributedType.NO

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = MIXED_PRECISIONS[self.mixed_precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


class Teachers:
    """One teacher, or several that are averaged in the first one's order of labels.

    Args:
        sources: modules, Hub ids or directories.
        task: as the Hub calls it; by default what the first was made for.
        weights: as for ``EnsembleTeacher``.
        combination: as for ``EnsembleTeacher``.
        dtype: number format of the weights; as they were saved by default.
        attn_implementation: as in ``from_pretrained``.
        device: where they run.
        mixed_precision: a key of ``MIXED_PRECISIONS``.

    Raises:
        ValueError: one cannot be loaded, or they do not fit together.
    """

    def __init__(
        self,
        sources: Sequence[nn.Module | str | os.PathLike[str]],
        task: str | None,
        *,
        weights: Sequence[float] | None,
        combination: str,
        dtype: str | None,
        attn_implementation: str | None,
        device: torch.device,
        mixed_precision: str,
    ) -> None:
        if mixed_precision not in MIXED_PRECISIONS:
            raise ValueError(
                f"mixed_precision must be one of {', '.join(MIXED_PRECISIONS)}, but it is "
                f"{mixed_precision!r}."
            )
        self.device = device
        self._runtime = cast(Accelerator, _Runtime(device, mixed_precision))
        self.head = _head_of(sources[0], task)
        heads = [_head_of(sources[0], task) for _ in sources]
        self._models = [
            load_teacher(
                source, head, dtype=dtype, attn_implementation=attn_implementation, device=device
            )
            for source, head in zip(sources, heads, strict=True)
        ]
        for model, head in zip(self._models[1:], heads[1:], strict=True):
            enforce(check_models(model, self.first, head), logger)
        live = [LiveTeacher(m, h) for m, h in zip(self._models, heads, strict=True)]
        self._teacher: LiveTeacher | EnsembleTeacher = live[0]
        self._mixture: dict[str, Any] = {}
        if len(live) > 1:
            ensemble = EnsembleTeacher(live, heads, weights, combination)
            self._teacher = ensemble
            self._mixture = {"weights": ensemble.weights, "combination": combination}
        self._names = [_name(s, m) for s, m in zip(sources, self._models, strict=True)]
        self._hashes = [weights_hash(model) for model in self._models]

    @property
    def first(self) -> nn.Module:
        """The first teacher."""
        return self._models[0]

    @property
    def name(self) -> str:
        """What reports call them."""
        return " + ".join(self._names)

    @property
    def architecture(self) -> tuple[str, dict[str, Any] | None]:
        """Class and configuration of the first."""
        return describe_model(self.first)

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights; of several that of theirs and of how they are averaged."""
        if len(self._hashes) == 1:
            return self._hashes[0]
        return sha256(repr((self._hashes, sorted(self._mixture.items()))).encode()).hexdigest()

    @property
    def input_names(self) -> frozenset[str]:
        """What their forward takes."""
        return self._teacher.input_names

    def described(self) -> dict[str, Any]:
        """What a manifest says of them."""
        return {"names": self._names, "weights": self._hashes, **self._mixture}

    def check_preparation(self, processing_class: Any) -> None:
        """Check that the data was prepared as the teachers were trained with it.

        Raises:
            ValueError: with another tokenizer, for example.
        """
        found = [check_preparation(m, m, self.head, processing_class) for m in self._models]
        enforce(found, logger)

    def check_inputs(self, batch: Mapping[str, Any]) -> None:
        """Check that all teachers can take a batch.

        Raises:
            ValueError: with ids that one does not know, for example.
        """
        check_inputs(self._teacher, self.first, self.head, batch)

    def __call__(self, batch: Mapping[str, Any], *, hidden_states: bool) -> Mapping[str, Any]:
        """The outputs for a batch, without gradient.

        Args:
            batch: on the device.
            hidden_states: with those of all layers.
        """
        if not hidden_states:
            return self._teacher(batch, self._runtime)
        if len(self._models) > 1:
            raise ValueError(
                "hidden_layers: the hidden states of several teachers cannot be averaged; take one."
            )
        return self._teacher(batch, self._runtime, {"output_hidden_states": True})


def _head_of(source: nn.Module | str | os.PathLike[str], task: str | None) -> TaskHead:
    if isinstance(source, nn.Module):
        source = unwrapped(source)
        config: Any = getattr(source, "config", None)
        head, what = find_head(source), type(source).__name__
    else:
        config = read_config(os.fspath(source), "teacher")
        what = (config.architectures or ["model of an unknown class"])[0]
        head = head_of_class(what, config)
    if task is not None:
        return head_of_task(task, config)
    if head is None:
        raise ValueError(
            f"What the teacher, a {what}, is for cannot be told from its class, or there is no "
            "distillation for it; say what it is to do (task)."
        )
    return head


def _name(source: nn.Module | str | os.PathLike[str], model: nn.Module) -> str:
    if not isinstance(source, nn.Module):
        return display_name(source)
    model = unwrapped(model)
    named: Any = getattr(model, "name_or_path", None)
    return display_name(named) if named else type(model).__name__
