"""What the complete trainings of ``time_to_quality.py`` share: their setting, and checkpoints.

This runs in the environments of the peers, so it needs nothing but transformers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


@dataclass(frozen=True)
class Setting:
    """What a training is told in its only argument, a JSON object."""

    teacher: str
    student: str
    train_file: str
    validation_file: str
    output: str
    epochs: int
    seed: int
    max_length: int
    doc_stride: int
    bf16: bool
    """Whether bfloat16 is fast on this machine."""
    more: tuple[str, ...] = ()
    """Further options of a training."""


def read_setting() -> Setting:
    """Return the setting on the command line."""
    return Setting(**json.loads(sys.argv[1]))


class Checkpoints:
    """Models after each epoch, and the CPU seconds of the process until then.

    Args:
        setting: the folder to write into.
    """

    def __init__(self, setting: Setting) -> None:
        self._folder = Path(setting.output)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer = setting.student
        self._spent = 0.0
        """CPU seconds of saving, which is for this comparison alone."""
        self._points: list[dict[str, Any]] = []

    def save(self, model: Any) -> None:
        """Save a model of transformers."""
        now = time.process_time()
        name = f"point-{len(self._points)}"
        model.save_pretrained(self._folder / name)
        AutoTokenizer.from_pretrained(self._tokenizer).save_pretrained(self._folder / name)
        self.add(name, now)
        self._spent += time.process_time() - now

    def add(self, name: str, cpu: float) -> None:
        """Note a folder, and the CPU seconds when the training was there."""
        self._points.append({"folder": name, "cpu_seconds": cpu - self._spent})

    def write(self) -> None:
        """Write the list of all points, when the training has ended."""
        text = json.dumps({"points": self._points})
        (self._folder / "points.json").write_text(text, encoding="utf-8")


def features(setting: Setting) -> dict[str, list[list[int]]]:
    """Return windows of SQuAD, not padded, with the places of answers, made as one does by hand."""
    tokenizer = AutoTokenizer.from_pretrained(setting.student)
    questions, contexts, answers = [], [], []
    for paragraph in _paragraphs(setting.train_file):
        for entry in paragraph["qas"]:
            questions.append(entry["question"].strip())
            contexts.append(paragraph["context"])
            answers.append(entry["answers"][0])
    encoding = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=setting.max_length,
        stride=setting.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    columns: dict[str, list[Any]] = {
        name: encoding[name] for name in ("input_ids", "token_type_ids", "attention_mask")
    }
    columns |= {"start_positions": [], "end_positions": []}
    for window, row in enumerate(encoding["overflow_to_sample_mapping"]):
        begin = answers[row]["answer_start"]
        end = begin + len(answers[row]["text"])
        of_context = [
            (place, offsets)
            for place, (offsets, part) in enumerate(
                zip(encoding["offset_mapping"][window], encoding.sequence_ids(window), strict=True)
            )
            if part == 1
        ]
        inside = [place for place, (first, last) in of_context if first < end and last > begin]
        whole = of_context[0][1][0] <= begin and of_context[-1][1][1] >= end
        columns["start_positions"].append(inside[0] if whole else 0)
        columns["end_positions"].append(inside[-1] if whole else 0)
    return columns


def _paragraphs(file: str) -> Iterable[dict[str, Any]]:
    for article in json.loads(Path(file).read_text(encoding="utf-8"))["data"]:
        yield from article["paragraphs"]
