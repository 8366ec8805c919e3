"""Two stages in your own script: intermediate layers first, then the prediction layer.

    python examples/two_stages.py --student STUDENT --teacher TEACHER \
        --train_file train-v2.0.json --validation_file dev-v2.0.json --output_dir distilled \
        --first_epochs 5 --num_train_epochs 5 --learning_rate 3e-5

STUDENT and TEACHER are directories or Hub ids of models with the same tokenizer. The student may
be narrower than the teacher: projections between their hidden states are then trained with it, and
are not part of it. Where the numbers of attention heads differ, add `--attention_loss relations`.

The first stage writes to the folder `intermediate` of the output directory. A run that was stopped
resumes at its last checkpoint when it is started again. `hf-distill train
--intermediate_epochs 5 …` does the same from the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForQuestionAnswering, AutoTokenizer, HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.tasks.question_answering import (
    QuestionAnsweringEvaluator,
    load_question_answering_dataset,
    prepare_eval_features,
    prepare_train_features,
)


@dataclass
class ScriptArguments:
    """Options of the script in addition to the training arguments, which are the second stage's."""

    student: str
    teacher: str
    train_file: str
    validation_file: str
    first_train_file: str | None = None
    first_epochs: float = 5.0
    first_learning_rate: float = 5e-5
    max_length: int = 384
    doc_stride: int = 128


def first_stage(
    script: ScriptArguments, args: DistillationTrainingArguments
) -> DistillationTrainingArguments:
    """The arguments of the first stage: no labels, so nothing to evaluate."""
    return replace(
        args,
        output_dir=str(Path(args.output_dir) / "intermediate"),
        stage="intermediate",
        num_train_epochs=script.first_epochs,
        max_steps=-1,
        learning_rate=script.first_learning_rate,
        eval_strategy="no",
        load_best_model_at_end=False,
        push_to_hub=False,
    )


def last_checkpoint(args: DistillationTrainingArguments) -> str | None:
    """Return the checkpoint to resume a stopped stage from."""
    found: str | None = None
    if Path(args.output_dir).is_dir():
        found = get_last_checkpoint(args.output_dir)
    return found


def main() -> None:
    """Train both stages, evaluate and save."""
    parser = HfArgumentParser((ScriptArguments, DistillationTrainingArguments))
    script, args = parser.parse_args_into_dataclasses()
    first = first_stage(script, args)
    # Of the second stage alone: intermediate layers were the first one's.
    args = replace(args, hidden_states_loss_weight=0.0, attention_loss_weight=0.0)

    tokenizer = AutoTokenizer.from_pretrained(script.student)
    windows: dict[str, Any] = {"max_length": script.max_length, "doc_stride": script.doc_stride}
    validation = load_question_answering_dataset(script.validation_file)
    with args.main_process_first(desc="preparing the data"):
        train, first_train = (
            prepare_train_features(load_question_answering_dataset(file), tokenizer, **windows)
            for file in (script.train_file, script.first_train_file or script.train_file)
        )
        validation_features = prepare_eval_features(validation, tokenizer, **windows)

    done = Path(first.output_dir) / "config.json"
    set_seed(args.seed)  # a head that the student lacks is drawn here, and left alone at first
    student = AutoModelForQuestionAnswering.from_pretrained(
        first.output_dir if done.exists() else script.student, dtype="float32"
    )
    if not done.exists():
        trainer = DistillationTrainer(
            model=student,
            teacher_model=script.teacher,
            args=first,
            train_dataset=first_train,
            processing_class=tokenizer,
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(first))
        trainer.save_model()

    trainer = DistillationTrainer(
        model=student,
        teacher_model=script.teacher,
        args=args,
        train_dataset=train,
        eval_dataset=validation_features,
        processing_class=tokenizer,
        compute_metrics=QuestionAnsweringEvaluator(validation, validation_features),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args))
    trainer.log_metrics("eval", trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
