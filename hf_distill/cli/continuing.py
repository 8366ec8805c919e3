"""Advice on continuing a stopped command, printed once, by the command that was typed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from hf_distill.console import log_rank_0

_said_outside: ContextVar[bool] = ContextVar("said_outside", default=False)


@contextmanager
def continued_by(command: str, *, overwrites: bool = False) -> Iterator[None]:
    """Print how to continue after Ctrl-C or SIGTERM, unless a block around this one does.

    Args:
        command: what to do, such as ``repeat the command``.
        overwrites: it deletes what there was, which is not to be repeated.
    """
    from hf_distill.checkpoints.keeper import TERMINATED

    if is_said_outside():
        yield
        return
    token = _said_outside.set(True)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, KeyboardInterrupt) or error.code == TERMINATED:
            without = " without --overwrite_output_dir" if overwrites else ""
            log_rank_0(f"\nTo continue, {command}{without}.")
        raise
    finally:
        _said_outside.reset(token)


def is_said_outside() -> bool:
    """Return whether a command around this one prints how to continue."""
    return _said_outside.get()
