"""The user's data collator, with the teacher's outputs added to the batches it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_distill.alignment import Alignment
from hf_distill.heads import TaskHead
from hf_distill.teachers.columns.description import (
    CHECKSUM,
    DTYPES,
    HIDDEN_STATES,
    LOGITS,
    REST,
    TOKEN_IDS,
    SignalDescription,
    id_type,
)
from hf_distill.teachers.columns.encoding import checksum, decode, identities, state_positions


class TeacherSignalCollator:
    """Calls a data collator without the teacher columns, and adds what they hold to its batch.

    Stored outputs are put where the batch has the tokens they belong to, however it is padded.
    Rows without teacher columns pass through.
    """

    def __init__(
        self,
        inner: Callable[[list[Any]], Any],
        head: TaskHead,
        description: SignalDescription,
        alignment: Alignment,
    ) -> None:
        self.inner = inner
        self._head = head
        self._description = description
        self._alignment = alignment
        self._stored_type = np.dtype(DTYPES[description.dtype])
        self._types = {
            LOGITS: self._stored_type,
            REST: self._stored_type,
            HIDDEN_STATES: self._stored_type,
            TOKEN_IDS: np.dtype(id_type(description.classes)),
        }
        self._columns = description.columns

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Return a batch, with ``teacher_logits`` and so on padded like its inputs.

        Raises:
            ValueError: the outputs of a row do not belong to what the collator made of it.
        """
        lacking = [i for i, r in enumerate(rows) if not isinstance(r, Mapping) or CHECKSUM not in r]
        if len(lacking) == len(rows):
            return self.inner(list(rows))
        if lacking:
            raise ValueError(
                f"Row {lacking[0]} of a batch has no teacher columns, and others have: cache the "
                "teacher's outputs of all rows (cache_teacher_outputs), or of none."
            )
        columns = set(self._columns)
        batch = self.inner([{k: v for k, v in row.items() if k not in columns} for row in rows])
        read = self._alignment.teacher_batch(batch)
        found = identities(self._head, read)
        if len(found) != len(rows):
            raise ValueError(
                f"The data collator made {len(found)} inputs of {len(rows)} rows, so the teacher's "
                "outputs of a row have no place in its batch; use one that keeps rows apart, or a "
                "live teacher (teacher_model)."
            )
        stored = [self._arrays(row) for row in rows]
        positions = self._head.compared_positions(read)
        self._check(rows, stored, found, positions)
        shapes = {LOGITS: self._description.stored, TOKEN_IDS: self._description.stored, REST: 1}
        for name, width in shapes.items():
            if name in columns:
                values = np.concatenate([row[name] for row in stored]).reshape(-1, width)
                placed = self._placed(name, values, positions)
                batch[name] = placed[..., 0] if name == REST else placed
        if HIDDEN_STATES in columns:
            batch[HIDDEN_STATES] = self._hidden_states(stored, read)
        return batch

    def _arrays(self, row: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        return {
            name: np.asarray(row[name], dtype=self._types[name])
            for name in self._columns
            if name != CHECKSUM
        }

    def _check(
        self,
        rows: Sequence[Mapping[str, Any]],
        stored: list[dict[str, NDArray[Any]]],
        found: list[list[NDArray[Any]]],
        positions: Tensor | None,
    ) -> None:
        expected = [1] * len(rows) if positions is None else positions.sum(dim=1).tolist()
        for i, row in enumerate(rows):
            have = stored[i][LOGITS].size // self._description.stored
            if have != expected[i]:
                raise ValueError(
                    f"Row {i} of a batch has the teacher's outputs for {have} positions, but the "
                    f"loss looks at {expected[i]} of them: the row was cut, padded or labelled "
                    "otherwise when they were cached. Cache them again from this data, with this "
                    "data collator."
                )
            if checksum(found[i], list(stored[i].values())) != int(row[CHECKSUM]):
                raise ValueError(
                    f"The teacher's outputs of row {i} of a batch do not belong to its input, "
                    f"which begins {found[i][0].flatten()[:8].tolist()}: the text, the tokenizer "
                    "or the data collator changed after they were cached, or the data is damaged. "
                    "Cache them again from this data, with this data collator."
                )

    def _placed(self, name: str, values: NDArray[Any], positions: Tensor | None) -> Tensor:
        if name == TOKEN_IDS:
            tensor = torch.from_numpy(values.astype(np.int64))
        else:
            tensor = decode(values, self._description.dtype)
        if positions is None:
            return tensor
        placed = tensor.new_zeros((*positions.shape, tensor.shape[-1]))
        placed[positions] = tensor
        return placed

    def _hidden_states(self, stored: list[dict[str, NDArray[Any]]], batch: Any) -> Tensor:
        """``(batch, length, layers, width)``, with choices ``(batch, choices, length, …)``."""
        layers, width = len(self._description.hidden_layers), self._description.hidden_width
        values = np.concatenate([row[HIDDEN_STATES] for row in stored]).reshape(-1, layers * width)
        positions = state_positions(batch)
        if positions is None or int(positions.sum()) != len(values):
            states = decode(values, self._description.dtype).unflatten(0, (len(stored), -1))
        else:
            states = self._placed(HIDDEN_STATES, values, positions)
        return states.unflatten(-1, (layers, width))
