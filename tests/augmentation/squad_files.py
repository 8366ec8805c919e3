"""Small SQuAD documents, and a look at augmented ones that shares no code with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTEXTS = (
    "Paris is the big capital of France, and the old river near the town is famous.",
    "London (England) stands near a dark river; the young queen sees the green garden.",
    "The king walks to the old stone bridge. The boy finds an apple and an orange in the house!",
)


def answer(context: str, text: str) -> dict[str, Any]:
    return {"text": text, "answer_start": context.index(text)}


def document(*, version_2: bool = False) -> dict[str, Any]:
    questions = [
        [("q1", "which capital?", ["Paris"]), ("q2", "river where?", ["near the town", "town"])],
        [("q3", "who sees the garden?", ["young queen"])],
        [("q4", "what stands there?", ["stone bridge"]), ("q5", "who finds it?", ["boy"])],
    ]  # fmt: skip
    paragraphs = []
    for context, asked in zip(CONTEXTS, questions, strict=True):
        qas: list[dict[str, Any]] = [
            {"id": name, "question": question, "answers": [answer(context, t) for t in texts]}
            for name, question, texts in asked
        ]
        if version_2:
            for qa in qas:
                qa["is_impossible"] = False
            qas.append(
                {
                    "id": f"{asked[0][0]}-no",
                    "question": "who is the dog?",
                    "answers": [],
                    "plausible_answers": [answer(context, asked[0][2][0])],
                    "is_impossible": True,
                }
            )
        paragraphs.append({"qas": qas, "context": context, "note": "ß\u2028"})
    return {
        "version": "v2.0" if version_2 else "1.1",
        "data": [
            {"title": "Rivers", "paragraphs": paragraphs[:2]},
            {"paragraphs": paragraphs[2:], "title": "Bridges", "more": [1]},
        ],
    }


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def paragraphs(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [paragraph for article in content["data"] for paragraph in article["paragraphs"]]


def questions(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [question for paragraph in paragraphs(content) for question in paragraph["qas"]]


def check_answers(content: dict[str, Any]) -> int:
    """How many answers there are; all of them must be in their context."""
    count = 0
    for paragraph in paragraphs(content):
        for question in paragraph["qas"]:
            for one in (*question["answers"], *question.get("plausible_answers", ())):
                start = one["answer_start"]
                assert paragraph["context"][start : start + len(one["text"])] == one["text"]
                count += 1
    return count
