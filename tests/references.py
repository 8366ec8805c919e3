"""The losses of every task, written out row by row in float64, without the package's heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


def rows_that_count(task: str, batch: dict[str, Any]) -> list[tuple[tuple[int, ...], int | None]]:
    """Where each compared row is in the logits of a model, and its label (None without one)."""
    size = len(next(iter(batch.values())))
    labels = batch.get("labels")
    if task in ("text-classification", "image-classification", "audio-classification"):
        return [((i,), None if labels is None else int(labels[i])) for i in range(size)]
    if task == "multiple-choice":
        return [((i,), None if labels is None else int(labels[i])) for i in range(size)]
    ids = batch.get("input_ids")
    rows: list[tuple[tuple[int, ...], int | None]] = []
    for i in range(size):
        target = labels if labels is not None else batch.get("decoder_input_ids", ids)
        length = len(target[i])
        for j in range(length):
            at = j + 1 if task == "text-generation" else j  # the token that position j predicts
            if at >= length:
                continue
            if labels is not None:
                if int(labels[i][at]) != -100:
                    rows.append(((i, j), int(labels[i][at])))
            elif task in ("summarization", "automatic-speech-recognition"):
                if j == 0 or int(batch["decoder_input_ids"][i][j]) != 1:
                    rows.append(((i, j), None))
            elif ids is not None and int(batch["attention_mask"][i][at]):
                rows.append(((i, j), None))
    return rows


def logits_of(model: nn.Module, batch: dict[str, Any]) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(**batch).logits.double().numpy()


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def expected_losses(
    task: str, student: nn.Module, teacher: nn.Module, batch: dict[str, Any], temperature: float
) -> tuple[float | None, float]:
    """Mean label loss and mean distillation loss over the rows that count."""
    ours, theirs = logits_of(student, batch), logits_of(teacher, batch)
    task_losses, divergences = [], []
    for place, label in rows_that_count(task, batch):
        if label is not None:
            task_losses.append(-log_softmax(ours[place])[label])
        p, q = (log_softmax(z[place] / temperature) for z in (theirs, ours))
        divergences.append(temperature**2 * float((np.exp(p) * (p - q)).sum()))
    return float(np.mean(task_losses)) if task_losses else None, float(np.mean(divergences))
