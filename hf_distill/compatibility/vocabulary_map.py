"""The ids of a trimmed vocabulary, and those that the teacher has for the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_distill.files import json_hash
from hf_distill.heads import LanguageModelingHead, Seq2SeqLMHead, TaskHead, unwrapped

MARK = "trimmed_vocabulary"
"""The field of a trimmed model's configuration that holds the hash of its map."""

_STORED = "teacher_vocabulary"
"""The field of ``tokenizer_config.json``, which a tokenizer keeps wherever it is saved."""
_WORDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
_NAMED = ("lang_to_id", "task_to_id")
_UNREADABLE = ("sequence_bias", "forced_decoder_ids")


class VocabularyMap:
    """The teacher's ids of the tokens of a trimmed vocabulary.

    Args:
        ids: for each token of the trimmed vocabulary its id in the whole one, ascending.
        size: rows of the embeddings that the trimmed ones were cut from.
    """

    def __init__(self, ids: Sequence[int], size: int) -> None:
        self.ids = torch.tensor(ids)
        self.size = size

    @classmethod
    def of(cls, tokenizer: Any) -> VocabularyMap | None:
        """Return the map that a trimmed tokenizer carries; ``None`` for all others."""
        stored = getattr(tokenizer, "init_kwargs", {}).get(_STORED)
        return None if stored is None else cls(_read_ranges(stored["ids"]), stored["size"])

    @cached_property
    def mark(self) -> str:
        """Return a hash that tells one map from another."""
        return json_hash([self.ids.tolist(), self.size])

    def store(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let a tokenizer carry the map."""
        tokenizer.init_kwargs[_STORED] = {"size": self.size, "ids": _ranges(self.ids)}

    def config_of_student(self, config: Any) -> Any:
        """Return the teacher's configuration with the ids of the trimmed vocabulary."""
        numbers = {theirs: own for own, theirs in enumerate(self.ids.tolist())}
        return with_moved_ids(config, numbers)

    def inputs_for_teacher(
        self, head: TaskHead, batch: Mapping[str, Any]
    ) -> tuple[TaskHead, dict[str, Any]]:
        """Return head and batch with the teacher's ids instead of the student's."""
        # Labels are tokens where a language model's targets are made of them.
        names = ["input_ids", "decoder_input_ids"]
        if isinstance(head, LanguageModelingHead):
            names.append("labels")
        if isinstance(head, Seq2SeqLMHead):
            start = getattr(head.config, "decoder_start_token_id", None)
            head = copy(head)
            head.config = SimpleNamespace(
                decoder_start_token_id=None if start is None else int(self.ids[start])
            )
        return head, {
            name: self._looked_up(value) if name in names and value is not None else value
            for name, value in batch.items()
        }

    def outputs_for_student(
        self, head: TaskHead, outputs: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return a language model's logits for the tokens of the trimmed vocabulary alone."""
        if isinstance(head, LanguageModelingHead) and isinstance(outputs, dict):
            logits = outputs["logits"]
            outputs["logits"] = logits.index_select(-1, self.ids.to(logits.device))
        return outputs

    def _looked_up(self, ids: Tensor) -> Tensor:
        return torch.where(ids < 0, ids, self.ids.to(ids.device)[ids.clamp(min=0)])


def mark_of(model: nn.Module) -> str | None:
    """Return the hash of the map that a model was trimmed by; ``None`` if it was not."""
    mark: str | None = getattr(getattr(unwrapped(model), "config", None), MARK, None)
    return mark


def with_moved_ids(config: Any, numbers: Mapping[int, int]) -> Any:
    """Return a configuration (of a model or of generation) whose token ids are renumbered.

    Lists of words to avoid or to force lose those with a token that is not in ``numbers``; an id
    that is none of the vocabulary, such as -1, is kept.

    Raises:
        ValueError: it has tokens in a field that cannot be renumbered.
    """
    config = deepcopy(config)
    for name, value in vars(config).items():
        if name in _UNREADABLE and value:
            raise ValueError(
                f"{type(config).__name__}.{name}={value!r} names tokens by ids in a form that "
                "cannot be renumbered; set it to None and add it again to the trimmed model."
            )
        if name == "task_specific_params" and value:
            moved = {
                task: {key: _field(key, one, numbers) for key, one in options.items()}
                for task, options in value.items()
            }
        else:
            moved = _field(name, value, numbers)
        if moved != value:
            setattr(config, name, moved)
    return config


def special_ids(config: Any) -> set[int]:
    """Return the ids of single tokens that a configuration names."""
    found: set[int] = set()
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_ids")) or name in _NAMED:
            values = value.values() if isinstance(value, dict) else value
            found |= {value} if isinstance(value, int) else {*(values or ())}
    return found


def _field(name: str, value: Any, numbers: Mapping[int, int]) -> Any:
    if name.endswith(("_token_id", "_token_ids")):
        return _moved(value, numbers)
    if name in _NAMED and value:
        return {key: _moved(one, numbers) for key, one in value.items()}
    if name in _WORDS and value:
        words = [word if isinstance(word, list) else [word] for word in value]
        kept = [[numbers[i] for i in word] for word in words if numbers.keys() >= {*word}]
        return kept if isinstance(value[0], list) else [word[0] for word in kept]
    return value


def _moved(value: Any, numbers: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_moved(one, numbers) for one in value]
    return numbers.get(value, value)


def _ranges(ids: Tensor) -> str:
    """Return ascending ids as text, such as ``0-3 17 20-21``."""
    breaks = (ids.diff() != 1).nonzero().flatten() + 1
    runs = [run.tolist() for run in ids.tensor_split(breaks)]
    return " ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _read_ranges(text: str) -> list[int]:
    runs = [run.split("-") for run in text.split()]
    return [i for run in runs for i in range(int(run[0]), int(run[-1]) + 1)]
