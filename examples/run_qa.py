"""Distil a question-answering model in your own script.

    python examples/run_qa.py --student STUDENT --teacher TEACHER \
        --train_file train-v2.0.json --validation_file dev-v2.0.json --output_dir distilled

STUDENT and TEACHER are directories or Hub ids of models with the same tokenizer. On several GPUs:

    accelerate launch examples/run_qa.py --student … (the same options)

`hf-distill train` does this and more from the command line; this is the place to start when your
script does something of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoModelForQuestionAnswering, AutoTokenizer, HfArgumentParser

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.tasks.question_answering import (
    QuestionAnsweringEvaluator,
    load_question_answering_dataset,
    prepare_eval_features,
    prepare_train_features,
)


@dataclass
class ScriptArguments:
    """Options of the script in addition to the training arguments."""

    student: str
    teacher: str
    train_file: str
    validation_file: str
    max_length: int = 384
    doc_stride: int = 128


def main() -> None:
    """Train, evaluate and save."""
    parser = HfArgumentParser((ScriptArguments, DistillationTrainingArguments))
    script, args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(script.student)
    windows = {"max_length": script.max_length, "doc_stride": script.doc_stride}
    validation = load_question_answering_dataset(script.validation_file)
    with args.main_process_first(desc="preparing the data"):
        train_features = prepare_train_features(
            load_question_answering_dataset(script.train_file), tokenizer, **windows
        )
        validation_features = prepare_eval_features(validation, tokenizer, **windows)

    trainer = DistillationTrainer(
        model=AutoModelForQuestionAnswering.from_pretrained(script.student, dtype="float32"),
        teacher_model=script.teacher,
        args=args,
        train_dataset=train_features,
        eval_dataset=validation_features,
        processing_class=tokenizer,
        compute_metrics=QuestionAnsweringEvaluator(validation, validation_features),
    )
    trainer.train()
    trainer.log_metrics("eval", trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
