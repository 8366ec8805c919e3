"""A student that is made from your fine-tuned teacher, in a script of your own.

    python examples/create_student.py --teacher TEACHER --train_file train.json \
        --output_dir student --hidden_size 192 --num_hidden_layers 3

TEACHER is a directory or a Hub id of a question-answering model. Without a size, the student is the
teacher. Fewer layers are copies; a narrower student is fitted to the teacher on some of the
questions, whose answers are not used. Train it like any other student: `hf-distill train
--teacher_model TEACHER --student_model student --train_file train.json --output_dir distilled`, or
`examples/run_qa.py`. `hf-distill create-student` does the same for all tasks on texts.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoModelForQuestionAnswering, AutoTokenizer, HfArgumentParser

from hf_distill import create_student
from hf_distill.students import save_student
from hf_distill.tasks.question_answering import (
    load_question_answering_dataset,
    prepare_train_features,
)


@dataclass
class ScriptArguments:
    """The teacher, the data, and the sizes of the student."""

    teacher: str
    train_file: str
    output_dir: str
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    calibration_tokens: int = 8192
    max_length: int = 384
    doc_stride: int = 128


def main() -> None:
    """Make a student and write it."""
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(script.teacher)
    teacher = AutoModelForQuestionAnswering.from_pretrained(script.teacher, dtype="float32")
    features = None
    if script.hidden_size is not None:
        features = prepare_train_features(
            load_question_answering_dataset(script.train_file),
            tokenizer,
            max_length=script.max_length,
            doc_stride=script.doc_stride,
        )
    student = create_student(
        teacher,
        num_hidden_layers=script.num_hidden_layers,
        hidden_size=script.hidden_size,
        calibration_data=features,
        calibration_tokens=script.calibration_tokens,
        processing_class=tokenizer,
    )
    record = save_student(student, script.output_dir, tokenizer)
    print(f"{record['sizes']}: {record['parameters']:,} parameters")


if __name__ == "__main__":
    main()
