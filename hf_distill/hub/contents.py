"""Files of a folder that are published: a list of those that may be, not of those that may not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_distill.files import display_name, read_json
from hf_distill.hub.exports import find_exports

CARD_FILE = "README.md"
LOSSES_FILE, COMPARISON_FILE = "losses.png", "comparison.png"

_MODEL = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "adapter_config.json", "adapter_model*.safetensors",
)  # fmt: skip
_PROCESSING = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "vocab-*.json", "merges.txt", "bpe.codes", "*.model", "*.spm",
    "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
_REPORT = (CARD_FILE, "distillation.json", LOSSES_FILE, COMPARISON_FILE)
_SETTINGS = "*config.json"
_PLACES = ("name_or_path", "_path", "_file", "_dir")
"""Endings of settings in which a library may have kept where something came from."""


def published_files(folder: Path, *, report: Path | None = None) -> dict[str, Path | bytes]:
    """Find what is published of a folder: a plain student, its exports and the report on it.

    Never: pickles (``training_args.bin``, which also has paths and the token; optimizer, scheduler
    and random numbers of a checkpoint), projections, recorded samples, predictions, logs.

    Args:
        folder: of the student.
        report: where card, figures and pictures are; by default in the same folder.

    Returns:
        By name in the repository: the file, or its content, if that is not as in the folder.

    Raises:
        FileNotFoundError: there is no student in it.
        ValueError: it has two exports of the same kind.
    """
    found: dict[str, Path | bytes] = {}
    for place, patterns in ((folder, (*_MODEL, *_PROCESSING)), (report or folder, _REPORT)):
        for path in sorted(place.iterdir()):
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in patterns):
                found[path.name] = _without_places(path)
    if not any(name.endswith(".safetensors") for name in found):
        raise FileNotFoundError(
            f"{folder} has no model to push: there is no model.safetensors (or adapter_model)."
        )
    return found | {name: one.folder / name for name, one in find_exports(folder).items()}


def _without_places(path: Path) -> Path | bytes:
    """Return a file, or its content without anything about this machine."""
    if not fnmatch(path.name, _SETTINGS):
        return path
    content = read_json(path, "save the student again")
    cleaned = _cleaned(content)
    if cleaned == content:
        return path
    return (json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n").encode()


def _cleaned(content: Any, *, is_place: bool = False) -> Any:
    """Shorten paths where settings hold some; a label or a token may look like one."""
    if isinstance(content, Mapping):
        return {k: _cleaned(v, is_place=str(k).endswith(_PLACES)) for k, v in content.items()}
    if isinstance(content, list):
        return [_cleaned(value, is_place=is_place) for value in content]
    return display_name(content) if is_place and isinstance(content, str) else content
