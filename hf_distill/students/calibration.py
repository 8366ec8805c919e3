"""What a student is fitted on: batches that are made again for each pass, and arrays on disk."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    default_data_collator,
    set_seed,
)

from hf_distill.compatibility import input_limit, input_names, vocabulary_size
from hf_distill.heads import find_head
from hf_distill.restoring import preserve_rng_state

ROWS_PER_BATCH = 8


class TooFewTokensError(ValueError):
    """The data is too little to fit a student.

    Attributes:
        seen: its tokens.
        needed: the fewest that are enough.
    """

    def __init__(self, message: str, *, seen: int, needed: int) -> None:
        super().__init__(message)
        self.seen, self.needed = seen, needed


class Calibration:
    """Batches of calibration data, in an order that depends on the seed alone.

    Args:
        data: a sized data set of features, or texts.
        teacher: takes them.
        data_collator: makes a batch of rows; by default it pads with ``processing_class``.
        processing_class: the tokenizer; texts need it.
        seed: of the order of the rows.
    """

    def __init__(
        self,
        data: Any,
        teacher: PreTrainedModel,
        *,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None,
        processing_class: Any,
        seed: int,
    ) -> None:
        if isinstance(data, str | os.PathLike):
            data = read_texts(data)
        sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
        if isinstance(data, Mapping) or not sized:
            raise ValueError(
                f"calibration_data is a {type(data).__name__}, which has no rows by number: pass "
                "a data set of features, a list of texts, or the path of a text file."
            )
        rows = len(data)
        if rows == 0:
            raise ValueError("calibration_data is empty.")
        self._texts = isinstance(data[0], str)
        if self._texts and not callable(processing_class):
            given = "" if processing_class is None else f", which is {processing_class!r} here"
            raise ValueError(
                f"calibration_data has texts: pass their tokenizer, processing_class{given}."
            )
        if self._texts and not any(str(data[index]).strip() for index in range(rows)):
            raise ValueError(f"calibration_data has {rows} texts, and all of them are blank.")
        self._data, self._tokenizer, self._seed = data, processing_class, seed
        head = find_head(teacher)
        targets = ("decoder_input_ids",) if teacher.config.is_encoder_decoder else ()
        self._targets = targets if head is None else head.target_names
        if data_collator is not None:
            self._collate = data_collator
        elif "labels" in self._targets and hasattr(processing_class, "pad"):
            self._collate = DataCollatorForSeq2Seq(processing_class)
        elif processing_class is not None and hasattr(processing_class, "pad"):
            self._collate = DataCollatorWithPadding(processing_class)
        else:
            self._collate = default_data_collator
        self._names = input_names(teacher) | {"token_type_ids", *self._targets}
        if data_collator is not None:  # which may count on labels, or make them
            self._names |= {*inspect.signature(teacher.forward).parameters, "label", "label_ids"}
        # Embeddings of the teacher's width say nothing to a student of another.
        self._names -= {"inputs_embeds", "decoder_inputs_embeds"}
        self._main = teacher.main_input_name
        self._limit = input_limit(teacher)
        self._vocabulary = vocabulary_size(teacher)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        self._order = order.split(ROWS_PER_BATCH)
        self.batches = len(self._order)
        """Batches of a pass; fewer once enough tokens were seen."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Make the batches again: each time the same, also where a collator draws at random."""
        for number in range(self.batches):
            rows = [self._features(int(index)) for index in self._order[number]]
            with preserve_rng_state():
                set_seed((self._seed + number) % 2**32)
                try:
                    batch = self._collate(rows)
                except (ValueError, TypeError) as error:
                    raise ValueError(
                        f"calibration_data: rows cannot be made a batch ({error}). Pass "
                        "processing_class, which pads them, or another data_collator."
                    ) from error
            self._check_target(batch)
            self._check_values(batch, self._order[number].tolist())
            yield dict(batch)

    def _check_target(self, batch: Mapping[str, Any]) -> None:
        if self._targets and all(batch.get(name) is None for name in self._targets):
            names = " or ".join(self._targets)
            raise ValueError(
                f"calibration_data has no {names}: the teacher's decoder reads a target, which is "
                f"not guessed. Pass features with {names}, as for training (tokenizer(texts, "
                "text_target=targets)), or a data_collator that makes them."
            )

    def _check_values(self, batch: Mapping[str, Any], rows: list[int]) -> None:
        """Refuse a batch without tokens, and inputs that are not numbers."""
        value = batch.get(self._main)
        if not isinstance(value, Tensor):
            return
        if not value.numel():
            raise ValueError(
                f"calibration_data: the rows {', '.join(map(str, rows))} have no tokens: leave "
                "empty ones out."
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(
                f"calibration_data: {self._main} has values that are NaN or infinite in some of "
                f"the rows {', '.join(map(str, rows))}: leave those out."
            )

    def _features(self, index: int) -> dict[str, Any]:
        row = self._data[index]
        if self._texts and isinstance(row, str):
            row = dict(self._tokenizer(row, truncation=self._limit is not None,
                                       max_length=self._limit))  # fmt: skip
        columns = list(row) if isinstance(row, Mapping) else []
        features = {name: row[name] for name in columns if name in self._names}
        if features.get(self._main) is None:
            names = f"has the columns {', '.join(columns)}"
            what = names if columns else f"is a {type(row).__name__}"
            raise ValueError(
                f"calibration_data: row {index} {what}, without {self._main}, which the "
                "teacher reads. Pass features, or the texts alone as a list, with "
                "processing_class."
            )
        for name in ("input_ids", *self._targets):
            if features.get(name) is not None:
                self._check_ids(index, name, features[name])
        if "input_ids" in features and features.get("attention_mask") is not None:
            tokens, mask = len(features["input_ids"]), len(features["attention_mask"])
            if tokens != mask:
                raise ValueError(
                    f"calibration_data: row {index} has {tokens} input_ids and an attention_mask "
                    f"of {mask}: they must be equally long."
                )
        return features

    def _check_ids(self, index: int, name: str, values: Any) -> None:
        """Refuse ids and lengths that the embeddings of the teacher do not have."""
        if isinstance(values, list | tuple) and values and isinstance(values[0], list | tuple):
            for choice in values:  # which need not be equally long
                self._check_ids(index, name, choice)
            return
        ids = np.asarray(values)
        is_wrong = ids.size and ids.dtype.kind not in "iu"
        if is_wrong or (name == "input_ids" and ids.size and ids.min() < 0):
            raise ValueError(
                f"calibration_data: row {index} has the {name} {str(values)[:80]}, which are not "
                "all token ids: integers from 0."
            )
        if self._limit is not None and ids.ndim and ids.shape[-1] > self._limit:
            raise ValueError(
                f"calibration_data: row {index} has {ids.shape[-1]} tokens, but the teacher takes "
                f"{self._limit}: truncate it."
            )
        if self._vocabulary is not None and ids.size and ids.max() >= self._vocabulary:
            raise ValueError(
                f"calibration_data: row {index} has the id {ids.max()}, but the teacher has "
                f"{self._vocabulary} tokens: make it with the teacher's tokenizer."
            )


def read_texts(path: str | os.PathLike[str], name: str = "calibration_data") -> Sequence[str]:
    """Read the lines of a text file that are not blank.

    Args:
        path: the file.
        name: what errors call it.

    Raises:
        ValueError: there is no such file, or it is not UTF-8 text.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}={str(path)!r} cannot be read: {error}") from error
    return [line for line in lines if line.strip()]


class TokenArrays:
    """Arrays with one row per token of the calibration data, in files that are mapped into memory.

    Args:
        folder: where the files are made; it must be deleted by the caller.
        batches: the number of tokens in each batch.
    """

    def __init__(self, folder: str, batches: Sequence[int]) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        ends = np.cumsum(batches).tolist()
        self.slices = [slice(end - size, end) for end, size in zip(ends, batches, strict=True)]
        """Of each batch."""
        self.tokens: int = ends[-1]
        self._made = 0

    def new(self, width: int) -> Tensor:
        """Return an array, float32, ``(tokens, width)``."""
        self._made += 1
        file = self._folder / f"{self._made}.f32"
        mapped = np.memmap(file, dtype=np.float32, mode="w+", shape=(self.tokens, width))
        return torch.from_numpy(mapped)
