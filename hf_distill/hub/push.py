"""Pushing a folder: one commit of what may be published, and a clear word if it fails."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hf_distill.hub.card import merged_cards
from hf_distill.hub.contents import CARD_FILE
from hf_distill.hub.front_matter import read_card
from hf_distill.loading import TRANSPORT_ERROR

logger = logging.getLogger(__name__)

_KEPT = ".push-"

_REASONS = {
    400: "the Hub refused the request",
    401: "there is no token, or it is wrong (set HF_TOKEN, or run `hf auth login`)",
    403: "this token may not write there",
    404: "there is no such repository, or this token may not see it",
    409: "somebody else has written to it at the same moment",
    413: "the Hub finds it too large",
    429: "the Hub asks to wait, after too many requests",
}


class PublishingError(OSError):
    """The Hub did not take something. What was to be pushed is on this machine, whole."""


def reason(error: Exception) -> str:
    """Explain in words why the Hub did not take something."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client wraps what comes of an upload
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        text = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        is_network = isinstance(error, (TRANSPORT_ERROR, ConnectionError, TimeoutError))
        return f"the Hub cannot be reached ({text})" if is_network else text
    fallback = "the Hub itself has failed" if status >= 500 else "the Hub refused"
    return f"{_REASONS.get(status, fallback)} (HTTP {status})"


@contextmanager
def hub_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn errors of the Hub inside into a ``PublishingError``: what failed, why, the remedy."""
    try:
        yield
    except PublishingError:
        raise
    except (OSError, TRANSPORT_ERROR, RuntimeError) as error:
        raise PublishingError(f"{what}: {reason(error)}. {remedy}") from error


def create_repository(
    repository: str, *, token: str | None = None, private: bool | None = None
) -> str:
    """Make a repository, if it is not there yet, and ask whether it may be written to.

    Returns:
        Its full id.

    Raises:
        OSError: the Hub cannot be reached, or does not allow it.
    """
    api = HfApi(token=token)
    created = str(api.create_repo(repository, private=private, exist_ok=True).repo_id)
    try:
        # The client is content if it may not make a repository that it can read.
        api.auth_check(created, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:  # not every Hub can be asked
            raise
    return created


def push_folder(
    files: Mapping[str, Path | bytes],
    repository: str,
    *,
    commit_message: str,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Push files as one commit: all of them arrive, or none.

    Other files of the repository stay, and so does what a person wrote into its card, unless the
    card that is pushed has a person's own words.

    Returns:
        The address of the commit.

    Raises:
        OSError: the Hub cannot be reached, or does not take it.
    """
    if CARD_FILE in files:
        there = _card_on_hub(repository, token, revision)
        files = {**files, CARD_FILE: merged_cards(_text(files[CARD_FILE]), there).encode()}
    return str(
        HfApi(token=token)
        .create_commit(
            repository, operations(files), commit_message=commit_message, revision=revision
        )
        .commit_url
    )


def push_in_background(
    files: Mapping[str, Path | bytes], repository: str, *, folder: Path, **options: Any
) -> Future[Any]:
    """Push as ``push_folder`` does while the training continues; warn of a failure.

    Args:
        files: as ``published_files`` finds them. They may be deleted at once, but not
            written over.
        repository: its id on the Hub.
        folder: where links to what is not pushed yet are kept, best on the same disk.
        **options: those of ``push_folder``.
    """
    kept = tempfile.TemporaryDirectory(prefix=_KEPT, dir=folder, ignore_cleanup_errors=True)
    links = {
        name: _linked(content, Path(kept.name) / name) if isinstance(content, Path) else content
        for name, content in files.items()
    }

    def push() -> str:
        with kept:
            try:
                return push_folder(links, repository, **options)
            except Exception as error:
                say_not_pushed(repository, error)
                raise

    return HfApi().run_as_future(push)


def forget_broken_pushes(folder: Path) -> None:
    """Delete what pushes have kept that were killed; no other may be going on."""
    for kept in folder.glob(f"{_KEPT}*"):
        shutil.rmtree(kept, ignore_errors=True)


def say_not_pushed(repository: str, error: Exception) -> None:
    """Warn of a push in between that failed."""
    logger.warning(
        f"The student could not be pushed to {repository} in between: {reason(error)}. "
        "Training continues."
    )


def _linked(path: Path, link: Path) -> Path:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, link)
    except OSError:  # not every file system has links
        shutil.copyfile(path, link)
    return link


def _card_on_hub(repository: str, token: str | None, revision: str | None) -> str | None:
    """Return the card that the repository has; ``None`` without one."""
    api = HfApi(token=token)
    if not api.file_exists(repository, CARD_FILE, revision=revision):
        return None
    with tempfile.TemporaryDirectory() as folder:
        found = api.hf_hub_download(repository, CARD_FILE, revision=revision, local_dir=folder)
        return read_card(Path(found), f"The {CARD_FILE} of {repository}")


def _text(content: Path | bytes) -> str:
    return (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8")


def operations(files: Mapping[str, Path | bytes]) -> list[CommitOperationAdd]:
    """Return what a commit is made of; new each time, as the client library changes it."""
    return [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
