"""Log-probabilities that another program computed, imported as a causal teacher's outputs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import ModelOutput

from hf_distill.alignment import INPUT_IDS
from hf_distill.files import file_hash
from hf_distill.loading import read_config
from hf_distill.teachers.caching.cache import cache_teacher_outputs

_ROUNDING = 1e-3
"""How far above 0 a log-probability, or above 1 a sum of probabilities, may be by rounding."""
_TEXT = ("prompt_token_ids", "input_ids", "token_ids")
_TOP_IDS = ("target_token_ids", "top_token_ids")
_TOP_VALUES = ("target_logprobs", "top_logprobs")

Entries = list[tuple[NDArray[np.int64], NDArray[np.float64]]]
"""For each token of a text but the first: ids and log-probabilities of what could be there."""


class LoggedText(NamedTuple):
    """What a file has about one text."""

    place: str
    """For messages: file and row."""
    ids: tuple[int, ...] | None
    """Its tokens; ``None`` if the file does not tell."""
    entries: Entries


def import_log_probs(
    file: str | os.PathLike[str],
    teacher: str | os.PathLike[str] | PreTrainedConfig,
    dataset: Dataset,
    **options: Any,
) -> Dataset:
    """Keep log-probabilities that another program computed as a causal teacher's cached outputs.

    The result is that of ``cache_teacher_outputs`` with ``top_k``, and used in the same way: with
    the student's tokenizer, or another one. Texts are found by their token ids, or by their order
    where the file has none. What the entries of a position leave to the rest of the vocabulary is
    shared out evenly.

    Args:
        file: JSON lines with vLLM's ``prompt_logprobs`` per line (and ``prompt_token_ids``), from
            its Python interface or its server; or JSON lines or Parquet with the columns
            ``input_ids``, ``target_token_ids`` and ``target_logprobs`` (lists of lists). Entries
            are about the token at their place, and the first one is empty, or left out.
        teacher: Hub id or directory of the model that they are of, or its configuration; only the
            configuration is read.
        dataset: the data, tokenised as the texts of the file were.
        **options: as for ``cache_teacher_outputs``, without ``top_k``.

    Returns:
        ``dataset`` with the teacher columns.

    Raises:
        ValueError: the file cannot be read, has NaN or positive log-probabilities, ids that the
            teacher does not have, lengths that do not fit, or lacks a text of the data; the
            message names file and row.
    """
    path = Path(file)
    config = (
        teacher
        if isinstance(teacher, PreTrainedConfig)
        else read_config(os.fspath(teacher), "teacher")
    )
    texts = read_log_probs(path, config.get_text_config().vocab_size)
    column = _column(dataset)
    rows = [tuple(ids) for ids in dataset[column]]
    # Of a teacher with another tokenizer the text's own tokens are what is compared.
    found = _match(texts, rows, path.name, needs_own=column == INPUT_IDS)
    name = getattr(config, "_name_or_path", "") or path.name
    given: dict[str, Any] = {"batch_size": 1, "use_cpu": True, **options}
    model = logged_model(found, config, str(name), file_hash(path))
    return cache_teacher_outputs(
        model,
        dataset,
        task="text-generation",
        top_k=model.width,
        **given,
    )


def write_token_ids(file: str | os.PathLike[str], dataset: Dataset) -> None:
    """Write the token ids of data, as the teacher reads them, for what computes log-probabilities.

    Args:
        file: JSON lines, with ``prompt_token_ids`` per line.
        dataset: the data, tokenised.
    """
    with Path(file).open("w", encoding="utf-8") as lines:
        for ids in dataset[_column(dataset)]:
            lines.write(json.dumps({_TEXT[0]: ids}) + "\n")


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


def logged_model(
    texts: Mapping[tuple[int, ...], Entries], config: PreTrainedConfig, name: str, content: str
) -> LoggedModel:
    """Return a module that gives, for known texts, the logits that their log-probabilities are.

    Its class is called as the model's, so that everything finds the same task and configuration.

    Args:
        texts: entries by the ids of a text.
        config: the model's.
        name: the model's.
        content: hash that tells these log-probabilities from others.
    """
    usual: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "LoggedForCausalLM")
    architecture = [*(config.architectures or ()), usual][0]
    model_class = type(architecture, (LoggedModel,), {})
    model: LoggedModel = model_class(texts, config, name, content)
    return model


@dataclass
class LoggedOutput(ModelOutput):
    """Logits of each token but the last, and the entries among them that a file has."""

    logits: Tensor | None = None
    stored_ids: Tensor | None = None


class LoggedModel(nn.Module):
    """Gives for known texts the logits that their log-probabilities are.

    Attributes:
        width: the most entries that a position has.
    """

    content: Tensor

    def __init__(
        self,
        texts: Mapping[tuple[int, ...], Entries],
        config: PreTrainedConfig,
        name: str,
        content: str,
    ) -> None:
        super().__init__()
        self.config = config
        self.name_or_path = name
        self.width = max(len(ids) for entries in texts.values() for ids, _ in entries)
        self.register_buffer("content", torch.tensor([*bytes.fromhex(content)]))
        self._texts = texts

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> LoggedOutput:
        vocabulary = self.config.get_text_config().vocab_size
        logits = torch.zeros(*input_ids.shape, vocabulary)
        stored = torch.zeros(*input_ids.shape, self.width, dtype=torch.long)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
            places = mask.nonzero()[:, 0].tolist()
            entries = self._texts[tuple(ids[mask].tolist())]
            for place, (tokens, values) in zip(places, entries, strict=False):
                logits[row, place] = _rest(values, vocabulary)
                logits[row, place, torch.from_numpy(tokens)] = torch.from_numpy(values).float()
                # Of what is left to all others, so that each position has as many.
                further = np.setdiff1d(np.arange(self.width), tokens)
                kept = np.append(tokens, further)[: self.width]
                stored[row, place] = torch.from_numpy(kept)
        device = input_ids.device
        return LoggedOutput(logits=logits.to(device), stored_ids=stored.to(device))


def _rest(log_probs: NDArray[np.float64], vocabulary: int) -> float:
    """Return the log-probability of each entry of the vocabulary that is not among those given."""
    others, left = vocabulary - len(log_probs), 1 - float(np.exp(log_probs).sum())
    return math.log(left / others) if others and left > 0 else -math.inf


def _column(dataset: Dataset) -> str:
    """Name the column of the teacher's token ids."""
    return INPUT_IDS if INPUT_IDS in dataset.column_names else "input_ids"


def _match(
    texts: Sequence[LoggedText], rows: Sequence[tuple[int, ...]], name: str, *, needs_own: bool
) -> dict[tuple[int, ...], Entries]:
    by_ids = {text.ids: text for text in reversed(texts) if text.ids is not None}
    by_order = all(text.ids is None for text in texts)
    if by_order and len(texts) != len(rows):
        raise ValueError(
            f"{name} has {len(texts)} texts without token ids, and the data has {len(rows)} rows, "
            f"so they cannot be matched; write {_TEXT[0]} to the file, or one line per row."
        )
    found: dict[tuple[int, ...], Entries] = {}
    for number, ids in enumerate(rows):
        text = texts[number] if by_order else by_ids.get(ids)
        if text is None:
            raise ValueError(
                f"Row {number} of the data is not in {name}: no text there has its token ids, "
                f"which begin {list(ids[:8])}. Compute the log-probabilities of exactly these ids "
                "(special tokens included), with the teacher's tokenizer."
            )
        if by_order or needs_own:
            _check_own_tokens(text, ids, number)
        found[ids] = text.entries
    return found


def _check_own_tokens(text: LoggedText, ids: tuple[int, ...], number: int) -> None:
    if len(text.entries) != len(ids) - 1:
        raise ValueError(
            f"{text.place}: there are log-probabilities for {len(text.entries)} tokens after the "
            f"first, and row {number} of the data has {len(ids) - 1}; the file is of other texts, "
            "in another order, or of another tokenizer."
        )
    for place, (own, (tokens, _)) in enumerate(zip(ids[1:], text.entries, strict=True), start=1):
        if own not in tokens:
            raise ValueError(
                f"{text.place}: the token {own} at position {place} of row {number} of the data is "
                "not among the entries there. The file is of other texts, in another order, or of "
                "another tokenizer; or it lacks the text's own tokens, which vLLM's "
                "prompt_logprobs always has."
            )


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
                row = json.loads(line.decode("utf-8"))
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
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{place} has the token id {value!r:.80}, which is not a whole number.")
    return value


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
    try:
        ids = np.array([int(token) for token, _ in position], dtype=np.int64)
        values = np.array([float(value) for _, value in position])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{place}: {error}; entries are token ids and numbers.") from error
    if ids.min() < 0 or ids.max() >= vocabulary:
        wrong = ids[(ids < 0) | (ids >= vocabulary)][0]
        raise ValueError(
            f"{place} has the token id {wrong}, and the teacher's vocabulary has {vocabulary} "
            "entries; name the model that the log-probabilities are of as teacher."
        )
    if len({*ids.tolist()}) < len(ids):
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
    return ids, np.minimum(values, 0.0)
