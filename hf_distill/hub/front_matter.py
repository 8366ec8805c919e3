"""The YAML at the top of a model card: taken apart and put together, whatever it holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

logger = logging.getLogger(__name__)


class _Loader(yaml.SafeLoader):
    """Takes ``no`` (Norwegian) and dates as the text that they are."""


_Loader.add_constructor(
    "tag:yaml.org,2002:bool",
    lambda _, node: {"true": True, "false": False}.get(node.value.lower(), node.value),
)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)


def read_card(path: Path, name: str) -> str:
    """Read a card, which errors call ``name``.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text ({error.reason} at byte {error.start}); save it in UTF-8."
        ) from error


def split_card(card: str, name: str = "README.md") -> tuple[dict[str, Any], str]:
    """Split a card into its metadata and its text.

    Front matter that is not a YAML mapping is kept as text, with a warning.
    """
    found = REGEX_YAML_BLOCK.search(card)
    if found is None:
        return {}, card.lstrip("\n")
    try:
        metadata = yaml.load(found.group(2), _Loader)
        problem = "it is not a list of names and values"
    except (yaml.YAMLError, ValueError) as error:
        metadata, problem = [], " ".join(str(error).split())
    if not isinstance(metadata, dict | None):
        logger.warning(
            f"The front matter of {name} cannot be read: {problem}. It is kept as text, below new "
            "front matter; repair it there."
        )
        return {}, card.lstrip("\n")
    return metadata or {}, card[found.end() :].lstrip("\n")


def join_card(metadata: Mapping[str, Any], text: str) -> str:
    """Put a card together."""
    front = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{front.strip()}\n---\n\n{text}"
