"""``--config`` files: YAML in which a value means what it would mean on the command line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any


class Scalar(str):
    """An unquoted YAML value that is not text to YAML, such as ``on``, ``010`` or ``1.10``.

    As a string it is what the file says; ``value`` is what YAML makes of it.
    """

    value: Any


def read_yaml(text: str) -> Any:
    """Read YAML safely, keeping what is written: numbers, booleans and dates are ``Scalar``.

    Raises:
        ValueError: it is not YAML, or a key occurs twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            value = super().construct_object(node, deep)
            if not isinstance(node, yaml.ScalarNode) or value is None or isinstance(value, str):
                return value
            written = Scalar(node.value)
            written.value = _value(node.value, value)
            return written

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines:
                    raise ValueError(
                        f"{name!r} is there twice, in lines {lines[name]} and {line}; leave one "
                        "of them out."
                    )
                lines[name] = line
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def load_yaml(text: str) -> Any:
    """Read YAML safely, with plain values.

    Raises:
        ValueError: it is not YAML, or a key occurs twice.
    """
    return resolved(read_yaml(text))


def resolved(content: Any) -> Any:
    """Replace every ``Scalar`` by its value."""
    if isinstance(content, Scalar):
        return content.value
    if isinstance(content, dict):
        return {resolved(key): resolved(value) for key, value in content.items()}
    if isinstance(content, list):
        return [resolved(one) for one in content]
    return content


def _value(text: str, value: Any) -> Any:
    """Correct what YAML 1.1 makes of a value: ``3:6`` is not 186 minutes, and ``010`` not 8."""
    if re.fullmatch(r"[-+\d:._]*:[\d:._]*", text):
        return text
    return int(text) if re.fullmatch(r"[-+]?[\d_]+", text) else value
