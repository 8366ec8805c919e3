"""Meaning of the teacher columns of a data set; it travels with them wherever they go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Features, IterableDataset, List, Value
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.trainer_utils import has_length

from hf_distill.heads import unwrapped

LOGITS = "teacher_logits"
TOKEN_IDS = "teacher_token_ids"
REST = "teacher_rest"
HIDDEN_STATES = "teacher_hidden_states"
CHECKSUM = "teacher_checksum"
SIGNAL_COLUMNS = (LOGITS, TOKEN_IDS, REST, HIDDEN_STATES, CHECKSUM)

COLUMN = "teacher_column"
"""The architecture of a teacher that is a column of predictions."""

DTYPES = {"float16": "float16", "bfloat16": "uint16", "float32": "float32"}
"""The number formats of stored outputs, with their types in Arrow, which has no bfloat16."""

_FORMAT = 1
_NOT_STORED = (
    "_name_or_path",
    "auto_map",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
)


@dataclass(frozen=True)
class SignalDescription:
    """Meaning of the teacher columns of a data set.

    It is stored in the ``id`` of the column ``teacher_checksum`` in the data set's features, which
    survives ``select``, ``map``, ``save_to_disk``, Parquet and the Hub, and takes no room in a row.
    Rows of two teachers cannot be concatenated, because their features differ.

    Attributes:
        task: the head, as the Hub calls its task.
        architecture: the teacher's class; ``COLUMN`` if it is a column of predictions.
        config: the teacher's configuration; ``None`` if it is not a model of transformers. Of a
            column its name (``column``), the ``kind`` of its numbers, whether any rules a label
            out or in (``sure``), its labels and ``problem_type``.
        dtype: the number format of ``teacher_logits`` and ``teacher_rest``; a key of ``DTYPES``.
        classes: logits that the teacher gives for an input, or for a position.
        by_position: whether there are logits for each position that the loss looks at.
        top_k: how many of the classes are stored; ``None`` for all.
        hidden_layers: the layers whose hidden states are stored, 0 being the embedding output.
        hidden_width: numbers in a hidden state.
        teacher: the teacher's name, without a path.
        weights: SHA-256 of the teacher's weights.
        tokenizer: SHA-256 of what the tokenizer does; ``None`` if it was not known.
    """

    task: str
    architecture: str
    config: dict[str, Any] | None
    dtype: str
    classes: int
    by_position: bool
    top_k: int | None
    hidden_layers: tuple[int, ...]
    hidden_width: int
    teacher: str
    weights: str
    tokenizer: str | None

    @property
    def stored(self) -> int:
        """Logits that are stored for an input, or for a position."""
        return self.classes if self.top_k is None else self.top_k

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.features())

    @property
    def column(self) -> str | None:
        """The column of predictions that is the teacher; ``None`` for a model."""
        return None if self.architecture != COLUMN else str((self.config or {})["column"])

    def read_config(self) -> PreTrainedConfig | None:
        """Return the teacher's configuration; ``None`` if it is not a model of transformers."""
        if self.config is None:
            return None
        content = deepcopy(self.config)  # some classes take their inner configurations apart
        if self.architecture == COLUMN:
            return PreTrainedConfig(**content)
        return AutoConfig.for_model(**content)

    def differences(self, other: SignalDescription) -> list[str]:
        """Name what two descriptions differ in; a teacher may have moved, so not by its name."""
        ours, theirs = asdict(self), asdict(other)
        found = [name for name in ours if name != "teacher" and ours[name] != theirs[name]]
        if None in (self.tokenizer, other.tokenizer) and "tokenizer" in found:
            found.remove("tokenizer")  # one of them is not known
        if "config" in found and self.config is not None and other.config is not None:
            keys = sorted({*self.config, *other.config})
            changed = [key for key in keys if self.config.get(key) != other.config.get(key)]
            found[found.index("config")] = f"config ({', '.join(changed)})"
        return found

    def features(self) -> Features:
        """Return the types of the columns.

        A row holds flat lists: ``teacher_logits`` has ``positions * stored`` numbers, position by
        position (for question answering start, end, start, end, …); next to them stand, with
        ``top_k``, the classes they belong to and the log of the remaining mass of a position.
        """
        number = DTYPES[self.dtype]
        length = -1 if self.by_position else self.stored
        columns: dict[str, Any] = {LOGITS: List(Value(number), length=length)}
        if self.top_k is not None:
            columns[TOKEN_IDS] = List(Value(id_type(self.classes)), length=length)
            columns[REST] = List(Value(number), length=-1 if self.by_position else 1)
        if self.hidden_layers:
            columns[HIDDEN_STATES] = List(Value(number))
        text = json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)
        return Features({**columns, CHECKSUM: Value("uint32", id=text)})

    @classmethod
    def of(cls, dataset: Any) -> SignalDescription | None:
        """Return the description of a data set's columns, ``None`` if it has none.

        A data set may also be wrapped: in those of torch (``Subset``, ``ConcatDataset``), or as an
        attribute of a class that hands on its rows.

        Raises:
            ValueError: the columns are there but nothing says what they mean, or they are of
                another version, or of several teachers.
        """
        found = [cls._of_features(features) for features in _features(dataset)]
        described = [description for description in found if description is not None]
        if not described or _hands_on_no_columns(dataset):
            return None
        first, *others = described
        for other in others:
            changed = first.differences(other)
            if changed:
                raise ValueError(
                    f"A {type(dataset).__name__} has the cached outputs of {first.teacher!r} and "
                    f"of {other.teacher!r}, which mean something else, because these differ: "
                    f"{', '.join(changed)}. Cache all of it with the same teacher and options."
                )
        return first

    @classmethod
    def _of_features(cls, features: Mapping[str, Any]) -> SignalDescription | None:
        if not {LOGITS, CHECKSUM} & set(features):
            return None
        missing = [name for name in (LOGITS, CHECKSUM) if name not in features]
        if missing:
            raise ValueError(
                f"The data has teacher columns, but {missing[0]} is missing among them; take the "
                "data as cache_teacher_outputs gave it, or remove all teacher_… columns."
            )
        try:
            content = json.loads(features[CHECKSUM].id)
            version = content.pop("format")
            if version != _FORMAT:
                raise ValueError(
                    f"The teacher columns of the data have format {version} and this version of "
                    f"hf_distill reads format {_FORMAT}; cache the teacher's outputs again."
                )
            return cls(**{**content, "hidden_layers": tuple(content["hidden_layers"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"The description of the teacher columns is lost: the column {CHECKSUM} was cast "
                "or made again. Take the data as cache_teacher_outputs gave it."
            ) from error


def id_type(classes: int) -> str:
    """Return the type of a stored class."""
    return "uint16" if classes <= 1 << 16 else "uint32"


def check_not_lost(dataset: Any) -> None:
    """Check that a stream has no teacher columns of which nothing says what they mean.

    Raises:
        ValueError: ``map`` has dropped their description.
    """
    if not isinstance(dataset, IterableDataset) or dataset.features is not None:
        return
    if CHECKSUM in next(iter(dataset), {}):
        raise ValueError(
            "The stream has teacher columns, but nothing says what they mean: IterableDataset.map "
            "drops it. Pass map the types of all columns (features=Features({**dataset.features, "
            "'new': Value('int64')})), or map the data before to_iterable_dataset."
        )


def _features(dataset: Any, depth: int = 4) -> Iterator[Mapping[str, Any]]:
    """Yield the features of a data set, or of those that it wraps."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        yield features
    elif isinstance(dataset, IterableDataset):
        return  # a stream that has lost them
    elif depth and isinstance(getattr(dataset, "__dict__", None), dict):
        for value in vars(dataset).values():
            several = (
                isinstance(value, list | tuple) and value and not isinstance(value[0], Mapping)
            )
            for inner in value if several else (value,):
                if hasattr(inner, "__getitem__") or hasattr(inner, "__iter__"):
                    yield from _features(inner, depth - 1)


def _hands_on_no_columns(dataset: Any) -> bool:
    """Return whether a class around a data set leaves out its teacher columns."""
    if hasattr(dataset, "features") or not hasattr(dataset, "__getitem__"):
        return False
    size = len(dataset) if has_length(dataset) else 0
    row = dataset[0] if size else None
    return isinstance(row, Mapping) and CHECKSUM not in row


def describe_model(model: nn.Module) -> tuple[str, dict[str, Any] | None]:
    """Return the class and the configuration of a teacher, without anything about this machine."""
    model = unwrapped(model)
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict"):
        return type(model).__name__, None
    content = json.loads(config.to_json_string(use_diff=True))
    return type(model).__name__, _stored(content)


def _stored(content: Any) -> Any:
    """Return a configuration, and those inside it, without what is not of the model."""
    if not isinstance(content, dict):
        return content
    return {key: _stored(value) for key, value in content.items() if key not in _NOT_STORED}
