"""The search space of a sweep: a distribution of Optuna for each option, read and checked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

Value = str | int | float | bool | None
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
ReadValue = Callable[[str, Any], Value]
"""Read an option's value as the option does; a ``ValueError`` tells why it does not take it."""

_RANGE_KEYS = ("low", "high", "step", "log")
# A step need not be a binary fraction: 0.1 to 0.9 by 0.1 ends at 0.9.
_DIGITS = 12
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class SearchSpace:
    """The options that a sweep sets, in the order in which they were written."""

    options: Mapping[str, Distribution]

    @property
    def size(self) -> int | None:
        """The number of combinations; ``None`` if there is no end of them."""
        values = [_values(option) for option in self.options.values()]
        return None if None in values else math.prod(len(some or ()) for some in values)

    def combinations(self) -> Iterator[dict[str, Value]]:
        """Return all combinations, the last option changing fastest.

        Raises:
            ValueError: there is no end of them.
        """
        endless = [name for name, option in self.options.items() if _values(option) is None]
        if endless:
            raise ValueError(
                f"a grid needs values that can be listed, but {', '.join(endless)} is a range "
                "without a step; give it a step, list its values, or choose the sampler tpe or "
                "random."
            )
        return self._products(_values)

    def corners(self) -> Iterator[dict[str, Value]]:
        """Return the combinations of all listed values, and of the ends of ranges."""
        return self._products(_corners)

    def one_by_one(self) -> Iterator[dict[str, Value]]:
        """Return combinations with each listed value and each end of a range at least once."""
        first = next(self.corners())
        for name, option in self.options.items():
            for value in _corners(option):
                yield {**first, name: value}

    def clean(self, drawn: Mapping[str, Any]) -> dict[str, Value]:
        """Put what Optuna drew in the order of the options, without rounding errors of steps."""
        stepped = {name for name, one in self.options.items() if getattr(one, "step", None)}
        return {
            name: round(drawn[name], _DIGITS) if name in stepped else drawn[name]
            for name in self.options
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: a list or a mapping for each option."""
        return {
            name: list(option.choices)
            if isinstance(option, CategoricalDistribution)
            else {
                "low": option.low,
                "high": option.high,
                "step": None if option.log else option.step,
                "log": option.log,
            }
            for name, option in self.options.items()
        }

    def _products(self, values: Callable[[Distribution], Any]) -> Iterator[dict[str, Value]]:
        listed = [values(option) for option in self.options.values()]
        return (dict(zip(self.options, some, strict=True)) for some in itertools.product(*listed))


def _values(option: Distribution) -> Sequence[Value] | None:
    """Return all values of an option; ``None`` if they cannot be listed."""
    if isinstance(option, CategoricalDistribution):
        return option.choices
    if option.step is None or option.log:
        return None
    steps = range(round((option.high - option.low) / option.step) + 1)
    return [round(option.low + i * option.step, _DIGITS) for i in steps]


def _corners(option: Distribution) -> Sequence[Value]:
    """Return the values of an option at which a mistake shows."""
    if isinstance(option, CategoricalDistribution):
        return option.choices
    return (option.low, option.high)


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
    options: dict[str, Distribution] = {}
    for key, entry in content.items():
        name = str(key).replace("-", "_")
        if name in options:
            raise ValueError(f"search_space: {name} is there twice.")
        if isinstance(entry, list | tuple):
            options[name] = _read_choices(name, entry, read_value)
        elif isinstance(entry, Mapping):
            options[name] = _read_range(name, entry, read_value)
        else:
            raise ValueError(
                f"search_space: {name} must be a list of values or a mapping with low and high, "
                f"but it is {entry!r}."
            )
    return SearchSpace(options)


def _read_choices(name: str, entry: Sequence[Any], read_value: ReadValue) -> Distribution:
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
    return CategoricalDistribution(values)


def _read_range(name: str, entry: Mapping[Any, Any], read_value: ReadValue) -> Distribution:
    for key in entry:
        if key not in _RANGE_KEYS:
            raise ValueError(
                f"search_space: {name} has {key!r}; a range has {', '.join(_RANGE_KEYS)}."
            )
    for key in ("low", "high"):
        if entry.get(key) is None:
            raise ValueError(f"search_space: {name} lacks {key!r}; a range has low and high.")
    low, high = _number(name, entry["low"], read_value), _number(name, entry["high"], read_value)
    log, step = entry.get("log", False), entry.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"search_space: {name} has log={log!r}; it must be true or false.")
    if not low < high:
        raise ValueError(f"search_space: {name} has low {low} and high {high}; low must be less.")
    whole = isinstance(low, int) and isinstance(high, int)
    if step is not None:
        step = _number(name, step, lambda _, raw: float(raw))
        if not step > 0 or (whole and step != int(step)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(
                f"search_space: {name} has the step {step}; it must be {kind} above 0."
            )
        steps = (high - low) / step
        if abs(steps - round(steps)) > _TOLERANCE * max(1.0, steps):
            last = round(low + math.floor(steps) * step, _DIGITS)
            raise ValueError(
                f"search_space: {name} does not reach high {high} from low {low} in steps of "
                f"{step}; set high to {last}."
            )
        high = round(high, _DIGITS)  # Optuna counts the steps in decimals
    try:  # Optuna refuses a step with log, and log with low 0
        if whole:
            return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
        return FloatDistribution(low, high, log=log, step=step)
    except ValueError as error:
        raise ValueError(f"search_space: {name} has {dict(entry)}: {error}") from None


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
