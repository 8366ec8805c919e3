"""One training run of ``hf-distill train``: what it needs, its trainer, its report."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from hf_distill._version import __version__
from hf_distill.cli.loading import (
    data_name,
    load_config,
    load_examples,
    load_student,
    load_tokenizer,
    spread,
)
from hf_distill.cli.tasks import Scorer, Task, say
from hf_distill.cli.train_arguments import (
    IntermediateStageArguments,
    TrainArguments,
    TrainDataArguments,
)
from hf_distill.reporting.files import display_name, write_json
from hf_distill.trainer import DistillationTrainer
from hf_distill.training_args import DistillationTrainingArguments


@dataclass(frozen=True)
class Request:
    """The options of one call."""

    run: TrainArguments
    data: TrainDataArguments
    first_stage: IntermediateStageArguments
    task: Task
    args: DistillationTrainingArguments

    @property
    def has_two_stages(self) -> bool:
        """Whether intermediate layers come first; not without a teacher."""
        stage = self.first_stage
        wanted = stage.intermediate_epochs is not None or stage.intermediate_max_steps is not None
        return wanted and not self.run.baseline


def prepare(request: Request) -> DistillationTrainer:
    """Load data and models; whatever does not fit together is refused here."""
    run, data, task, args = request.run, request.data, request.task, request.args
    source: dict[str, Any] = {
        "dataset_name": data.dataset_name,
        "config_name": data.dataset_config_name,
        "revision": data.dataset_revision,
    }
    train = load_examples(task, data.train_file, split=data.train_split, **source)
    validation = None
    if data.validation_file is not None or (data.dataset_name and data.validation_split != "none"):
        validation = load_examples(
            task,
            data.validation_file,
            split=data.validation_split,
            most=data.max_eval_samples,
            **source,
        )
    tokenizer = load_tokenizer("student_model", run.student_model)
    # From all of the data, and alike with and without --baseline: a label may be rare.
    teacher_config = None if run.teacher_model is None else load_config(run.teacher_model)
    options = task.model_options(train, load_config(run.student_model), teacher_config)
    if data.max_train_samples is not None:
        train = spread(train, data.max_train_samples)
    # Before the student: its new head begins the same with and without a teacher.
    set_seed(args.seed)
    student, new_parts = load_student(run.student_model, task, **options)
    if new_parts:
        say(f"New in the student, so trained from scratch: {', '.join(new_parts)}")
    workers = data.preprocessing_num_workers
    train_features = task.features(train, tokenizer, student, training=True, num_proc=workers)
    features = scorer = None
    if validation is not None:
        features = task.features(validation, tokenizer, student, training=False, num_proc=workers)
        scorer = task.scorer(validation, features, tokenizer, student)
    return DistillationTrainer(
        model=student,
        teacher_model=None if run.baseline else run.teacher_model,
        args=args,
        train_dataset=train_features,
        eval_dataset=features,
        data_collator=task.data_collator(tokenizer, student),
        processing_class=tokenizer,
        compute_metrics=scorer,
        preprocess_logits_for_metrics=None if scorer is None else scorer.preprocess_logits,
    )


def report(
    request: Request,
    trainer: DistillationTrainer,
    scorer: Scorer | None,
    train_metrics: dict[str, Any],
    eval_metrics: dict[str, Any],
) -> None:
    """Write metrics and predictions, and show the scores."""
    from hf_distill.reporting.tables import print_figures

    run, data, args = request.run, request.data, request.args
    folder = Path(str(args.output_dir))
    scores = {name.removeprefix("eval_"): value for name, value in eval_metrics.items()}
    inherited = {f.name for f in fields(TrainingArguments)}
    has_teacher = run.teacher_model is not None and not run.baseline
    teacher = display_name(str(run.teacher_model)) if has_teacher else None
    validation = None
    if scorer is not None:
        validation = data_name(data.validation_file, data.dataset_name, data.validation_split)
    content = {
        "hf_distill_version": __version__,
        "task": request.task.name,
        "recipe": run.recipe,
        "student_model": display_name(run.student_model),
        "teacher_model": teacher,
        "train_data": data_name(data.train_file, data.dataset_name, data.train_split),
        "validation_data": validation,
        "distillation": {
            f.name: getattr(args, f.name) for f in fields(args) if f.name not in inherited
        },
        "steps": trainer.state.global_step,
        "train": {name.removeprefix("train_"): value for name, value in train_metrics.items()},
        "eval": scores,
    }
    write_json(folder / "metrics.json", content)
    figures = {"training loss": train_metrics["train_loss"]}
    if scorer is not None:
        for name, predictions in scorer.files().items():
            write_json(folder / name, predictions)
        quality = scorer.measures.quality
        figures |= {label: scores[key] for key, label in quality.items()}
        figures |= {
            name: value
            for name, value in scores.items()
            if name not in quality
            and not name.endswith(("runtime", "per_second", "epoch", "_time"))
        }
    print_figures(f"{display_name(folder)}: {trainer.state.global_step} steps", figures)
    sys.stdout.write(
        f"The student is in {args.output_dir}. Its scores are in metrics.json there.\n"
    )
