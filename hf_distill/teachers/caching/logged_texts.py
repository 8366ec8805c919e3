"""Files with log-probabilities of texts, as other programs write them, read and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

TOKEN_IDS = "prompt_token_ids"
_ROUNDING = 1e-3
"""The most by which rounding takes a log-probability above 0, or a sum of probabilities above 1."""
_TEXT = (TOKEN_IDS, "input_ids", "token_ids")
_DIGITS = re.compile("-?[0-9]{1,18}")
_TOP_IDS = ("target_token_ids", "top_token_ids")
_TOP_VALUES = ("target_logprobs", "top_logprobs")

Entries = list[tuple[NDArray[np.int64], NDArray[np.float64]]]
"""For each token of a text but the first: ids and log-probabilities of what could be there."""


class LoggedText(NamedTuple):
    """Log-probabilities of one text, as a file has them."""

    place: str
    """For messages: file and row."""
    ids: tuple[int, ...] | None
    """Its tokens; ``None`` if the file does not tell."""
    entries: Entries


def read_log_probs(path: Path, vocabulary: int) -> list[LoggedText]:
    """Read and check a file of log-probabilities.

    Args:
        path: JSON lines or Parquet.
        vocabulary: how many entries the teacher's has.
    """
    found = [_logged(row, place, vocabulary) for place, row in _rows(path)]
    if not found:
        raise ValueError(f"{path.name} is empty: it has no log-probabilities.")
    return found


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read the rows of a file, with what each is called in messages."""
    if not path.is_file():
        raise ValueError(f"There is no file {path.name} with log-probabilities.")
    if path.suffix == ".parquet":
        try:
            table = pyarrow.parquet.ParquetFile(path)
            batches = table.iter_batches(batch_size=64)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{path.name}, row {i}", row) for i, row in enumerate(rows))
        except (pyarrow.ArrowException, ValueError) as error:
            raise ValueError(f"{path.name} is not a Parquet file, or damaged: {error}.") from error
        return
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(
            f"{path.name}: log-probabilities are read from JSON lines (.jsonl) and Parquet "
            "(.parquet) files."
        )
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path.name}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{place} is a {type(row).__name__} instead of an object.")
            yield place, row


def _logged(row: Mapping[str, Any], place: str, vocabulary: int) -> LoggedText:
    choices = row.get("choices")
    if isinstance(choices, list) and choices:  # a server's answer
        if not isinstance(choices[0], dict):
            raise ValueError(f"{place}: choices has {choices[0]!r} instead of an object.")
        row = {**row, **choices[0]}
    name, top_ids, values = (_first(row, names) for names in (_TEXT, _TOP_IDS, _TOP_VALUES))
    ids = None
    if name is not None:
        ids = tuple(_token_id(one, place) for one in _list(row[name], f"{place}: {name}"))
    if top_ids is not None and values is not None:
        top, numbers = (_list(row[one], f"{place}: {one}") for one in (top_ids, values))
        positions = _paired(top, numbers, place, f"{top_ids} and {values}")
    elif isinstance(row.get("prompt_logprobs"), list):
        positions = [_of_vllm(one, place) for one in row["prompt_logprobs"]]
    else:
        raise ValueError(
            f"{place} has neither prompt_logprobs nor {_TOP_IDS[0]} and {_TOP_VALUES[0]}, only: "
            f"{', '.join(row)}. Ask vLLM for them with prompt_logprobs=K."
        )
    positions = _after_first(positions, None if ids is None else len(ids), place)
    entries = [
        _checked(position, f"{place}, position {i}", vocabulary)
        for i, position in enumerate(positions, start=1)
    ]
    return LoggedText(place, ids, entries)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {value!r:.80} instead of a list.")
    return value


def _token_id(value: Any, place: str) -> int:
    """Return a token id: a whole number, or its digits, as keys of JSON objects are."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and _DIGITS.fullmatch(value)):
        raise ValueError(f"{place} has the token id {value!r:.80}, which is not a whole number.")
    return int(value)


def _log_prob(value: Any, place: str) -> float:
    if isinstance(value, Real | Decimal) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer of hundreds of digits
            return float(value)
    raise ValueError(f"{place} has the log-probability {value!r:.80}, which is not a number.")


def _paired(
    top_ids: Sequence[Any], values: Sequence[Any], place: str, names: str
) -> list[list[tuple[Any, Any]]]:
    what = f"{place}: an entry of {names}"
    ids, numbers = (
        [[] if one is None else _list(one, what) for one in side] for side in (top_ids, values)
    )
    if [*map(len, ids)] != [*map(len, numbers)]:
        raise ValueError(f"{place}: {names} have different lengths.")
    return [list(zip(*pair, strict=True)) for pair in zip(ids, numbers, strict=True)]


def _of_vllm(entries: Any, place: str) -> list[tuple[Any, Any]]:
    if entries is not None and not isinstance(entries, dict):
        raise ValueError(
            f"{place}: an entry of prompt_logprobs is a {type(entries).__name__}, and vLLM writes "
            "an object of token ids."
        )
    return [
        (token, value.get("logprob") if isinstance(value, dict) else value)
        for token, value in (entries or {}).items()
    ]


def _after_first(positions: list[Any], length: int | None, place: str) -> list[Any]:
    """Return the positions but the first, which no model has a probability for."""
    if length == 0 or (length is None and not positions):
        raise ValueError(
            f"{place} is an empty text, without tokens; remove it from the file and from the data."
        )
    if positions and not positions[0]:
        positions = positions[1:]
    elif length is None or len(positions) == length:
        raise ValueError(
            f"{place}: the first position has log-probabilities, and nothing predicts the first "
            "token; write null (vLLM) or an empty list there, or leave the position out, so that "
            "it is known which token each position is about."
        )
    if length is not None and len(positions) != length - 1:
        raise ValueError(
            f"{place} has {length} tokens and log-probabilities for {len(positions)} of them after "
            f"the first, instead of {length - 1}."
        )
    return positions


def _checked(
    position: Sequence[tuple[Any, Any]], place: str, vocabulary: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if not position:
        raise ValueError(f"{place} has no log-probabilities; there must be one or more.")
    tokens = [_token_id(token, place) for token, _ in position]
    values = np.array([_log_prob(value, place) for _, value in position])
    wrong = [token for token in tokens if not 0 <= token < vocabulary]
    if wrong:
        raise ValueError(
            f"{place} has the token id {wrong[0]}, and the teacher's vocabulary has {vocabulary} "
            "entries; name the model that the log-probabilities are of as teacher."
        )
    if len({*tokens}) < len(tokens):
        raise ValueError(f"{place} has the same token id twice.")
    if np.isnan(values).any():
        raise ValueError(f"{place} has the log-probability NaN; compute it again.")
    if values.max() > _ROUNDING:
        raise ValueError(
            f"{place} has the log-probability {values.max():g}, and one cannot be above 0; write "
            "natural logarithms of probabilities, not logits or probabilities."
        )
    total = float(np.exp(values).sum())
    if total > 1 + _ROUNDING:
        raise ValueError(
            f"{place}: the probabilities add up to {total:.4f}, which is above 1; write natural "
            "logarithms, at temperature 1."
        )
    return np.array(tokens, dtype=np.int64), np.minimum(values, 0.0)
