"""Log-probabilities that another program computed, imported as a causal teacher's outputs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import ModelOutput

from hf_distill.alignment import INPUT_IDS
from hf_distill.files import file_hash, write_atomically
from hf_distill.loading import read_config
from hf_distill.teachers.caching.cache import cache_teacher_outputs
from hf_distill.teachers.caching.logged_texts import (
    TOKEN_IDS,
    Entries,
    LoggedText,
    read_log_probs,
)


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
    path = Path(file).expanduser()
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

    Raises:
        ValueError: ``file`` is there and holds something else, or its folder cannot be made.
    """
    path = check_prompts_file(file)
    rows = ({TOKEN_IDS: ids} for ids in dataset[_column(dataset)])

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)

    write_atomically(path, write)


def check_prompts_file(file: str | os.PathLike[str]) -> Path:
    """Check that token ids can be written to a file without replacing anything else.

    Raises:
        ValueError: it is there and holds something else, or its folder cannot be made.
    """
    path = Path(file).expanduser()
    if path.exists() and not (path.is_file() and _holds_token_ids(path)):
        raise ValueError(
            f"{path} is there already and does not hold {TOKEN_IDS} alone; name a new file, or "
            "delete it."
        )
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: {folder} is not a folder to write to.")
    return path


def _holds_token_ids(path: Path) -> bool:
    """Return whether a file is empty, or its first line is one of ``write_token_ids``."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, 1)]
    except (ValueError, RecursionError):
        return False
    return all(isinstance(row, dict) and [*row] == [TOKEN_IDS] for row in rows)


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
            f"so they cannot be matched; write {TOKEN_IDS} to the file, or one line per row."
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
