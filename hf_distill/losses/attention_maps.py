"""The loss between attention maps, for models that give nothing better."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_maps_loss(
    student: Tensor, teacher: Tensor, *, token_mask: Tensor | None = None, divergence: str
) -> Tensor:
    r"""Compare attention probabilities that were computed in full.

    ``kl_div``: :math:`\sum_q \frac{1}{H} \sum_h KL(A^T_{hq} \| A^S_{hq})`; ``mse``:
    :math:`\sum_{qk} \frac{1}{H} \sum_h (A^S_{hqk} - A^T_{hqk})^2`, over valid queries q and keys k.

    Args:
        student: ``(batch, heads, length, length)``, probabilities.
        teacher: the same.
        token_mask: bool, ``(batch, length)``: False is padding.
        divergence: ``kl_div`` or ``mse``.

    Returns:
        The sum over queries (``kl_div``) or pairs (``mse``), averaged over heads.

    Raises:
        ValueError: the numbers of heads differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"The student's attention maps have the shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}; set attention_loss_weight=0."
        )
    ours, theirs = student.float(), teacher.detach().float()
    if token_mask is not None:
        padding = ~(token_mask[:, None, :, None] & token_mask[:, None, None, :])
        ours, theirs = ours.masked_fill(padding, 0.0), theirs.masked_fill(padding, 0.0)
    if divergence == "mse":
        return (ours - theirs).square().sum() / student.shape[1]
    # Dropout leaves zeros in both; the smallest normal number stands for them in the logarithm.
    smallest = torch.finfo(torch.float32).tiny
    logs = theirs.clamp(min=smallest).log() - ours.clamp(min=smallest).log()
    return (theirs * logs).sum() / student.shape[1]
