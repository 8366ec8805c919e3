"""A teacher that is paid once: its logits, looked up by the token ids of a row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import QuestionAnsweringModelOutput


class MemoisedTeacher(nn.Module):
    """Stands in for a question-answering teacher whose logits were computed before.

    A frozen teacher in evaluation mode answers a row the same way at every step and in every run.
    The key of a row is its ids without padding, so that shuffling and batching do not matter (the
    token types of a question and its context follow from the ids). The logits are float32.

    Args:
        config: the teacher's, for the checks of the trainer.
        rows: the token ids of each row without padding.
        logits: start and end logits of each row, ``(2, length)``.
    """

    def __init__(
        self, config: PreTrainedConfig, rows: Iterable[Sequence[int]], logits: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self.config = config
        self._logits = {_key(row): row_logits for row, row_logits in zip(rows, logits, strict=True)}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> QuestionAnsweringModelOutput:
        """Look up a batch padded on the right, ``(batch, length)``; padding gets the logit 0.

        Raises:
            KeyError: if a row was not computed before.
        """
        found = torch.zeros(2, *input_ids.shape)
        for row, (ids, length) in enumerate(
            zip(input_ids, attention_mask.sum(dim=1).tolist(), strict=True)
        ):
            found[:, row, :length] = self._logits[_key(ids[:length].tolist())]
        return QuestionAnsweringModelOutput(start_logits=found[0], end_logits=found[1])


def teacher_logits(
    teacher: nn.Module, rows: Sequence[dict[str, Any]], collator: Any, *, batch_size: int = 32
) -> list[Tensor]:
    """Run a teacher over all rows under bf16 autocast, those of similar length together.

    Args:
        teacher: a question-answering model.
        rows: features without padding, without labels.
        collator: pads a list of rows.
        batch_size: rows a forward pass.

    Returns:
        For each row start and end logits, float32, ``(2, length)``.
    """
    teacher.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            outputs = teacher(**collator([rows[index] for index in indices]))
        both = torch.stack((outputs.start_logits, outputs.end_logits), dim=1).float()
        for row, index in zip(both, indices, strict=True):
            found[index] = row[:, : len(rows[index]["input_ids"])].clone()
    return [found[index] for index in range(len(rows))]


def save_logits(path: Path, logits: Sequence[Tensor]) -> None:
    """Write the logits of all rows to one safetensors file, atomically."""
    lengths = torch.tensor([row.shape[1] for row in logits])
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({"logits": torch.cat(list(logits), dim=1), "lengths": lengths}, partial)
    os.replace(partial, path)


def load_logits(path: Path) -> list[Tensor]:
    """Read what ``save_logits`` wrote."""
    stored = load_file(path)
    return list(stored["logits"].split(stored["lengths"].tolist(), dim=1))


def _key(ids: Sequence[int]) -> bytes:
    return torch.tensor(ids, dtype=torch.int32).numpy().tobytes()
