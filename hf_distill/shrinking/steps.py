"""Steps of a run that are done once: a second run takes what an earlier one finished."""

from __future__ import annotations

import shutil
from pathlib import Path

from hf_distill._version import __version__
from hf_distill.files import read_json, write_json


class Steps:
    """Knows which steps of a folder are finished.

    A step is finished if the manifest of the same version of the package lists it, and its folder
    holds its result.

    Args:
        folder: where the steps leave their results; made if needed.
        manifest: name of the file that lists the finished steps.
        again: the option that forgets them, for errors.

    Raises:
        ValueError: if the manifest is not the file that this class writes.
    """

    def __init__(self, folder: Path, manifest: str, *, again: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / manifest
        self._finished: list[str] = []
        if self._path.exists():
            content = read_json(self._path, f"start again with {again}")
            if not isinstance(content.get("finished"), list):
                raise ValueError(
                    f"{self._path} does not list the finished steps; start again with {again}."
                )
            if content.get("hf_distill_version") == __version__:
                self._finished = content["finished"]

    def is_finished(self, name: str, result: str) -> bool:
        """Return whether an earlier run finished the step ``name``, which leaves ``result``."""
        return name in self._finished and (self._folder / name / result).is_file()

    def start(self, name: str, *, resumes: bool = False) -> None:
        """Forget an earlier result of the step ``name``, unless the step itself resumes from it."""
        if name in self._finished:
            self._finished.remove(name)
            self._write()
        if not resumes:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def finish(self, name: str) -> None:
        """Note that the step ``name`` is finished."""
        self._finished.append(name)
        self._write()

    def _write(self) -> None:
        write_json(self._path, {"hf_distill_version": __version__, "finished": self._finished})
