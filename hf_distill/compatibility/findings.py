"""Findings of a check: one sentence each, with what to change."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        about: what was looked at: tokenizer, labels, vocabulary, …
        status: ``ok``; ``warning``: it may be right, look at it; ``error``: the student
            would learn something wrong.
        message: what was found; unless it is ``ok``, with what to change.
    """

    about: str
    status: Status
    message: str


def info(about: str, message: str) -> Finding:
    """Return that something is all right."""
    return Finding(about, "ok", message)


def warning(about: str, message: str) -> Finding:
    """Return a finding that nobody but the user can know to be right."""
    return Finding(about, "warning", message)


def error(about: str, message: str) -> Finding:
    """Return a finding that would train a student quietly and badly."""
    return Finding(about, "error", message)


def raise_on_errors(findings: Iterable[Finding], logger: logging.Logger) -> None:
    """Log warnings and what is all right.

    Raises:
        ValueError: there are errors; the message has all of them.
    """
    findings = list(findings)
    problems = [finding.message for finding in findings if finding.status == "error"]
    if problems:
        raise ValueError("\n".join(problems))
    for finding in findings:
        if finding.status == "warning":
            logger.warning("%s", finding.message)
        else:
            logger.info("%s", finding.message)
