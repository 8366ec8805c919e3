"""Losses between the logits of student and teacher.

All have one signature and one set of rules:

- ``student_logits``, ``teacher_logits``: ``(*rows, C)``, the same shape, any floating-point type.
- ``temperature``: T > 0; both sides are divided by it. It has no effect on ``mse``.
- ``mask``: bool, broadcastable to the logits, or ``None``: all classes are valid. False is padding:
  not a class of that row. Its content does not matter, NaN and infinities included, and it gets
  the gradient 0.
- Returned is ``(*rows)``, one loss per row, float32 (float64 if a side is float64), whatever the
  types of the logits. Means over rows are the caller's.
- Arguments whose shapes, types or temperature are not as described raise a ``ValueError``.
- The gradient reaches the student only, and is first order: ``create_graph=True`` raises.

Below, ``p = softmax(z_t / T)`` is the teacher's and ``q = softmax(z_s / T)`` the student's
distribution over the valid classes. The four divergences carry the factor T², so that their
gradients keep their size when T changes (Hinton et al. 2015, *Distilling the Knowledge in a Neural
Network*, section 2).

A logit of -inf is a class of probability 0. It counts as -1e30, so neither a loss nor a gradient is
ever NaN or 0 · ∞ because of it: where one side rules out what the other finds possible, a loss
without an upper bound is of the order 1e30 (``mse``: its square). A row without any valid class has
the loss 0 and the gradient 0. NaN and +inf in valid classes are errors of the models; they make the
loss of their row NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hf_distill.losses.chunks import with_gradients

_IMPOSSIBLE = -1e30
"""What z / T is at least: finite, so that 0 · log 0 is 0, and far below any real logit."""

_PADDING = -2e30
"""Far below ``_IMPOSSIBLE`` too: padding stays outside a row whose valid logits are all -inf."""

_SKEW = 0.1
"""The teacher's share in the mixture of ``skew_kl``: the value that DistiLLM recommends."""


class LogitsLoss(Protocol):
    """The signature of every function here; see the module for shapes and rules."""

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *,
        temperature: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return one loss per row."""
        ...


def kl_div(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """``T² KL(p ‖ q)``: the student covers all that the teacher finds likely (Hinton et al. 2015).

    For T → ∞ it becomes ``1/(2C) ‖z_s - z_t‖²`` with both logits centred (section 2.1 there), for
    T → 0 the cross-entropy with the teacher's best class, ``T² CE(z_s / T, argmax z_t)``, which
    goes to 0 like ``T (max z_s - z_s[argmax z_t])``. A two-class row ``[z, 0]`` gives the binary
    divergence between ``sigmoid(z / T)``, for several yes/no labels.

    Unbounded where the student rules out a class that the teacher does not; the gradient never
    exceeds T in any class.
    """
    return _divergence(_kl_div, student_logits, teacher_logits, temperature, mask)


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """``T² KL(q ‖ p)``: the student concentrates on what the teacher finds best.

    As used by MiniLLM (Gu et al. 2024) for language models. The limit for T → ∞ is that of
    ``kl_div``.

    Unbounded, gradient included, where the teacher rules out a class that the student does not:
    mask such classes, or choose ``js_div``.
    """
    return _divergence(_reverse_kl, student_logits, teacher_logits, temperature, mask)


def js_div(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """``T² (KL(p ‖ m) + KL(q ‖ m)) / 2`` with ``m = (p + q) / 2`` (Lin 1991), symmetric.

    At most ``T² log 2``. Its limit for T → ∞ is a quarter of ``kl_div``'s, so
    it wants a larger weight.
    """
    return _divergence(_js_div, student_logits, teacher_logits, temperature, mask)


def skew_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """``T² KL(p ‖ 0.1 p + 0.9 q)``: ``kl_div`` with bounded gradients (DistiLLM, Ko et al. 2024).

    At most ``T² log 10``. Its limit for T → ∞ is 0.81 of ``kl_div``'s.
    """
    return _divergence(_skew_kl, student_logits, teacher_logits, temperature, mask)


def mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """The mean over the valid classes of ``(z_s - z_t)²``, whatever the temperature.

    For centred logits it is twice the limit of ``kl_div`` for T → ∞; unlike the divergences it
    also compares the offset that all logits of a row share. A class that is -inf on both sides
    counts, with a distance of 0.
    """
    dtype = _check(student_logits, teacher_logits, temperature, mask)
    padding = None if mask is None else ~mask
    difference = _prepare(student_logits, 1.0, padding, dtype)
    difference.sub_(_prepare(teacher_logits, 1.0, padding, dtype))
    count: Tensor | int = student_logits.shape[-1]
    if mask is not None:
        count = mask.expand_as(difference).sum(dim=-1, dtype=dtype).clamp_(min=1.0)
    loss = difference.square().sum(dim=-1) / count
    return with_gradients(loss, (student_logits, difference), factor=2.0 / count)


Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(log_q, log_p)`` to the summands of a divergence D and to ∂D/∂(z_s / T).

It owns its arguments and may overwrite them. They are finite (``_IMPOSSIBLE``).
"""


def _kl_div(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    terms = log_p.sub_(log_q).mul_(p)
    return terms, log_q.exp_().sub_(p)


def _reverse_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    terms = log_q.sub_(log_p).mul_(q)
    return terms, _through_softmax(terms, q)


def _js_div(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    q, p = log_q.exp(), log_p.exp()
    log_m = torch.logaddexp(log_q, log_p).sub_(math.log(2))
    of_q = log_q.sub_(log_m).mul_(q).mul_(0.5)
    of_p = log_p.sub_(log_m).mul_(p).mul_(0.5)
    return of_p.add_(of_q), _through_softmax(of_q, q)


def _skew_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    q, p = log_q.exp(), log_p.exp()
    # Added as logarithms: 0.1 p underflows where p alone does not.
    share_of_q = log_q.add_(math.log1p(-_SKEW))
    log_mixture = torch.logaddexp(share_of_q, log_p + math.log(_SKEW))
    slope = share_of_q.sub_(log_mixture).exp_().mul_(p).neg_()
    return log_p.sub_(log_mixture).mul_(p), _through_softmax(slope, q)


def _through_softmax(slope: Tensor, q: Tensor) -> Tensor:
    """From ∂D/∂(log q), up to a multiple of q, to ∂D/∂(z_s / T)."""
    return torch.addcmul(slope, q, slope.sum(dim=-1, keepdim=True), value=-1.0)


def _divergence(
    divergence: Divergence,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    mask: Tensor | None,
) -> Tensor:
    dtype = _check(student_logits, teacher_logits, temperature, mask)
    padding = None if mask is None else ~mask
    terms, gradient = divergence(
        _prepare(student_logits, temperature, padding, dtype).log_softmax(dim=-1),
        _prepare(teacher_logits, temperature, padding, dtype).log_softmax(dim=-1),
    )
    factor: Tensor | float = temperature
    if mask is not None:
        # Both sides of a row without any valid class are uniform, equal only up to rounding.
        factor = mask.any(dim=-1).to(dtype) * temperature
    loss = terms.sum(dim=-1).mul_(factor * temperature)
    # T² dD/dz_s = T dD/d(z_s / T)
    return with_gradients(loss, (student_logits, gradient), factor=factor)


def _prepare(
    logits: Tensor, temperature: float, padding: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``logits / T`` in fresh memory, finite where they are not NaN or +inf."""
    scaled = (logits.detach().to(dtype) / temperature).clamp_(min=_IMPOSSIBLE)
    return scaled if padding is None else scaled.masked_fill_(padding, _PADDING)


def _check(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None
) -> torch.dtype:
    """Raise if the arguments do not fit together; return the type to compute in."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a finite number above 0, but it is {temperature!r}.")
    shape = student_logits.shape
    if not shape or shape != teacher_logits.shape:
        raise ValueError(
            "student_logits and teacher_logits must have the same shape (*rows, classes), but "
            f"they have {tuple(shape)} and {tuple(teacher_logits.shape)}."
        )
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not logits.is_floating_point():
            raise ValueError(f"{name} must be floating-point, but they are {logits.dtype}.")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, but it is {mask.dtype}; pass mask.bool().")
        fits = mask.dim() <= len(shape) and all(
            size in (1, full)
            for size, full in zip(reversed(mask.shape), reversed(shape), strict=False)
        )
        if not fits:
            raise ValueError(
                f"mask has the shape {tuple(mask.shape)}, which cannot be broadcast to that of "
                f"the logits, {tuple(shape)}."
            )
    return torch.promote_types(
        torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32
    )
