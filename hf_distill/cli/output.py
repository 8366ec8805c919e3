"""Output of the commands, on terminals and pipes of any encoding."""

from __future__ import annotations

import codecs
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from hf_distill.files import HIDDEN, display_name, without_paths

_ABSOLUTE = re.compile(r"~|/|\\\\|[A-Za-z]:[/\\]")

_PLAIN = {
    "→": "->", "←": "<-", "↑": "^", "↓": "v", "…": "...", "×": "x", "±": "+-", "≥": ">=", "≤": "<=",
    "−": "-", "–": "-", "—": "-", "’": "'", "“": '"', "”": '"', "·": "-", "²": "^2",
}  # fmt: skip


@contextmanager
def warnings_said_once() -> Iterator[None]:
    """Say once what each stage, trial or step of a command would say of the same two models."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_repeated = record.levelno >= logging.WARNING and message in said
        said.add(message)
        return not is_repeated

    logger = logging.getLogger("hf_distill.teachers.create")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def make_output_safe() -> None:
    """Let the standard streams write what their encoding lacks in other characters.

    Left to itself, Python raises ``UnicodeEncodeError`` for an arrow on a stream in cp1252.
    """
    codecs.register_error("hf_distill", _in_other_characters)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="hf_distill")


def print_json(content: Any) -> None:
    """Print JSON that is valid in the encoding of the standard output."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(content, ensure_ascii=not is_unicode, indent=2) + "\n")


def _in_other_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(
        _PLAIN.get(one, one.encode("ascii", "backslashreplace").decode()) for one in lacking
    ), error.end


def shown_command(command: str, argv: Iterable[str]) -> str:
    """Return a command line for reports: without paths of this machine and without tokens."""
    words = ["hf-distill", command]
    option = ""
    for word in argv:
        name, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if word.startswith("--") and not sign:
            name, value = word, ""
        option = name or option
        if value and option.endswith("token"):
            value = HIDDEN
        plain = display_name(value) if _ABSOLUTE.match(value) else without_paths(value)
        words.append(shlex.quote(f"{name}{sign}{plain}"))
    return " ".join(words)
