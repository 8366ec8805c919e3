"""How much smaller a model gets by the vocabulary of a corpus, and what other texts lose.

python benchmarks/trim_vocabulary.py MODEL TRAIN_FILE VALIDATION_FILE OUTPUT_DIR

writes ``results/trim_vocabulary.json``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from report import circumstances, write_json
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from hf_distill.students import trim_vocabulary
from hf_distill.tasks.question_answering import load_question_answering_dataset

PAIRS, LONGEST = 64, 384


def texts(file: str) -> list[str]:
    """Return the questions and the contexts of a SQuAD file."""
    data = load_question_answering_dataset(file)
    return sorted({*data["question"]}) + sorted({*data["context"]})


def megabytes(folder: Path) -> float:
    """Return the size of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def main(source: str, train_file: str, validation_file: str, output_dir: str) -> None:
    """Trim the model to the training texts, and record what is left."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForQuestionAnswering.from_pretrained(source, dtype="float32").eval()
    corpus, others = texts(train_file), texts(validation_file)
    found: dict[str, Any] = {
        "texts": len(corpus),
        "whole": {"tokens": len(tokenizer), "parameters": model.num_parameters()},
    }
    for keeps in (True, False):
        begin = time.perf_counter()
        small, part = trim_vocabulary(model, tokenizer, corpus, keep_characters=keeps)
        seconds = time.perf_counter() - begin
        same = sum(part.tokenize(text) == tokenizer.tokenize(text) for text in others)
        row: dict[str, Any] = {
            "tokens": len(part),
            "parameters": small.num_parameters(),
            "seconds": seconds,
            "other texts encoded the same": same / len(others),
        }
        whole_folder, folder = Path(output_dir, "whole"), Path(output_dir, f"trimmed-{keeps}")
        for one, of, path in ((model, tokenizer, whole_folder), (small, part, folder)):
            one.save_pretrained(path)
            of.save_pretrained(path)
        found["whole"]["megabytes"] = megabytes(whole_folder)
        row["megabytes"] = megabytes(folder)
        row["rows of logits"], equal = 2 * PAIRS, 0
        for question, context in zip(corpus[:PAIRS], corpus[-PAIRS:], strict=True):
            answers: list[Any] = []
            for one, of in ((model, tokenizer), (small, part)):
                inputs = of(
                    question, context, return_tensors="pt", truncation=True, max_length=LONGEST
                )
                with torch.no_grad():
                    answers.append(one(**inputs))
            equal += torch.equal(answers[0].start_logits, answers[1].start_logits)
            equal += torch.equal(answers[0].end_logits, answers[1].end_logits)
        row["rows bit for bit the same"] = equal
        found["with all characters" if keeps else "without"] = row
        print(row, flush=True)
    write_json("trim_vocabulary", {**found, **circumstances()})


if __name__ == "__main__":
    main(*sys.argv[1:])
