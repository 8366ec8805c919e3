"""Shrink in steps: cut a part of the width, distil, cut again.

    python examples/gradual_shrinking.py --teacher TEACHER --hidden_sizes 288 192 \
        --train_file train.json --validation_file dev.json --output_dir shrunk \
        --num_train_epochs 2 --learning_rate 3e-4

TEACHER is a directory or Hub id of a fine-tuned question-answering model. Each student is made from
the one before it, and learns from TEACHER. Each has a folder of its own in the output directory,
named after its width. A run that was stopped resumes when it is started again: finished students
are loaded, and the one that was trained continues at its last checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForQuestionAnswering, AutoTokenizer, HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import DistillationTrainer, DistillationTrainingArguments, create_student
from hf_distill.tasks.question_answering import (
    QuestionAnsweringEvaluator,
    load_question_answering_dataset,
    prepare_eval_features,
    prepare_train_features,
)


@dataclass
class ScriptArguments:
    """Options of the script in addition to the training arguments, which are those of each step."""

    teacher: str
    hidden_sizes: list[int]
    train_file: str
    validation_file: str
    max_length: int = 384
    doc_stride: int = 128
    calibration_tokens: int = 8192


def main() -> None:
    """Make, distil, evaluate and save one student after the other."""
    parser = HfArgumentParser((ScriptArguments, DistillationTrainingArguments))
    script, all_steps = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(script.teacher)
    windows: dict[str, Any] = {"max_length": script.max_length, "doc_stride": script.doc_stride}
    validation = load_question_answering_dataset(script.validation_file)
    with all_steps.main_process_first(desc="preparing the data"):
        train = prepare_train_features(
            load_question_answering_dataset(script.train_file), tokenizer, **windows
        )
        validation_features = prepare_eval_features(validation, tokenizer, **windows)

    teacher = AutoModelForQuestionAnswering.from_pretrained(script.teacher, dtype="float32")
    student = teacher
    for width in script.hidden_sizes:
        folder = Path(all_steps.output_dir) / str(width)
        args = replace(all_steps, output_dir=str(folder))
        if (folder / "trainer_state.json").exists():  # what is written last
            student = AutoModelForQuestionAnswering.from_pretrained(folder, dtype="float32")
            continue
        set_seed(args.seed)
        student = create_student(
            student,
            hidden_size=width,
            calibration_data=train,
            calibration_tokens=script.calibration_tokens,
            processing_class=tokenizer,
            seed=args.seed,
        )
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=args,
            train_dataset=train,
            eval_dataset=validation_features,
            processing_class=tokenizer,
            compute_metrics=QuestionAnsweringEvaluator(validation, validation_features),
        )
        checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.log_metrics("eval", trainer.evaluate())
        trainer.save_model()
        trainer.save_state()


if __name__ == "__main__":
    main()
