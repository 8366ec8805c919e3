"""Steps of a run that are done once: a second run takes what an earlier one finished."""

from __future__ import annotations

import shutil
from pathlib import Path

from hf_distill._version import __version__
from hf_distill.files import read_json, write_json

_WEIGHTS = {".safetensors", ".onnx", ".onnx_data", ".data", ".arrow"}


class Steps:
    """Knows which steps of a folder are finished.

    A step is finished if the manifest of the same version of the package lists it, and its folder
    holds its result, and its weights and tables in the sizes that they had then.

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
        self._finished: dict[str, dict[str, int]] = {}
        if self._path.exists():
            content = read_json(self._path, f"start again with {again}")
            if not isinstance(content.get("finished"), dict):
                raise ValueError(
                    f"{self._path} does not list the finished steps; start again with {again}."
                )
            if content.get("hf_distill_version") == __version__:
                self._finished = content["finished"]

    def is_finished(self, name: str, result: str) -> bool:
        """Return whether an earlier run finished the step ``name``, which leaves ``result``."""
        place = self._folder / name
        return (
            name in self._finished
            and (place / result).is_file()
            and self._finished[name].items() <= _sizes(place).items()
        )

    def start(self, name: str, result: str, *, resumes: bool = False) -> None:
        """Forget an earlier result of the step ``name``, unless the step itself resumes from it.

        Files that are not what they were when the step was finished are deleted, and ``result``
        with them, by which the step knows that it was finished.
        """
        place = self._folder / name
        if name in self._finished:
            if damaged := dict(self._finished[name].items() - _sizes(place).items()):
                for file in (*damaged, result):
                    (place / file).unlink(missing_ok=True)
            del self._finished[name]
            self._write()
        if not resumes:
            shutil.rmtree(place, ignore_errors=True)

    def finish(self, name: str) -> None:
        """Note that the step ``name`` is finished."""
        self._finished[name] = _sizes(self._folder / name)
        self._write()

    def _write(self) -> None:
        write_json(self._path, {"hf_distill_version": __version__, "finished": self._finished})


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the weights and tables in a folder; checkpoints may be deleted."""
    files = (path for path in folder.rglob("*") if path.suffix in _WEIGHTS and path.is_file())
    named = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return {name: size for name, size in sorted(named.items()) if "checkpoint-" not in name}
