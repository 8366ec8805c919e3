"""Interface of a head, and the parts of a batch that heads look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any]

IGNORED = -100
"""The label of what does not count, in all of transformers."""

MASKED_TARGET = -2
"""The token in ``TaskHead.target`` that a decoder does not attend to."""

MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
"""What models of transformers call what they are given to read, see or hear."""


class TaskHead(ABC):
    """Logits, labels and counts of one kind of model.

    A row is one distribution over classes that the student learns from the teacher: one per
    sequence for its label, or one per token for its tag or for the next token.

    Args:
        config: the student's configuration, or the teacher's if the student has none.
    """

    task: str
    """As the Hub calls it."""
    auto_model: str
    """Name of the ``AutoModelFor…`` class that loads a teacher for this task."""
    needs_token_types = False
    """Whether every input is a pair of texts, which a model with token types must be told apart."""
    label_names: tuple[str, ...] = ("labels",)
    """The entries of a batch that a model's own loss is computed from."""
    logit_names: tuple[str, ...] = ("logits",)
    """The entries of a model's outputs that hold its logits."""
    target_names: tuple[str, ...] = ()
    """What the logits depend on in addition to the input."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the logits of a model's outputs for a batch, ``(*rows, classes)``."""
        return output(outputs, "logits")

    def class_mask(self, batch: Batch) -> Tensor | None:
        """Bool, broadcastable to the logits: False where a class of a row is only padding."""
        return None

    def row_mask(self, batch: Batch) -> Tensor | None:
        """Bool, ``(*rows)``: False where a row does not count; ``None`` if all do."""
        return None

    @abstractmethod
    def count_rows(self, batch: Batch) -> int | Tensor:
        """Count the rows that the distillation loss of this batch is the mean of."""

    def count_labelled(self, batch: Batch) -> int | Tensor:
        """Count the items that the student's own label loss of this batch is the mean of."""
        gold = self.gold(batch)
        return 0 if gold is None else (gold != IGNORED).sum()

    def gold(self, batch: Batch) -> Tensor | None:
        """Return the class of each row by its label, ``(*rows)``, ``IGNORED`` where it has none.

        ``None`` where a label is not a class, as in regression.
        """
        return batch.get("labels")

    def compared_positions(self, batch: Batch) -> Tensor | None:
        """Bool, ``(batch, length)``: the positions whose logits the loss looks at.

        ``None`` where a model gives its logits for an input as a whole.
        """
        return None

    def outputs(self, logits: Tensor) -> dict[str, Tensor]:
        """Return what a model would have returned with these logits, ``(*rows, classes)``."""
        return {"logits": logits}

    def target(self, batch: Batch) -> Tensor | None:
        """Return what the logits depend on in addition to the input, ``(batch, length)``.

        ``None`` where they depend on the input alone.
        """
        return None

    def target_inputs(self, batch: Batch, model: nn.Module) -> dict[str, Any]:
        """Return the inputs by which teacher and student are given the same target."""
        return {}

    def align(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both with the same classes in the same order."""
        return student, teacher

    def check_labels(self, batch: Batch) -> None:  # noqa: B027
        """Raise ``ValueError`` if the labels of a batch are of another kind than the logits."""

    @property
    def has_probabilities(self) -> bool:
        """True if the logits of a row are those of one or more distributions."""
        return True

    def check_loss(self, loss_name: str) -> None:  # noqa: B027
        """Raise ``ValueError`` if a distillation loss makes no sense for this task."""


class PositionHead(TaskHead):
    """A head with one distribution per token.

    Where there are labels, the tokens that have one count; where there are none, all but padding.
    """

    def row_mask(self, batch: Batch) -> Tensor | None:
        """Tokens with a label, or all but padding."""
        labels = batch.get("labels")
        return attention_mask(batch) if labels is None else labels != IGNORED

    def compared_positions(self, batch: Batch) -> Tensor:
        mask = self.row_mask(batch)
        return not_padding(batch) if mask is None else mask

    def count_rows(self, batch: Batch) -> int | Tensor:
        mask, tokens = self.row_mask(batch), main_input(batch)
        return tokens.shape[0] * tokens.shape[1] if mask is None else mask.sum()


class LabelledHead(TaskHead):
    """A head whose classes have names."""

    teacher_order: list[int] | None = None
    """For each class of the student the class of the teacher; ``None`` if they are the same."""

    @property
    def num_labels(self) -> int | None:
        """Number of classes; ``None`` if the configuration does not have it."""
        count: int | None = getattr(self.config, "num_labels", None)
        return count

    def align(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Put the teacher's logits in the student's order of labels."""
        if self.teacher_order is not None:
            teacher = teacher[..., self.teacher_order]
        return student, teacher


def output(outputs: Mapping[str, Tensor], name: str) -> Tensor:
    """An entry of a model's outputs.

    Raises:
        ValueError: it is not there; lists what is.
    """
    value = outputs.get(name) if isinstance(outputs, Mapping) else None
    if value is None:
        has = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(
            f"Distillation compares {name}, but the model returned only: {has}. Use a model whose "
            f"forward returns a ModelOutput with {name} (return_dict=True)."
        )
    return value


def unusable_rows(logits: Tensor) -> Tensor:
    """Return, by row, whether one of its logits is NaN or +inf; -inf is an impossible class."""
    largest = logits.amax(dim=-1)  # NaN if one of them is
    return largest.isnan() | largest.isposinf()


def main_input(batch: Batch) -> Tensor:
    """The tensor that a batch is about; its first dimension is the batch size.

    Raises:
        ValueError: there is none.
    """
    names = (*MAIN_INPUTS, "attention_mask")
    for name in names:
        if isinstance(batch.get(name), Tensor):
            return batch[name]
    raise ValueError(
        f"A batch has none of {', '.join(names)}, only: {', '.join(batch)}. Check the "
        "columns of the data set and the data collator, and name the input of a model of your own "
        "after one of them."
    )


HIDING = -1e3
"""Added to an attention score, this or less hides a key: its probability is 0 in every type."""


def as_visible(mask: Tensor) -> Tensor:
    """Return an attention mask, bool or added to the scores, as bool: True is visible."""
    return mask > HIDING if mask.is_floating_point() and mask.dim() == 4 else mask.bool()


def attention_mask(batch: Batch) -> Tensor | None:
    """Return the attention mask as bool, ``(batch, …, length)``: which tokens are not padding.

    ``None`` if there is none. In a mask of pairs, ``(batch, heads, length, length)``, padding is
    what no token sees.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor):
        return None
    visible = as_visible(mask)
    return visible.any(1).any(-2) if mask.dim() == 4 else visible


def not_padding(batch: Batch) -> Tensor:
    """Bool, ``(batch, length)``: the tokens of the input, by the attention mask if there is one."""
    tokens, mask = main_input(batch), attention_mask(batch)
    if mask is not None and mask.shape == tokens.shape[:2]:
        return mask
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
