"""The worker of sentence-transformers: its cross-encoder learns a teacher's scores, by ``MSELoss``.

As in its documentation, the teacher scores all pairs of texts first, and they are a column.
"""

from __future__ import annotations

import os
from typing import Any

from datasets import Dataset
from hugging_face import train, trainer_options
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import MSELoss
from torch import Tensor, nn
from worker import Gate, Setting, described, serve


def texts(setting: Setting) -> tuple[list[str], list[str]]:
    """Return the words of all pairs, which its tokenizer makes the same rows of."""
    rows = setting.load_rows()
    first, second = [], []
    for ids, types in zip(rows["input_ids"], rows["token_type_ids"], strict=True):
        first.append(words(ids[types == 0][1:-1]))  # without [CLS] and [SEP]
        second.append(words(ids[types == 1][:-1]))
    return first, second


def words(ids: Tensor) -> str:
    """Return the words of tokens; the vocabulary is made so that they tell their numbers."""
    return " ".join(f"w{token}" for token in ids.tolist())


def distil(setting: Setting) -> None:
    """Train as documented; in several processes, if that fails, with what DDP needs."""
    try:
        train_student(setting)
    except RuntimeError as error:
        if "LOCAL_RANK" not in os.environ:
            raise
        # DDP looks for unused weights by default, in outputs of a type that it does not search.
        obstacle = described(error)["error"]
        train_student(setting, obstacle, ddp_find_unused_parameters=False)


def train_student(setting: Setting, obstacle: str = "", **options: Any) -> None:
    """Train, as the gate lets it."""
    gate = Gate(setting, "sentence-transformers", "CrossEncoder; tokenises the texts in the step")
    gate.obstacle = obstacle
    first, second = texts(setting)
    teacher = CrossEncoder(setting.teacher, device="cpu", activation_fn=nn.Identity())
    scores = teacher.predict(
        list(zip(first, second, strict=True)),
        batch_size=setting.batch_size,
        show_progress_bar=False,
    )
    del teacher
    student = CrossEncoder(setting.student, device="cpu")
    trainer = CrossEncoderTrainer(
        model=student,
        args=CrossEncoderTrainingArguments(**trainer_options(setting), **options),
        train_dataset=Dataset.from_dict(
            {"first": first, "second": second, "label": [float(score) for score in scores]}
        ),
        loss=MSELoss(student),
    )
    train(trainer, gate, setting)


if __name__ == "__main__":
    serve(distil)
