"""Distil a text classifier in your own script.

    python examples/run_classification.py --student STUDENT --teacher TEACHER \
        --dataset csv --train_file train.csv --validation_file dev.csv --output_dir distilled

STUDENT and TEACHER are directories or Hub ids of models with the same tokenizer. The data are files
(`--dataset csv`, `json` or `parquet`) or a data set of the Hub (`--dataset stanfordnlp/imdb
--validation_split test`), with a column of texts and one of labels, called what the teacher calls
them. `--baseline` trains without the teacher, from the same start, to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    set_seed,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments


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
    text_column: str = "text"
    label_column: str = "label"
    max_length: int = 128


def load_features(script: ScriptArguments, tokenizer: Any) -> tuple[Dataset, Dataset, list[str]]:
    """The inputs for training and validation, and the names of the labels."""
    files = {"train": script.train_file, "validation": script.validation_file}
    train, validation = load_dataset(
        script.dataset,
        script.dataset_config,
        data_files=files if script.train_file else None,
        split=["train", script.validation_split],
    )
    feature = train.features[script.label_column]
    if isinstance(feature, ClassLabel):
        labels, names = range(feature.num_classes), feature.names
    else:
        labels = sorted(train.unique(script.label_column))
        names = [str(label) for label in labels]
    numbers = {label: number for number, label in enumerate(labels)}

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = batch[script.text_column]
        encoding = tokenizer(texts, truncation=True, max_length=script.max_length)
        return {**encoding, "labels": [numbers[label] for label in batch[script.label_column]]}

    train, validation = (
        split.map(encode, batched=True, remove_columns=split.column_names)
        for split in (train, validation)
    )
    return train, validation, names


def load_student(script: ScriptArguments, names: list[str]) -> Any:
    """The model to train; float32, for many are saved in half precision."""
    return AutoModelForSequenceClassification.from_pretrained(
        script.student,
        dtype="float32",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of texts with the right label."""
    right = prediction.predictions.argmax(axis=-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


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
    trainer = DistillationTrainer(
        model=load_student(script, names),
        teacher_model=script.teacher,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model()


if __name__ == "__main__":
    main()
