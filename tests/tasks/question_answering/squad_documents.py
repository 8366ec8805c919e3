"""Small files in the layouts of SQuAD v1.1, SQuAD v2.0 and GermanQuAD."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

CONTEXT = "Die „Größe“ misst 1,5 km²; Ämter: 3.\r\nWien liegt an der Donau."


def answer(text: str, context: str = CONTEXT) -> dict[str, Any]:
    return {"text": text, "answer_start": context.index(text)}


def v1() -> dict[str, Any]:
    return {
        "version": "1.1",
        "data": [
            {
                "title": "Wien",
                "paragraphs": [
                    {
                        "context": CONTEXT,
                        "qas": [
                            {"id": "a", "question": "Wo?", "answers": [answer("an der Donau")]},
                            {
                                "id": "b",
                                "question": "Wie groß?",
                                "answers": [answer("1,5 km²"), answer("1,5")],
                            },
                        ],
                    }
                ],
            }
        ],
    }


def v2() -> dict[str, Any]:
    document = v1()
    qas = document["data"][0]["paragraphs"][0]["qas"]
    for question in qas:
        question["is_impossible"] = False
    qas += [
        {
            "id": "c",
            "question": "Wann?",
            "answers": [],
            "plausible_answers": [answer("3")],
            "is_impossible": True,
        },
        {"id": "d", "question": "Wer?", "is_impossible": True},
    ]
    return document


def german() -> dict[str, Any]:
    document = v1()
    del document["data"][0]["title"]
    paragraph = document["data"][0]["paragraphs"][0]
    paragraph["document_id"] = 38640
    for number, question in enumerate(paragraph["qas"], start=50319):
        question |= {"id": number, "is_impossible": False}
        for one in question["answers"]:
            one |= {"answer_id": number + 1, "document_id": 38640, "question_id": number}
    return document


def write(path: Path, document: Any) -> Path:
    text = json.dumps(document, ensure_ascii=False, indent=1)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path
