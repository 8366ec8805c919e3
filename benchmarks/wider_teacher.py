"""A 12 × 768 sentence encoder made narrower and shallower: what is left of it before any training.

Of each student: the mean cosine of its embeddings to the teacher's, and how often the paragraph
nearest to a question is the one that the question was asked about; on SQuAD paragraphs that the
regression has not seen. CPU seconds, and the peak of the process' memory above the loaded teacher,
in a process of its own. A student that has a result is not made again.

python benchmarks/wider_teacher.py SENTENCE_TRANSFORMER_FOLDER TRAIN_FILE VALIDATION_FILE
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from report import RESULTS, record_part, replace_section
from sentence_transformers import SentenceTransformer

from hf_distill import create_student
from hf_distill.tasks.question_answering import load_question_answering_dataset

PARAGRAPHS, CALIBRATION = 150, 300
SHAPES: dict[str, dict[str, Any]] = {
    "12 × 768 (teacher)": {},
    "12 × 576": {"hidden_size": 576},
    "12 × 384": {"hidden_size": 384},
    "6 × 768, copied": {"num_hidden_layers": 6},
    "6 × 768, least squares": {"num_hidden_layers": 6, "initialization": "least_squares"},
    "6 × 384": {"num_hidden_layers": 6, "hidden_size": 384},
}


def rows(file: str, paragraphs: int) -> tuple[list[str], list[str]]:
    """Return one question of each of the first paragraphs, and the paragraphs."""
    data = load_question_answering_dataset(file)
    first = dict(zip(reversed(data["context"]), reversed(data["question"]), strict=True))
    contexts = sorted(first)[:paragraphs]
    return [first[context] for context in contexts], contexts


def embed(model: SentenceTransformer, texts: list[str]) -> torch.Tensor:
    """Return normalised embeddings."""
    found = model.encode(texts, batch_size=16, convert_to_tensor=True, show_progress_bar=False)
    return torch.nn.functional.normalize(found, dim=1)


def peak_mib() -> float:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(shape: str, vectors: str, folder: str, train: str, validation: str) -> dict[str, Any]:
    """Create one student; what it took and how near it is.

    Args:
        shape: a key of ``SHAPES``.
        vectors: file of the teacher's embeddings, which the teacher's own row writes.
        folder: the teacher.
        train: what students are made on.
        validation: what they are measured on.
    """
    teacher: Any = SentenceTransformer(folder, device="cpu")
    student, found = teacher, dict[str, Any]()
    if SHAPES[shape]:
        texts = [text for pair in zip(*rows(train, CALIBRATION), strict=True) for text in pair]
        before, cpu = peak_mib(), time.process_time()
        copied = SHAPES[shape] == {"num_hidden_layers": 6}
        student = create_student(
            teacher, **SHAPES[shape], calibration_data=None if copied else texts
        )
        found = {
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_mib": round(peak_mib() - before),
        }
    questions, paragraphs = rows(validation, PARAGRAPHS)
    ours = embed(student, questions + paragraphs)
    if not SHAPES[shape]:
        np.save(vectors, ours.numpy())
    nearest = (ours[: len(questions)] @ ours[len(questions) :].T).argmax(1)
    hits = (nearest == torch.arange(len(questions))).double().mean().item()
    cosine = (torch.from_numpy(np.load(vectors)) * ours).sum(1).mean().item()
    return {
        "parameters": sum(p.numel() for p in student.parameters()),
        "cosine": round(cosine, 4), "found": round(100 * hits, 1), **found,
    }  # fmt: skip


def render(results: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        "| student | parameters | cosine to the teacher | right paragraph first | CPU seconds | "
        "peak memory above the teacher |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for shape in SHAPES:
        row = results[shape]
        cost = f"{row['cpu_seconds']:.0f} | {row['peak_mib']:,} MiB" if "peak_mib" in row else "|"
        lines.append(
            f"| {shape} | {row['parameters'] / 1e6:.1f} M | {row['cosine']:.3f} | "
            f"{row['found']:.1f} % | {cost} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs=3, metavar="FOLDER TRAIN VALIDATION")
    parser.add_argument("--only", nargs=2, metavar=("SHAPE", "VECTORS"))
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(*given.only, *given.files)))
        sys.exit()
    with tempfile.TemporaryDirectory() as made:
        path = RESULTS / "wider_teacher.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, sizes in SHAPES.items():
            if sizes and name in results:
                continue
            only = ["--only", name, f"{made}/vectors.npy"]
            done = subprocess.run(
                [sys.executable, __file__, *given.files, *only],
                stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            print(name, done.stdout.splitlines()[-1], flush=True)
            results = record_part("wider_teacher", name, json.loads(done.stdout.splitlines()[-1]))
    replace_section("wider_teacher", render(results))
