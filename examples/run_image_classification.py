"""Distil an image classifier in your own script.

    python examples/run_image_classification.py --student STUDENT --teacher TEACHER \
        --dataset photos --output_dir distilled

STUDENT and TEACHER are directories or Hub ids; both get what the student's image processor makes of
an image, so they need the same size and normalisation. The data are a folder with
`train/LABEL/….png` and `validation/LABEL/….png`, or a data set of the Hub (`--dataset
uoft-cs/cifar10 --image_column img --validation_split test`). `--baseline` trains without the
teacher, from the same start, to compare with.

Pillow must be installed, and for transformers 5.17 torchvision as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
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
    validation_split: str = "validation"
    image_column: str = "image"
    label_column: str = "label"


def load_images(script: ScriptArguments, processor: Any) -> tuple[Dataset, Dataset, list[str]]:
    """The images for training and validation, prepared when read, and the names of the labels."""

    def prepare(batch: dict[str, list[Any]]) -> dict[str, Any]:
        # Here is the place for random crops and flips of training images.
        images = [image.convert("RGB") for image in batch["image"]]
        return {**processor(images, return_tensors="pt"), "labels": batch["labels"]}

    train, validation = (
        split.select_columns([script.image_column, script.label_column])
        .rename_columns({script.image_column: "image", script.label_column: "labels"})
        .with_transform(prepare)
        for split in load_dataset(
            script.dataset, script.dataset_config, split=["train", script.validation_split]
        )
    )
    return train, validation, train.features["labels"].names


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of images with the right label."""
    right = prediction.predictions.argmax(axis=-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def main() -> None:
    """Train, evaluate and save."""
    parser = HfArgumentParser((ScriptArguments, DistillationTrainingArguments))
    script, args = parser.parse_args_into_dataclasses()
    if script.baseline:
        args.distillation_loss_weight = 0.0
    args.remove_unused_columns = False  # the model takes no images, but they become its inputs

    processor = AutoImageProcessor.from_pretrained(script.student)
    with args.main_process_first(desc="loading the data"):
        train, validation, names = load_images(script, processor)

    set_seed(args.seed)  # a new head begins the same with and without the teacher
    student = AutoModelForImageClassification.from_pretrained(
        script.student,
        dtype="float32",  # some are saved in half precision
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        ignore_mismatched_sizes=True,  # most come with a head for the 1,000 classes of ImageNet
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=script.teacher,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=accuracy,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model()


if __name__ == "__main__":
    main()
