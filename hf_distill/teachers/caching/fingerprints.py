"""Hash of the data that outputs are computed from, and the lengths of its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset
from numpy.typing import NDArray

from hf_distill.alignment import INPUT_IDS
from hf_distill.heads.base import IGNORED

_ROWS = 1000


def row_lengths(dataset: Dataset) -> NDArray[Any]:
    """Return how many tokens each row has; 1 where there are none."""
    name = next((name for name in ("input_ids", INPUT_IDS) if name in dataset.column_names), None)
    if name is None:
        return np.ones(len(dataset), dtype=np.int64)
    lengths = [
        pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
        for column in _pieces(dataset.select_columns([name]), name)
    ]
    return np.concatenate(lengths).astype(np.int64)


def data_hash(dataset: Dataset, positions_of: Collection[str] = ()) -> str:
    """Return the SHA-256 of the values of all columns, row by row; not of how they are stored.

    Of the columns ``positions_of``, which hold labels, it only matters where they count.
    """
    digest = sha256()
    for name in sorted(dataset.column_names):
        digest.update(f"{name}\n".encode())
        for column in _pieces(dataset.select_columns([name]), name):
            _update(digest, column, only_positions=name in positions_of)
    return digest.hexdigest()


def _pieces(dataset: Dataset, name: str) -> Iterator[pyarrow.Array]:
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS):
        column = table[name].combine_chunks()
        if isinstance(column, pyarrow.ChunkedArray):  # of no rows
            continue
        yield column


def _update(digest: Any, array: pyarrow.Array, *, only_positions: bool = False) -> None:
    """Take in the values of an array, whatever its chunks, offsets and integer widths."""
    kind = array.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        lengths = pyarrow.compute.list_value_length(array).fill_null(-1)
        digest.update(lengths.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
        _update(digest, array.flatten(), only_positions=only_positions)
    elif pyarrow.types.is_fixed_size_list(kind):
        digest.update(f"[{kind.list_size}]".encode())
        _update(digest, array.flatten(), only_positions=only_positions)
    elif pyarrow.types.is_struct(kind):
        for place, field in enumerate(kind):
            digest.update(f"{field.name}\n".encode())
            _update(digest, array.field(place))
    elif pyarrow.types.is_dictionary(kind):
        _update(digest, array.dictionary_decode())
    elif pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind):
        digest.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
        values = array.cast(pyarrow.int64()).fill_null(0)
        if only_positions:
            values = pyarrow.compute.not_equal(values, IGNORED).cast(pyarrow.int8())
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    elif pyarrow.types.is_floating(kind):
        digest.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
        digest.update(array.to_numpy(zero_copy_only=False).tobytes())
    else:  # texts, bytes, dates
        for value in array.to_pylist():
            digest.update(f"{value!r}\n".encode())
