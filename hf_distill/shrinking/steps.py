"""Steps of a run that are done once: a second run takes what an earlier one finished."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from hf_distill._version import __version__
from hf_distill.files import file_hash, json_hash, read_json, write_json

MANIFEST = "demo.json"
RESULT = "model.safetensors"


class Steps:
    """Knows which steps of a folder are finished.

    A step is finished if the manifest lists it with the same fingerprint, which is made of the
    version of the package, what was asked for and the content of the files that go in, and its
    folder holds its result.

    Args:
        folder: where the steps leave their results; made if needed.
        fresh: forget what earlier runs have finished.
        manifest: name of the file that lists the finished steps.
        again: the option that forgets them, for errors.

    Raises:
        ValueError: if the manifest is not the file that this class writes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fresh: bool = False,
        manifest: str = MANIFEST,
        again: str = "--fresh",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / manifest
        self._finished: dict[str, str] = {}
        if self._path.exists() and not fresh:
            finished = read_json(self._path, f"start again with {again}").get("finished")
            if not isinstance(finished, dict):
                raise ValueError(
                    f"{self._path} does not list the finished steps; start again with {again}."
                )
            self._finished = finished

    def is_finished(self, name: str, fingerprint: str, result: str = RESULT) -> bool:
        """Whether an earlier run finished the step ``name`` for the same ``fingerprint``."""
        there = (self._folder / name / result).is_file()
        return self._finished.get(name) == fingerprint and there

    def start(self, name: str, *, resumes: bool = False) -> Path:
        """Forget an earlier result of the step ``name``, unless the step itself resumes from it.

        Returns:
            The folder for the new one.
        """
        if self._finished.pop(name, None) is not None:
            write_json(self._path, {"finished": self._finished})
        folder = self._folder / name
        if not resumes:
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    def finish(self, name: str, fingerprint: str) -> None:
        """Note that the step ``name`` is finished."""
        self._finished[name] = fingerprint
        write_json(self._path, {"finished": self._finished})


def fingerprint(words: Sequence[str], files: Sequence[Path] = ()) -> str:
    """A digest of what a step is asked for and of the files that it reads.

    Args:
        words: the request, such as the arguments of a command.
        files: files whose content matters.

    Returns:
        A SHA-256 in hexadecimal digits.
    """
    return json_hash([__version__, list(words), [file_hash(path) for path in files]])
