"""The user's data collator, with the teacher's encoding added to the batches that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_distill.alignment.base import INPUT_IDS, INPUTS, PREFIX, Alignment, TokenColumn
from hf_distill.heads.base import Batch, main_input


class BothEncodings:
    """Calls a data collator without the teacher's columns, and pads these beside its batch.

    Rows without the teacher's encoding pass through.

    Args:
        inner: the data collator of the student's columns.
        tokenizer: the teacher's: its padding token and side.
        alignment: the columns.
    """

    def __init__(
        self,
        inner: Callable[[list[Any]], Any],
        tokenizer: PreTrainedTokenizerBase,
        alignment: Alignment,
    ) -> None:
        self.inner = inner
        self._tokenizer = tokenizer
        self._alignment = alignment

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Return a batch with ``teacher_input_ids`` and so on.

        Raises:
            ValueError: only some rows have them, or the collator did not keep rows apart.
        """
        lacking = [
            i for i, r in enumerate(rows) if not isinstance(r, Mapping) or INPUT_IDS not in r
        ]
        if len(lacking) == len(rows):
            return self.inner(list(rows))
        if lacking:
            raise ValueError(
                f"Row {lacking[0]} of a batch has no {INPUT_IDS}, and others have: encode all rows "
                "for the teacher, or none."
            )
        columns = self._alignment.columns
        batch = self.inner([{k: v for k, v in row.items() if k not in columns} for row in rows])
        if len(main_input(batch)) != len(rows):
            raise ValueError(
                f"The data collator made {len(main_input(batch))} inputs of {len(rows)} rows, so "
                "the teacher's encoding of a row has no place in its batch; use one that keeps "
                "rows apart."
            )
        theirs = self._padded([{n: _as_list(row[n]) for n in columns & row.keys()} for row in rows])
        batch.update({f"{PREFIX}{name}": values for name, values in theirs.items()})
        sides = {
            "teacher": _places(rows, INPUT_IDS, batch[INPUT_IDS], self._on_left),
            "student": _places(rows, "input_ids", main_input(batch), _is_left(batch)),
        }
        for name, column in self._alignment.token_columns.items():
            if name in rows[0]:
                batch[name] = _placed([_as_list(row[name]) for row in rows], column, sides)
        return batch

    @property
    def _on_left(self) -> bool:
        return self._tokenizer.padding_side == "left"

    def _padded(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:
        inputs = [{n: row[f"{PREFIX}{n}"] for n in INPUTS if f"{PREFIX}{n}" in row} for row in rows]
        choices = len(inputs[0]["input_ids"])
        nested = isinstance(inputs[0]["input_ids"][0], list)
        if nested:
            inputs = [{n: v[i] for n, v in row.items()} for row in inputs for i in range(choices)]
        padded: Any = self._tokenizer.pad(inputs, return_tensors="pt")
        return {n: v.unflatten(0, (-1, choices)) if nested else v for n, v in padded.items()}


class TeacherBatches:
    """Makes the teacher's batches alone, of rows with both encodings."""

    def __init__(self, *args: Any) -> None:
        self._both = BothEncodings(*args)
        self._alignment: Alignment = args[-1]

    def __call__(self, rows: Sequence[Any]) -> Batch:
        """Return a batch as the teacher reads it."""
        return self._alignment.teacher_batch(self._both(rows))


class _Places:
    """Positions of the tokens of rows in a padded batch: how long it is, and where each begins."""

    def __init__(self, length: int, lengths: Sequence[int], on_left: Sequence[bool]) -> None:
        self.length = length
        self.begins = [
            length - own if left else 0 for own, left in zip(lengths, on_left, strict=True)
        ]


def _places(
    rows: Sequence[Mapping[str, Any]], name: str, padded: Tensor, on_left: bool | Sequence[bool]
) -> _Places:
    lengths = [len(row[name]) if name in row else padded.shape[-1] for row in rows]
    sides = [on_left] * len(rows) if isinstance(on_left, bool) else on_left
    return _Places(padded.shape[-1], lengths, sides)


def _is_left(batch: Mapping[str, Any]) -> Sequence[bool] | bool:
    """Return, by row, whether a data collator has put padding in front."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return False
    found: list[bool] = (mask[:, 0] == 0).tolist()
    return found


def _placed(values: Sequence[Any], column: TokenColumn, sides: Mapping[str, _Places]) -> Tensor:
    axis = None if column.axis is None else sides[column.axis]
    shape = (len(values),) if axis is None else (len(values), axis.length)
    placed = torch.full(shape, column.padding)
    for row, entries in enumerate(values):
        found = torch.as_tensor(entries)
        if column.positions_of is not None:
            moved = found + sides[column.positions_of].begins[row]
            found = torch.where(found < 0, found, moved)
        if axis is None:
            placed[row] = found
        else:
            begin = axis.begins[row]
            placed[row, begin : begin + len(found)] = found
    return placed


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
