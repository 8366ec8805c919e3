"""Running a teacher over the parts of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from hf_distill.compatibility import check_inputs
from hf_distill.compatibility.precision import rounding_of, rounding_unit
from hf_distill.heads import TaskHead
from hf_distill.heads.base import PositionHead, attention_mask, main_input, unusable_rows
from hf_distill.restoring import preserve_rng_state
from hf_distill.teachers.base import MIXED_PRECISIONS, OneProcess, Teacher
from hf_distill.teachers.caching.fingerprints import row_lengths
from hf_distill.teachers.caching.parts import Part, PartFiles
from hf_distill.teachers.columns import (
    SignalDescription,
    checksum,
    describe_model,
    encode,
    identities,
    largest_with,
    split_rows,
    take_hidden_states,
    take_logits,
    to_array,
)
from hf_distill.teachers.columns.description import CHECKSUM, HIDDEN_STATES

Collator = Callable[[list[Any]], Any]
STORED_IDS = "stored_ids"
"""The output of a model that says which classes to store, ``(batch, length, top_k)``."""

_PROBED_ROWS = 8


class PartComputer:
    """Computes what is stored of the rows of a data set.

    With ``own_tokens`` the text's next token is among the ``top_k`` that are stored of a position.
    """

    def __init__(
        self,
        teacher: Teacher,
        head: TaskHead,
        runtime: OneProcess,
        inputs: Dataset,
        data_collator: Collator,
        *,
        dtype: str,
        top_k: int | None,
        hidden_layers: Sequence[int],
        batch_size: int,
        own_tokens: bool = False,
    ) -> None:
        self._teacher = teacher
        self._head = head
        self._runtime = runtime
        self._inputs = inputs
        self._collator = data_collator
        self._dtype = dtype
        self._top_k = top_k
        self._hidden_layers = tuple(hidden_layers)
        self._asks = MappingProxyType({"output_hidden_states": True} if hidden_layers else {})
        self._batch_size = batch_size
        self._own_tokens = own_tokens
        self._lengths = row_lengths(inputs)

    def check_collator(self) -> None:
        """Make the first batch twice.

        Raises:
            ValueError: the two differ, so what is stored would belong to another input; or rows are
                not kept apart.
        """
        rows = range(min(self._batch_size, len(self._inputs)))
        with preserve_rng_state():
            first, second = self._batch(rows), self._batch(rows)
        made = len(main_input(first))
        if made != len(rows):
            raise ValueError(
                f"The data collator made {made} inputs of {len(rows)} rows, so the teacher's "
                "outputs have no row to belong to; use one that keeps rows apart, or train with a "
                "live teacher (teacher_model)."
            )
        for name in first:
            values = first[name], second.get(name)
            if isinstance(values[0], Tensor) and not _same(*values):
                raise ValueError(
                    f"The data collator (or a transform of the data) makes other {name} of the "
                    "same rows each time, as masking or augmenting at random does, so stored "
                    "outputs would belong to inputs that never come again. Prepare the data once "
                    "(map it, with the masks in its labels), or train with a live teacher "
                    "(teacher_model)."
                )

    def check_padding(self) -> None:
        """Look at what padding does to the outputs for the shortest of some rows.

        Raises:
            ValueError: they depend on how long the batch is, so they would not be those of the
                batch that the student sees.
        """
        rows = self._probed()
        batch = self._on_device(self._batch(rows))
        mask = attention_mask(batch)
        if mask is None or len(mask) != len(rows) or bool(mask.all()):
            return
        place = int(mask.flatten(1).sum(-1).argmin())
        alone = self._on_device(self._batch([rows[place]]))
        runtime, unit = self._most_exact()
        together = self._logits(batch, runtime)
        found, wanted = together[place].float(), self._logits(alone, runtime)[0].float()
        most = rounding_of(together, unit)
        if not torch.allclose(found, wanted, rtol=0.0, atol=most, equal_nan=True):
            raise ValueError(
                f"The teacher's outputs for row {rows[place]} depend on how far the data collator "
                "pads it, so stored ones would not fit its batch. Set padding_side='right' in the "
                "tokenizer (positions may count from the padding on), see that the teacher's "
                "config.pad_token_id is the tokenizer's, pad all rows to one length "
                "(padding='max_length'), or train with a live teacher (teacher_model)."
            )

    def _most_exact(self) -> tuple[OneProcess, float]:
        """Return how to compute with the least rounding, and the unit of it."""
        models = [one.model for one in self._teacher.members]
        units, runtime = [rounding_unit(model) for model in models], self._runtime
        kernels = [getattr(getattr(m, "config", None), "_attn_implementation", "") for m in models]
        if any("flash" in str(kernel) for kernel in kernels):  # these take no float32
            mixed = MIXED_PRECISIONS[runtime.mixed_precision]
            units.append(torch.finfo(mixed or torch.float32).eps)
        else:
            runtime = replace(runtime, mixed_precision="no")
        return runtime, max(units)

    def _logits(self, batch: Mapping[str, Any], runtime: OneProcess) -> Sequence[Tensor]:
        """Return the logits of each row that the loss looks at."""
        logits = take_logits(self._head, self._teacher(batch, runtime, self._asks), batch)
        positions = self._head.compared_positions(batch)
        return logits.split(1 if positions is None else positions.sum(dim=1).tolist())

    def _probed(self) -> list[int]:
        return [*range(min(_PROBED_ROWS, len(self._inputs))), int(self._lengths.argmax())]

    def probe(self) -> int:
        """Return a checksum of what the data collator makes of the first rows and the longest."""
        found = identities(self._head, self._batch(self._probed()))
        return checksum([array for identity in found for array in identity], [])

    def describe(self, weights: str, tokenizer: str | None) -> SignalDescription:
        """Describe the columns, from the outputs for the longest row.

        Raises:
            ValueError: ``top_k`` or ``hidden_layers`` does not fit the teacher.
        """
        first, *_ = self._teacher.members
        batch = self._on_device(self._batch([int(self._lengths.argmax())]))
        check_inputs(self._teacher.members, first.model, self._head, batch)
        outputs = self._run(batch)
        positions = self._head.compared_positions(batch)
        classes = take_logits(self._head, outputs, batch).shape[-1]
        is_of_tokens = isinstance(self._head, PositionHead)
        if self._top_k is not None and (not is_of_tokens or self._top_k > classes):
            what = f"the teacher has {classes} classes"
            if not is_of_tokens:
                what = (
                    f"it is for tokens that have a class each (language models, tags), and "
                    f"{self._head.task} has none"
                )
            raise ValueError(f"top_k={self._top_k}: {what}; leave it out to store all of them.")
        width = 0
        if self._hidden_layers:
            states = outputs.get("hidden_states")
            if states is None:
                raise ValueError(
                    f"hidden_layers={list(self._hidden_layers)}: the teacher returns no "
                    "hidden_states, as an encoder with a decoder has none of both; leave it out."
                )
            wrong = [n for n in self._hidden_layers if not 0 <= n < len(states)]
            if wrong or len(set(self._hidden_layers)) < len(self._hidden_layers):
                raise ValueError(
                    f"hidden_layers={list(self._hidden_layers)} must name different layers from 0 "
                    f"(the embedding output) to {len(states) - 1}."
                )
            width = states[0].shape[-1]
        architecture, config = describe_model(first.model)
        return SignalDescription(
            task=self._head.task,
            architecture=architecture,
            config=config,
            dtype=self._dtype,
            classes=classes,
            by_position=positions is not None,
            top_k=self._top_k,
            hidden_layers=self._hidden_layers,
            hidden_width=width,
            teacher=" + ".join(one.name for one in self._teacher.identities),
            weights=weights,
            tokenizer=tokenizer,
        )

    def compute(
        self,
        parts: Sequence[Part],
        files: PartFiles,
        description: SignalDescription,
        *,
        show_progress: bool,
    ) -> None:
        """Compute parts and write them.

        Raises:
            ValueError: the teacher's outputs are NaN, or too large for the number format.
            OSError: the disk is full; the parts before are kept.
        """
        total = sum(int(self._lengths[part.start : part.stop].sum()) for part in parts)
        with logging.tqdm(
            total=total,
            desc="teacher outputs",
            unit=" tokens",
            unit_scale=True,
            disable=not show_progress or not parts or None,
        ) as bar:
            for part in parts:
                rows: list[dict[str, NDArray[Any]]] = [{}] * (part.stop - part.start)
                for batch in self._batches(part):
                    for row, stored in zip(batch, self._stored(batch), strict=True):
                        rows[row - part.start] = stored
                    bar.update(int(self._lengths[batch].sum()))
                files.write(part, _columns(rows, description))

    def _batches(self, part: Part) -> Iterator[list[int]]:
        """Rows of about the same length, the longest first: what does not fit fails at once."""
        order = part.start + np.argsort(-self._lengths[part.start : part.stop], kind="stable")
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size].tolist()

    def _batch(self, rows: Sequence[int]) -> Any:
        return self._collator(self._inputs.__getitems__(list(rows)))

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        device = self._runtime.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _run(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._teacher(batch, self._runtime, self._asks)

    def _stored(self, rows: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
        """Return what is stored of some rows, by column."""
        head = self._head
        batch = self._on_device(self._batch(rows))
        outputs = self._run(batch)
        logits = take_logits(head, outputs, batch)
        positions = head.compared_positions(batch)
        counts = [1] * len(rows) if positions is None else positions.sum(dim=1).tolist()
        self._check_finite(logits, counts, rows)
        chosen = outputs.get(STORED_IDS)
        if chosen is not None:
            chosen = chosen[positions]
        elif self._own_tokens and self._top_k is not None:
            following = batch["input_ids"].roll(-1, dims=1)[positions]
            chosen = largest_with(following, logits, self._top_k)
        columns = encode(logits, dtype=self._dtype, top_k=self._top_k, stored_ids=chosen)
        found = split_rows(columns, counts)
        if self._hidden_layers:
            states, counts = take_hidden_states(outputs, self._hidden_layers, batch)
            stored = split_rows({HIDDEN_STATES: to_array(states, self._dtype)}, counts)
            found = [row | further for row, further in zip(found, stored, strict=True)]
        for row, identity in zip(found, identities(head, batch), strict=True):
            row[CHECKSUM] = np.array([checksum(identity, list(row.values()))], dtype=np.uint32)
        return found

    def _check_finite(self, logits: Tensor, counts: Sequence[int], rows: Sequence[int]) -> None:
        bad = unusable_rows(logits)
        if not bool(bad.any()):
            return
        first = int(bad.nonzero()[0])
        row = rows[int(np.searchsorted(np.cumsum(counts), first, side="right"))]
        raise ValueError(
            f"The teacher's outputs for row {row} of the data contain NaN or +inf. Check the "
            "teacher's weights, and that its number format does not overflow (try "
            "teacher_dtype='float32', or mixed_precision='bf16' instead of 'fp16')."
        )


def _columns(
    rows: Sequence[Mapping[str, NDArray[Any]]], description: SignalDescription
) -> dict[str, pyarrow.Array]:
    columns: dict[str, pyarrow.Array] = {}
    types = description.features().arrow_schema
    for name in description.columns:
        values = pyarrow.array(np.concatenate([row[name].ravel() for row in rows]))
        kind = types.field(name).type
        if pyarrow.types.is_fixed_size_list(kind):
            values = pyarrow.FixedSizeListArray.from_arrays(values, type=kind)
        elif pyarrow.types.is_list(kind):
            offsets = np.cumsum([0, *(row[name].size for row in rows)], dtype=np.int32)
            values = pyarrow.ListArray.from_arrays(pyarrow.array(offsets), values, type=kind)
        columns[name] = values
    return columns


def _same(first: Tensor, second: Any) -> bool:
    if not isinstance(second, Tensor) or first.shape != second.shape:
        return False
    if first.is_floating_point():
        return bool(torch.allclose(first, second, rtol=0, atol=0, equal_nan=True))
    return bool(torch.equal(first, second))
