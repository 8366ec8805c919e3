"""What the tests of the commands share: data, scores written anew, and results."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

FACTS = (
    ("paris", "france", "seine"),
    ("rome", "italy", "tiber"),
    ("london", "england", "thames"),
    ("cairo", "egypt", "nile"),
    ("vienna", "austria", "danube"),
    ("berlin", "germany", "spree"),
)
WINDOWS = ["--max_length", "48", "--doc_stride", "8"]


class Files(NamedTuple):
    """Everything a command needs; models by role."""

    folder: Path
    train: str
    validation: str
    models: dict[str, str]


def squad(facts: tuple[tuple[str, str, str], ...] = FACTS, *, version_2: bool = False) -> dict:
    """Questions in the layout of SQuAD."""
    paragraphs = []
    for city, country, river in facts:
        context = f"{city}, in {country}, is on the {river}."
        questions = [("country?", country), ("river?", river)]
        rows = [
            {
                "id": f"{city}-{question}",
                "question": question,
                "answers": [{"text": text, "answer_start": context.index(text)}],
            }
            for question, text in questions
        ]
        if version_2:
            for row in rows:
                row["is_impossible"] = False
            rows.append(
                {"id": f"{city}-who?", "question": "who?", "answers": [], "is_impossible": True}
            )
        paragraphs.append({"context": context, "qas": rows})
    return {"version": "1", "data": [{"title": "rivers", "paragraphs": paragraphs}]}


def gold_answers(path: str) -> dict[str, list[str]]:
    """The accepted answers of a SQuAD file by question id."""
    content = json.loads(Path(path).read_text())
    return {
        row["id"]: [answer["text"] for answer in row["answers"]]
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for row in paragraph["qas"]
    }


def words(text: str) -> list[str]:
    """The normalisation of SQuAD, written anew."""
    text = re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())
    return [word for word in text.split() if word not in ("a", "an", "the")]


def overlap(one: str, other: str) -> float:
    """F1 of two texts' words, written anew; 1 for two empty ones."""
    left, right = Counter(words(one)), Counter(words(other))
    if not left and not right:
        return 1.0
    return 2 * sum((left & right).values()) / (left.total() + right.total())


class Result(NamedTuple):
    """What a call of the program came to."""

    status: int
    stdout: str
    stderr: str


def assert_says_nothing_about_the_machine(folder: Path, *secrets: str) -> None:
    """No written text names a path of this machine, its host or its user."""
    written = [path for path in folder.iterdir() if path.suffix in (".json", ".md")]
    assert written
    for path in written:
        text = path.read_text(encoding="utf-8")
        for secret in secrets:
            assert secret not in text, f"{path.name} has {secret}"
