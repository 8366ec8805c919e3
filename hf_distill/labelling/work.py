"""The scores of a data set's rows, in parts that survive a kill."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from accelerate import PartialState
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import Tensor
from transformers.utils import logging

from hf_distill.files import differences, in_use, json_hash, read_json, write_json
from hf_distill.labelling.prompts import EncodedRow, Prompt
from hf_distill.labelling.scoring import WordScorer
from hf_distill.teachers.caching.parts import Part, PartFiles

logger = logging.get_logger(__name__)

_PART_ROWS = 256
_MANIFEST, _LOCK = "manifest.json", ".lock"
_INFORMATIVE = ("versions", "batch_size", "teacher.name", "teacher.revision")
"""Recorded; the scores may differ by them in the last bits."""
_SETTINGS = ("calibrate", "column", "table_sha256")
"""What is done with the scores afterwards."""
_POLL_SECONDS = 0.2


class Work:
    """A folder with the scores of rows, computed part by part.

    Args:
        folder: where they are.
        manifest: what the scores are of.
        words: how many words are scored.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], words: int) -> None:
        self._folder = folder
        self._manifest = {k: v for k, v in manifest.items() if k not in _SETTINGS}
        rows = manifest["data"]["rows"]
        starts = [*range(0, rows, _PART_ROWS), rows]
        self._parts = [Part(number, *part) for number, part in enumerate(pairwise(starts))]
        features = Features({"scores": List(Value("float64"), length=words), "cut": Value("bool")})
        key = {name: self._manifest[name] for name in ("prompt", "label_words", "labels", "data")}
        weights = self._manifest["teacher"]["weights_sha256"]
        self._files = PartFiles(folder, self._parts, features, json_hash([weights, key]))

    def prepare(self, stack: ExitStack) -> None:
        """Lock the folder, and begin or resume.

        Raises:
            ValueError: it is of another run, or another process works in it.
        """
        name = self._folder.name
        stack.enter_context(
            in_use(
                self._folder / _LOCK,
                f"output_path: another process labels the same file (it works in {name}); wait "
                "for it, or name another file.",
            )
        )
        before = stored_manifest(self._folder)
        if before is not None:
            if changed := changes(before, self._manifest):
                raise ValueError(
                    f"output_path: the folder {name} next to it holds the parts of another run: "
                    f"{'; '.join(changed)}. Delete it to begin again, or name another file."
                )
        else:
            write_json(self._folder / _MANIFEST, self._manifest)
        self._files.remove_unfinished()
        for file, fault in self._files.faults().items():
            logger.warning("%s is computed again: %s.", file.name, fault)
            file.unlink()

    def compute(
        self, dataset: Dataset, prompt: Prompt, scorer: WordScorer, state: PartialState
    ) -> None:
        """Compute the missing parts; several processes share them out."""
        state.wait_for_everyone()
        missing = self._files.missing()
        # All look before any adds a file: they share out the same list.
        state.wait_for_everyone()
        mine = missing[state.process_index :: state.num_processes]
        if state.is_main_process and len(missing) < len(self._parts):
            logger.warning(
                "%d of %d parts are there already.",
                len(self._parts) - len(missing),
                len(self._parts),
            )
        with logging.tqdm(
            total=sum(part.stop - part.start for part in mine),
            desc="labelling",
            unit=" rows",
            disable=not state.is_main_process or not mine or None,
        ) as bar:
            for part in mine:
                texts = dataset[part.start : part.stop]
                rows = [
                    prompt.encode({name: texts[name][row] for name in prompt.columns})
                    for row in range(part.stop - part.start)
                ]
                self._files.write(part, _columns(rows, _scores(rows, scorer, bar)))
        # Not a barrier of the process group alone: that gives up after half an hour.
        while any(self._files.find(part) is None for part in missing):
            time.sleep(_POLL_SECONDS)
        state.wait_for_everyone()

    def read(self) -> tuple[Tensor, int]:
        """Return the scores of all rows, and how many had a text that was cut."""
        stored = concatenate_datasets([self._files.read(part) for part in self._parts])
        return torch.tensor(np.array(stored["scores"])), sum(stored["cut"])


def stored_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of the run whose parts are in a folder; ``None`` if there is none."""
    path = folder / _MANIFEST
    if not path.exists():
        return None
    return read_json(path, f"delete the folder {folder.name} to begin again")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between two runs."""
    return differences(before, now, ignore=_INFORMATIVE)


def _scores(rows: Sequence[EncodedRow], scorer: WordScorer, bar: Any) -> Tensor:
    """Score rows in batches of similar length, the longest first: what does not fit fails soon."""
    scores = torch.empty(len(rows), len(rows[0].endings), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row].prefix))
    for start in range(0, len(order), scorer.batch_size):
        batch = order[start : start + scorer.batch_size]
        scores[batch] = scorer.scores([rows[row] for row in batch])
        bar.update(len(batch))
    return scores


def _columns(rows: Sequence[EncodedRow], scores: Tensor) -> dict[str, pyarrow.Array]:
    values = pyarrow.array(scores.flatten().numpy())
    return {
        "scores": pyarrow.FixedSizeListArray.from_arrays(values, scores.shape[1]),
        "cut": pyarrow.array([row.cut for row in rows]),
    }
