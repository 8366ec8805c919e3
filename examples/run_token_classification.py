"""Distil a tagger of words, such as named entities, in your own script.

    python examples/run_token_classification.py --student STUDENT --teacher TEACHER \
        --dataset json --train_file train.jsonl --validation_file dev.jsonl --output_dir distilled

STUDENT and TEACHER are directories or Hub ids of models with the same tokenizer. The data are files
(`--dataset json` or `parquet`) or a data set of the Hub (`--dataset unimelb-nlp/wikiann
--dataset_config en --tags_column ner_tags`); each row has a list of words and one of tags, called
what the teacher calls them. `--baseline` trains without the teacher, from the same start, to
compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from seqeval.metrics import f1_score, precision_score, recall_score
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    HfArgumentParser,
    set_seed,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments

IGNORED = -100


@dataclass
class ScriptArguments:
    """Options of the script in addition to the training arguments."""

    student: str
    dataset: str
    teacher: str | None = None
    baseline: bool = False
    dataset_config: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    validation_split: str = "validation"
    tokens_column: str = "tokens"
    tags_column: str = "tags"
    max_length: int = 128


def load_features(script: ScriptArguments, tokenizer: Any) -> tuple[Dataset, Dataset, list[str]]:
    """The inputs for training and validation, and the names of the tags."""
    files = {"train": script.train_file, "validation": script.validation_file}
    train, validation = load_dataset(
        script.dataset,
        script.dataset_config,
        data_files=files if script.train_file else None,
        split=["train", script.validation_split],
    )
    feature = train.features[script.tags_column].feature
    if isinstance(feature, ClassLabel):
        labels, names = range(feature.num_classes), feature.names
    else:
        labels = names = sorted({tag for tags in train[script.tags_column] for tag in tags})
    numbers = {label: number for number, label in enumerate(labels)}

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        # As running text: so every tokenizer encodes words as it does in use.
        texts = [" ".join(words) for words in batch[script.tokens_column]]
        encoding = tokenizer(texts, truncation=True, max_length=script.max_length)
        labels = [[IGNORED] * len(ids) for ids in encoding["input_ids"]]
        for row, words in enumerate(batch[script.tokens_column]):
            begin = 0
            for word, tag in zip(words, batch[script.tags_column][row], strict=True):
                first = encoding.char_to_token(row, begin) if word else None
                if first is not None:  # it is None where the text was cut off
                    labels[row][first] = numbers[tag]
                begin += len(word) + 1
        return {**encoding, "labels": labels}

    train, validation = (
        split.map(encode, batched=True, remove_columns=split.column_names)
        for split in (train, validation)
    )
    return train, validation, names


def entity_scores(prediction: EvalPrediction, names: list[str]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, as the CoNLL script counts them."""
    found, gold = [], []
    predicted = prediction.predictions.argmax(axis=-1)
    for guesses, labels in zip(predicted, prediction.label_ids, strict=True):
        words = labels != IGNORED
        found.append([names[number] for number in guesses[words]])
        gold.append([names[number] for number in labels[words]])
    scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return {name: float(score(gold, found, zero_division=0)) for name, score in scores.items()}


def main() -> None:
    """Train, evaluate and save."""
    parser = HfArgumentParser((ScriptArguments, DistillationTrainingArguments))
    script, args = parser.parse_args_into_dataclasses()
    if script.baseline:
        args.distillation_loss_weight = 0.0

    tokenizer = AutoTokenizer.from_pretrained(script.student)
    with args.main_process_first(desc="preparing the data"):
        train, validation, names = load_features(script, tokenizer)

    set_seed(args.seed)  # a new head begins the same with and without the teacher
    student = AutoModelForTokenClassification.from_pretrained(
        script.student,
        dtype="float32",  # many are saved in half precision
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=script.teacher,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        compute_metrics=partial(entity_scores, names=names),
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model()


if __name__ == "__main__":
    main()
