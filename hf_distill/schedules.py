"""How a number goes from its first to its last value over a run."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "linear", "cosine")


def scheduled_value(kind: str, start: float, end: float, progress: float) -> float:
    """The value of a schedule.

    - ``constant``: ``start``, always;
    - ``linear``: from ``start`` to ``end`` in a straight line;
    - ``cosine``: from ``start`` to ``end`` along half a cosine wave, slow at both ends.

    Exactly ``start`` at progress 0, ``end`` at 1, and never outside the two.

    Args:
        kind: one of ``SCHEDULES``.
        start: the value at the beginning.
        end: the value at the end.
        progress: the share of the run that is done; below 0 counts as 0, above 1 as 1.

    Raises:
        ValueError: if ``kind`` is none of these, ``start`` or ``end`` not finite, or ``progress``
            NaN.

    Example::

        >>> scheduled_value("linear", 4.0, 1.0, 0.5)
        2.5
    """
    if kind not in SCHEDULES:
        raise ValueError(f"kind must be one of {', '.join(SCHEDULES)}, but it is {kind!r}.")
    for name, value in (("start", start), ("end", end)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, but it is {value!r}.")
    if math.isnan(progress):
        raise ValueError("progress must be a number from 0 to 1, but it is NaN.")
    if kind == "constant":
        return start
    share = min(max(progress, 0.0), 1.0)
    if kind == "cosine":
        share = (1.0 - math.cos(math.pi * share)) / 2.0
    value = (1.0 - share) * start + share * end
    # Rounding must not lift a weight above 1, nor move a value whose start and end are equal.
    return min(max(value, min(start, end)), max(start, end))
