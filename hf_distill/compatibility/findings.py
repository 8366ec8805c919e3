"""What a check found out, said in one sentence, with what to change."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "refused"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        about: what was looked at: tokenizer, labels, vocabulary, …
        status: ``ok``; ``warning``: it may be right, look at it; ``refused``: it would train
            something wrong.
        message: what was found; unless it is ``ok``, with what to change.
    """

    about: str
    status: Status
    message: str


def note(about: str, message: str) -> Finding:
    """Something that is all right and worth saying."""
    return Finding(about, "ok", message)


def warning(about: str, message: str) -> Finding:
    """Something that nobody but the user can know to be right."""
    return Finding(about, "warning", message)


def refused(about: str, message: str) -> Finding:
    """Something that would train a student quietly and badly."""
    return Finding(about, "refused", message)


def enforce(findings: Iterable[Finding], logger: logging.Logger) -> None:
    """Log warnings and notes.

    Raises:
        ValueError: something is refused; the message has all that is.
    """
    findings = list(findings)
    problems = [finding.message for finding in findings if finding.status == "refused"]
    if problems:
        raise ValueError("\n".join(problems))
    for finding in findings:
        if finding.status == "warning":
            logger.warning("%s", finding.message)
        else:
            logger.info("%s", finding.message)
