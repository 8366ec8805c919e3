"""A teacher whose outputs were computed beforehand and come with the data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn

from hf_distill.alignment import Alignment
from hf_distill.heads import TaskHead
from hf_distill.layers.mapping import LayerPairs
from hf_distill.teachers.base import Runtime, Teacher
from hf_distill.teachers.columns import SignalDescription, TeacherSignalCollator, to_dense
from hf_distill.teachers.columns.description import (
    COLUMN,
    HIDDEN_STATES,
    LOGITS,
    REST,
    TOKEN_IDS,
)
from hf_distill.teachers.identity import TeacherIdentity


class CachedTeacher(Teacher):
    """Gives the outputs that a batch carries in its teacher columns.

    Args:
        description: what the columns mean.
        head: the task.
        alignment: how it reads a batch.
    """

    is_cached = True

    def __init__(
        self, description: SignalDescription, head: TaskHead, alignment: Alignment
    ) -> None:
        self.description = description
        self.model = meta_model(description)
        """The teacher without weights, for everything that its shape tells."""
        self.input_names = frozenset(description.columns)
        self.identities = [
            TeacherIdentity(
                description.teacher,
                None,
                description.weights,
                description.top_k,
                description.column,
            )
        ]
        self._head = head
        self._alignment = alignment

    def check_layers(self, pairs: LayerPairs) -> None:
        """Check that what is compared was stored; ``auto`` has no pairs yet."""
        stored = self.description.hidden_layers
        listed = ", ".join(map(str, stored))
        if not pairs:
            raise ValueError(
                "layer_mapping='auto' looks at all layers of the teacher, and only the hidden "
                f"states of the layers {listed} are cached; choose uniform, last, first or a list."
            )
        assert isinstance(pairs, list)  # of encoders with decoders no layer is stored
        missing = [pair.teacher for pair in pairs if pair.teacher not in stored]
        if missing:
            raise ValueError(
                f"The student is to learn from the teacher's layer {missing[0]}, but the cached "
                f"outputs have the hidden states of the layers {listed} only; cache them with "
                "hidden_layers, or change layer_mapping."
            )

    def check_data(self, dataset: Any, name: str) -> None:
        """Check that the teacher columns of other data, if any, have the same meaning."""
        other = SignalDescription.of(dataset)
        changed = [] if other is None else self.description.differences(other)
        if other is not None and changed:
            raise ValueError(
                f"{name} has the cached outputs of {other.teacher!r}, which cannot be read as "
                f"those of {self.description.teacher!r} in the training data, because these "
                f"differ: {', '.join(changed)}. Cache both with the same teacher and options, or "
                f"remove the teacher_… columns from {name} to evaluate without the teacher."
            )

    def has_outputs(self, batch: Mapping[str, Any]) -> bool:
        """Return whether a batch carries the teacher's outputs."""
        return batch.get(LOGITS) is not None

    def read_columns(self, dataset: Any, data_collator: Any) -> tuple[Any, Any]:
        """Return training data and data collator so that batches carry the teacher columns."""
        if isinstance(dataset, Dataset) and dataset.format["type"] is None:
            # As Python's numbers, reading them takes ten times longer.
            dataset = dataset.with_format(
                "numpy", columns=self.description.columns, output_all_columns=True
            )
        return dataset, TeacherSignalCollator(
            data_collator, self._head, self.description, self._alignment
        )

    def __call__(
        self,
        batch: Mapping[str, Any],
        runtime: Runtime,
        further_inputs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Mapping[str, Any]:
        """Return the stored outputs of a batch, in float32; hidden states if there are any.

        Raises:
            ValueError: the batch has no teacher columns.
        """
        if not self.has_outputs(batch):
            raise ValueError(
                f"A batch has no {LOGITS}, only: {', '.join(batch)}. The data collator must keep "
                "rows whole, and the data set its teacher columns; or pass a live teacher "
                "(teacher_model)."
            )
        logits = batch[LOGITS].float()
        if self.description.top_k is not None:
            logits = to_dense(logits, batch[TOKEN_IDS], batch[REST], self.description.classes)
        names = self._head.logit_names
        parts = (logits,) if len(names) == 1 else logits.unbind(dim=-1)
        outputs: dict[str, Any] = dict(zip(names, parts, strict=True))
        if HIDDEN_STATES in batch:
            layers = self.description.hidden_layers
            states: list[Tensor | None] = [None] * (max(layers) + 1)
            for place, layer in enumerate(layers):
                # As a model gives them: each choice of a question is an input.
                states[layer] = batch[HIDDEN_STATES].flatten(0, -4)[:, :, place].float()
            outputs["hidden_states"] = states
        return outputs


def meta_model(description: SignalDescription) -> nn.Module:
    """Return the teacher as its configuration describes it, on the meta device: without weights.

    An empty module if it is not a model of transformers; with the labels of a column.
    """
    model_class: Any = getattr(transformers, description.architecture, None)
    if description.architecture == COLUMN:
        column: Any = nn.Module()
        column.config = description.read_config()
        return column
    if description.config is None or model_class is None:
        return nn.Module()
    config = description.read_config()
    with torch.device("meta"):
        model: nn.Module = model_class(config)
    return model.eval()
