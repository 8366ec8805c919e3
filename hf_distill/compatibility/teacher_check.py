"""Is the teacher good at the task at all? A look at it before the student trusts it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_distill.compatibility.findings import Finding, error, info, warning
from hf_distill.heads import TaskHead
from hf_distill.heads.base import unusable_rows

_CLEARLY = 4.0
"""Standard errors: the probability of being that far off by chance is 3 in 100,000."""


def check_teacher(
    head: TaskHead,
    run_teacher: Callable[[Mapping[str, Any]], Mapping[str, Tensor]],
    batches: Iterable[Mapping[str, Any]],
    data: str = "the evaluation data",
) -> Finding | None:
    """Compare the teacher's answers with always giving the most frequent label.

    Args:
        head: the student's head, which knows the order of the labels.
        run_teacher: gives the teacher's outputs for a batch.
        batches: labelled batches on the teacher's device; a few hundred rows are enough.
        data: what they are called in what is found.

    Returns:
        What was found; ``None`` if the batches have no labels, or labels that are no classes.
    """
    labels, answers, unusable = [], [], 0
    for batch in batches:
        gold = head.gold(batch)
        if gold is None:
            return None
        logits = head.logits(run_teacher(batch), batch)
        _, logits = head.align(logits, logits)
        mask = head.class_mask(batch)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        # IGNORED, or what data without labels has in their place, such as GLUE's -1.
        counts = (gold >= 0) & (gold < logits.shape[-1])
        unusable += int(unusable_rows(logits)[counts].sum())
        labels.append(gold[counts].cpu())
        answers.append(logits.argmax(dim=-1)[counts].cpu())
    if not labels or not sum(map(len, labels)):
        return None
    if unusable:
        return error(
            "quality",
            f"The teacher's outputs for {unusable} of {sum(map(len, labels))} labels of {data} are "
            "NaN or +inf. Check its weights, and that its number format does not overflow "
            "(teacher_dtype='float32').",
        )
    return _judge(torch.cat(labels), torch.cat(answers), data)


def _judge(labels: Tensor, answers: Tensor, data: str) -> Finding:
    right = (labels == answers).double()
    accuracy = float(right.mean())
    usual = (labels == labels.mode().values).double()
    majority = float(usual.mean())
    found = (
        f"of {len(labels)} labels the teacher gets {accuracy:.1%} right, and the most frequent "
        f"label alone would get {majority:.1%}"
    )
    deviation = float((right - usual).std(correction=0)) / math.sqrt(len(labels))
    if accuracy < majority - _CLEARLY * deviation:
        return error(
            "quality",
            f"On {data}, {found}: it is worse than no teacher. Its labels may have "
            "another order than the data's (compare id2label with the data), the inputs may be "
            "prepared otherwise than for its training, or it is not fine-tuned for this task. "
            "(teacher_check_samples=0 leaves out this test.)",
        )
    if accuracy <= majority:
        return warning(
            "quality",
            f"On {data}, {found}. A teacher that is no better than that has little to "
            "teach; check that it is fine-tuned for this task and data.",
        )
    return info("quality", f"On {data}, {found}.")
