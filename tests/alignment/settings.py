"""Student, teacher of another tokenizer and data, of each kind of alignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import test_answers as answers
import test_language_models as causal
import test_masked_models as masked
import test_tags as tags
from datasets import Dataset, concatenate_datasets
from other_ids import TEXTS, trained
from transformers import BertForSequenceClassification, DataCollatorWithPadding
from vocabularies import KINDS

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


def setting(name: str) -> Setting:
    """One of them, with ``ROWS`` rows."""
    student, teacher, rows, *others = SETTINGS[name]()
    return student, teacher, concatenate_datasets([rows] * ROWS).select(range(ROWS)), *others
