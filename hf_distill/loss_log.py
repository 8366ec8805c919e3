"""Running means of the parts of the loss, kept on the device until they are logged."""

from __future__ import annotations

from accelerate import Accelerator
from torch import Tensor


class LossLog:
    """Adds up the parts of the loss by name, without waiting for the device.

    Every process must add the same names between two ``pop``s.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, name: str, value: Tensor, count: Tensor | float) -> None:
        """Add ``value``, a sum over ``count`` items of this process."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0.0) + count

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over everything added by all processes since the last call.

        One reduction and one wait for the device, whatever the number of parts.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        first = self._sums[names[0]]
        pairs = first.new_tensor([[0.0, 0.0]] * len(names))
        for row, name in zip(pairs, names, strict=True):
            row[0] = self._sums[name]
            row[1] = self._counts[name]
        self._sums, self._counts = {}, {}
        pairs = accelerator.reduce(pairs, reduction="sum")
        return {
            f"loss_{name}": total / count
            for name, (total, count) in zip(names, pairs.tolist(), strict=True)
            if count
        }
