"""What a sweep searches: the values of each option, and their combinations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Value = str | int | float | bool | None
ReadValue = Callable[[str, Any], Value]
"""An option's value as the option reads it; a ``ValueError`` says why it does not take it."""

_RANGE_KEYS = ("low", "high", "step", "log")
# A step need not be a binary fraction: 0.1 to 0.9 by 0.1 ends at 0.9.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Choices:
    """Some values, in no particular order.

    Attributes:
        values: at least one, all different.
    """

    values: tuple[Value, ...]

    def corners(self) -> tuple[Value, ...]:
        """The values at which a mistake shows."""
        return self.values


@dataclass(frozen=True)
class Range:
    """The numbers from one to another.

    Attributes:
        low: the smallest.
        high: the largest.
        step: between two of them; ``None`` for all numbers.
        log: equal ratios are equally likely, and not equal differences.
    """

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    @property
    def values(self) -> tuple[Value, ...] | None:
        """All numbers, if they can be listed."""
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step)
        if isinstance(self.low, int):
            return tuple(self.low + i * int(self.step) for i in range(count + 1))
        return tuple(round(self.low + i * self.step, 12) for i in range(count + 1))

    def corners(self) -> tuple[Value, ...]:
        """The values at which a mistake shows."""
        return (self.low, self.high)

    def nearest(self, value: Any) -> Value:
        """The number of the range that is meant: sums of steps are not exact."""
        values: Any = self.values
        return value if values is None else min(values, key=lambda one: abs(one - value))


@dataclass(frozen=True)
class SearchSpace:
    """The options that a sweep sets, each with what it may be.

    Attributes:
        options: by name, in the order in which they were written.
    """

    options: Mapping[str, Choices | Range]

    @property
    def size(self) -> int | None:
        """The number of combinations; ``None`` if there is no end to them."""
        values = [option.values for option in self.options.values()]
        return None if None in values else math.prod(len(some or ()) for some in values)

    def combinations(self) -> Iterator[dict[str, Value]]:
        """All combinations, the last option changing fastest.

        Raises:
            ValueError: there is no end to them.
        """
        return self._products({name: option.values for name, option in self.options.items()})

    def corners(self) -> Iterator[dict[str, Value]]:
        """Combinations to check the options with: of all values, and of the ends of ranges."""
        return self._products({name: option.corners() for name, option in self.options.items()})

    def endless(self) -> list[str]:
        """The options whose values cannot be listed."""
        return [name for name, option in self.options.items() if option.values is None]

    def distributions(self) -> dict[str, Any]:
        """The same for Optuna."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        made: dict[str, Any] = {}
        for name, option in self.options.items():
            if isinstance(option, Choices):
                made[name] = CategoricalDistribution(list(option.values))
            elif isinstance(option.low, int) and isinstance(option.high, int):
                made[name] = IntDistribution(
                    option.low, option.high, log=option.log, step=int(option.step or 1)
                )
            else:
                made[name] = FloatDistribution(
                    option.low, option.high, log=option.log, step=option.step
                )
        return made

    def exactly(self, drawn: Mapping[str, Any]) -> dict[str, Value]:
        """What Optuna drew, in the order of the options and without rounding errors."""
        return {
            name: option.nearest(drawn[name]) if isinstance(option, Range) else drawn[name]
            for name, option in self.options.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: a list or a mapping for each option."""
        content: dict[str, Any] = {}
        for name, option in self.options.items():
            if isinstance(option, Choices):
                content[name] = list(option.values)
            else:
                content[name] = {key: getattr(option, key) for key in _RANGE_KEYS}
        return content

    def _products(self, values: Mapping[str, Sequence[Value] | None]) -> Iterator[dict[str, Value]]:
        listed = []
        for name, some in values.items():
            if some is None:
                raise ValueError(f"{name} has no end of values; give it a step, or list values.")
            listed.append(some)
        return (dict(zip(values, some, strict=True)) for some in itertools.product(*listed))


def read_search_space(content: Any, read_value: ReadValue) -> SearchSpace:
    """Read and check what to search.

    Args:
        content: by option a list of values, or a mapping ``{low, high, step, log}`` of which the
            last two may be left out. Whole numbers of an option that takes nothing else have the
            step 1, unless ``log`` is set.
        read_value: as for ``ReadValue``; also refuses options that cannot be searched.

    Raises:
        ValueError: names the option and what is wrong with it.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            "search_space must be a mapping of options to what they may be, such as "
            f"{{temperature: [1, 2, 4]}}, but it is {content!r}."
        )
    options: dict[str, Choices | Range] = {}
    for key, entry in content.items():
        name = str(key).replace("-", "_")
        if name in options:
            raise ValueError(f"search_space: {name} is there twice.")
        if isinstance(entry, list | tuple):
            options[name] = _choices(name, entry, read_value)
        elif isinstance(entry, Mapping):
            options[name] = _range(name, entry, read_value)
        else:
            raise ValueError(
                f"search_space: {name} must be a list of values or a mapping with low and high, "
                f"but it is {entry!r}."
            )
    return SearchSpace(options)


def _choices(name: str, entry: Sequence[Any], read_value: ReadValue) -> Choices:
    if not entry:
        raise ValueError(f"search_space: {name} is an empty list; name the values to try.")
    values: list[Value] = []
    for raw in entry:
        if isinstance(raw, list | tuple | Mapping):
            raise ValueError(
                f"search_space: {name} has the value {raw!r}; only single values can be searched."
            )
        value = read_value(name, raw)
        if value in values:
            raise ValueError(f"search_space: {name} has the value {value!r} twice.")
        values.append(value)
    return Choices(tuple(values))


def _range(name: str, entry: Mapping[Any, Any], read_value: ReadValue) -> Range:
    for key in entry:
        if key not in _RANGE_KEYS:
            raise ValueError(
                f"search_space: {name} has {key!r}; a range has {', '.join(_RANGE_KEYS)}."
            )
    for key in ("low", "high"):
        if entry.get(key) is None:
            raise ValueError(f"search_space: {name} lacks {key!r}; a range has low and high.")
    low, high = _number(name, entry["low"], read_value), _number(name, entry["high"], read_value)
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"search_space: {name} has log={log!r}; it is true or false.")
    if not low < high:
        raise ValueError(f"search_space: {name} has low {low} and high {high}; low must be less.")
    if log and low <= 0:
        raise ValueError(f"search_space: {name} has low {low}; with log it must be above 0.")
    step = entry.get("step")
    if step is None:
        return Range(low, high, 1 if isinstance(low, int) and not log else None, log)
    if log:
        raise ValueError(
            f"search_space: {name} has both log and step; leave one out, or list values."
        )
    step = _number(name, step, lambda _, raw: float(raw))
    if not step > 0 or (isinstance(low, int) and step != int(step)):
        kind = "a whole number" if isinstance(low, int) else "a number"
        raise ValueError(f"search_space: {name} has the step {step}; it must be {kind} above 0.")
    if isinstance(low, int):
        step = int(step)
    steps = (high - low) / step
    if abs(steps - round(steps)) > _TOLERANCE * max(1.0, steps):
        last = round(low + math.floor(steps) * step, 12)
        raise ValueError(
            f"search_space: {name} does not reach high {high} from low {low} in steps of {step}; "
            f"set high to {last}."
        )
    return Range(low, high, step)


def _number(name: str, raw: Any, read_value: ReadValue) -> int | float:
    try:
        number = read_value(name, raw)
    except TypeError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(
            f"search_space: {name} has {raw!r} in a range; it must be a number that {name} takes "
            "(or list its values)."
        )
    return number
