"""Two optimizer steps with a teacher of another tokenizer, as one of the processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alignment"))

import test_answers as answers
import test_language_models as causal
import test_masked_models as masked
import test_tags as tags
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, concatenate_datasets
from other_ids import TEXTS, trained
from runs import distil, logged
from step import LOSSES, sums
from transformers import BertForSequenceClassification, DataCollatorWithPadding
from vocabularies import KINDS

from hf_distill import cache_teacher_outputs
from hf_distill.alignment import TeacherReader, encode_for_teacher, encode_texts_for_teacher
from hf_distill.tasks.language_modeling import BlockCollator
from hf_distill.tasks.question_answering import prepare_train_features

ROWS = 8
Setting = tuple[Any, Any, Dataset, Any, Any, Any]
"""Student, teacher, data, both tokenizers, and the data collator."""


def labels() -> Setting:
    ours, theirs = KINDS["word_piece"](), KINDS["byte_level"]()
    models = [
        trained(BertForSequenceClassification, seed, vocab_size=len(one), num_labels=3)
        for seed, one in ((2, ours), (1, theirs))
    ]
    rows = Dataset.from_dict({"text": TEXTS, "labels": [0, 1, 2, 0, 2, 1, 0, 1]})
    rows = encode_for_teacher(rows.map(lambda row: ours(row["text"])), theirs)
    return *models, rows, ours, theirs, DataCollatorWithPadding(ours)


def questions() -> Setting:
    ours, theirs = answers.words("word_piece"), answers.words("byte_level")
    teacher = answers.model("byte_level", 1, max_position_embeddings=128)
    reader = TeacherReader(theirs, 128)
    rows = prepare_train_features(answers.examples(), ours, teacher=reader, **answers.LENGTHS)
    # The label loss counts padding; to the same length it has as much in every batch.
    collator = DataCollatorWithPadding(ours, padding="max_length", max_length=40)
    return answers.model("word_piece", 2), teacher, rows, ours, theirs, collator


def words() -> Setting:
    ours, theirs = tags.words("word_piece"), tags.words("byte_level")
    student = tags.model("word_piece", 2)
    rows = tags.features(ours, theirs, student)
    return student, tags.model("byte_level", 1), rows, ours, theirs, tags.collator(ours)


def chunks() -> Setting:
    ours, theirs = KINDS["word_piece"](), KINDS["unigram"]()
    rows = encode_texts_for_teacher(causal.rows(ours), ours, theirs)
    hidden = [[-100] * (3 * i) + row["labels"][3 * i :] for i, row in enumerate(rows)]
    rows = rows.remove_columns("labels").add_column("labels", hidden)
    models = causal.model(ours, 2), causal.model(theirs, 1)
    return *models, rows, ours, theirs, BlockCollator(ours)


def pieces() -> Setting:
    ours, theirs = KINDS[masked.OURS](), KINDS[masked.THEIRS]()
    models = masked.model(ours, 2), masked.model(theirs, 1)
    return *models, masked.rows(ours, theirs), ours, theirs, BlockCollator(ours)


SETTINGS: dict[str, Callable[[], Setting]] = {
    made.__name__: made for made in (labels, questions, words, chunks, pieces)
}


def main(output: str, batch_size: str, accumulation: str, cases: str) -> None:
    torch.set_num_threads(1)
    results = {}
    for name, case in json.loads(cases).items():
        AcceleratorState._reset_state()
        student, teacher, rows, ours, theirs, collator = SETTINGS[case["setting"]]()
        rows = concatenate_datasets([rows] * ROWS).select(range(ROWS))
        given = {"processing_class": ours, "teacher_processing_class": theirs}
        if case["cached"]:
            rows = cache_teacher_outputs(
                teacher,
                rows,
                output_dir=Path(output) / f"cache-{case['setting']}",
                data_collator=collator,
                dtype="float32",
                use_cpu=True,
                batch_size=3,
                **given,
            )
            teacher = None
        trainer, norms = distil(
            "",
            output,
            student=student,
            teacher=teacher,
            train_dataset=rows,
            trainer_options={"data_collator": collator, **given},
            per_device_train_batch_size=int(batch_size),
            gradient_accumulation_steps=int(accumulation),
            max_steps=2,
            optim="sgd",
            max_grad_norm=0.0,
            distillation_loss_weight=0.3,
            teacher_check_samples=0,
            train_sampling_strategy="sequential",
        )
        trained_student = trainer.accelerator.unwrap_model(trainer.model)
        results[name] = {
            **{loss: logged(trainer, loss) for loss in LOSSES},
            "norms": norms.norms,
            "processes": trainer.args.world_size,
            "aligned": trainer.distiller.alignment.two_encodings,
            "weights": sums(dict(trained_student.named_parameters())),
        }
    path = Path(output) / f"rank{os.environ.get('RANK', '0')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # gloo aborts at exit now and then
