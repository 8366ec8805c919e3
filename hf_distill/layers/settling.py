"""Hidden states of both models before training, for what of the layers depends on data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from datasets import IterableDataset
from torch import Tensor

from hf_distill.layers.counting import Batch, Part
from hf_distill.layers.layer_losses import HIDDEN_STATES, check_hidden_states
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.similarity import LayerSimilarity
from hf_distill.layers.stacks import name_of
from hf_distill.restoring import evaluating

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 64

RunTeacher = Callable[[Batch, Mapping[str, Any]], Mapping[str, Tensor]]
"""(batch, further inputs) -> outputs."""


def readable_sample(dataset: Any, *, sharded: bool, chooses_pairs: bool) -> Any:
    """Return the data that batches are made of before training.

    ``None`` where there are none, so that projections stay as they were drawn.

    Args:
        dataset: the training data.
        sharded: whether the student will be sharded by the time that they can be used.
        chooses_pairs: ``layer_mapping="auto"`` needs them.

    Raises:
        ValueError: it needs them, and the student is sharded or the data cannot be read twice.
    """
    if sharded:
        if chooses_pairs:
            raise ValueError(
                "layer_mapping='auto' looks at the whole student before it is sharded, which "
                "FSDP and DeepSpeed do not allow; choose uniform, last, first or a list."
            )
        return None
    if isinstance(dataset, IterableDataset):
        return list(dataset.take(SAMPLE_ROWS))
    if isinstance(dataset, dict) or hasattr(dataset, "__len__"):
        return dataset
    unread = f"some rows before training, and a {type(dataset).__name__} cannot be read"
    if chooses_pairs:
        raise ValueError(
            f"layer_mapping='auto' looks at {unread} twice; pass a Dataset or a streamed "
            "datasets.IterableDataset, or choose uniform, last, first or a list."
        )
    logger.info("The projections begin at random: they would be fitted to %s twice.", unread)
    return None


@dataclass(frozen=True)
class SampledStates:
    """Runs both models on some batches, for their hidden states."""

    student: Any
    parts: Mapping[str, Part]
    accelerator: Accelerator
    sample: Callable[[], Iterable[Batch]]
    """Returns the batches, on the device."""
    run_teacher: RunTeacher
    student_inputs: Callable[[Batch], Batch]
    """Makes the student's inputs of a batch, without labels."""

    def of(self, stack: str) -> Iterator[tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]]:
        """Yield the mask of each batch, and the states of student and teacher by layer."""
        asked, name = {"output_hidden_states": True}, name_of(stack, HIDDEN_STATES)
        try:
            with evaluating(self.student):
                for batch in self.sample():
                    with torch.no_grad():
                        theirs: Any = self.run_teacher(batch, asked)[name]
                        with self.accelerator.autocast():
                            ours = self.student(**self.student_inputs(batch), **asked)[name]
                    yield self.parts[stack].queries.mask(batch, ours[0].shape[1]), ours, theirs
        finally:
            # Without a backward pass FSDP2 leaves the outermost weights whole.
            getattr(self.student, "reshard", lambda: None)()

    def of_pairs(
        self, stack: str, pairs: Sequence[LayerPair]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the valid tokens of each pair of layers, with the student's layer."""
        for mask, all_ours, all_theirs in self.of(stack):
            valid = slice(None) if mask is None else mask.flatten()
            for pair in pairs:
                ours, theirs = all_ours[pair.student], all_theirs[pair.teacher]
                check_hidden_states(ours, theirs, pair)
                yield pair.student, ours.flatten(0, 1)[valid], theirs.flatten(0, 1)[valid]

    def similarity(self, stack: str) -> Tensor:
        """Return the linear CKA, ``(student layers + 1, teacher layers + 1)``."""
        similarity = LayerSimilarity()
        for mask, ours, theirs in self.of(stack):
            similarity.add(ours, theirs, token_mask=mask)
        return similarity.matrix()
