"""One training run of ``hf-distill train``: what it needs, its trainer, its report."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    set_seed,
)

from hf_distill._version import __version__
from hf_distill.cli.cache import preprocessing_of
from hf_distill.cli.layers import ChosenLayers
from hf_distill.cli.loading import (
    data_name,
    load_config,
    load_examples,
    load_labelled_or_not,
    load_student,
    load_tokenizer,
    load_trained_model,
    show_data,
    spread,
    task_of,
)
from hf_distill.cli.progress import StageProgress
from hf_distill.cli.run_folder import REPLICATES, SAMPLES
from hf_distill.cli.train_arguments import (
    IntermediateStageArguments,
    TrainArguments,
    TrainDataArguments,
)
from hf_distill.console import log_rank_0
from hf_distill.files import display_name, write_json
from hf_distill.hub import write_facts
from hf_distill.hub.facts import hub_id, scores_of
from hf_distill.layers import TeacherRecorderCallback
from hf_distill.reports.terminal import in_words, print_figures
from hf_distill.tasks import create_task
from hf_distill.tasks.base import Scorer, Task
from hf_distill.tasks.bootstrap import interval
from hf_distill.tasks.options import TaskArguments
from hf_distill.teachers.caching import cached_teacher, load_teacher_outputs
from hf_distill.trainer import DistillationTrainer
from hf_distill.training_args import DistillationTrainingArguments


@dataclass(frozen=True)
class Request:
    """The options of one call, or of one of its stages."""

    run: TrainArguments
    data: TrainDataArguments
    first_stage: IntermediateStageArguments
    options: TaskArguments
    args: DistillationTrainingArguments
    begins_with: str | None = None
    """The folder of the student of the stage before, if there was one."""
    shows_data: bool = True
    """Whether to show what the data is like; it may have been shown before."""

    @cached_property
    def task(self) -> Task:
        """What the model is to do: as the option says, or as the teacher does."""
        run = self.run
        taught = {"teacher_model": run.teacher_model}
        name = run.task or task_of(taught, teacher_outputs=run.teacher_outputs)
        return create_task(name, self.options)

    @property
    def has_two_stages(self) -> bool:
        """Whether intermediate layers come first; not without a teacher."""
        return self.first_stage.wanted and not self.run.baseline

    @property
    def title(self) -> str:
        """What the training, or the stage, is called while it runs."""
        if not self.has_two_stages:
            return "Training"
        return f"Stage {1 if self.args.stage == 'intermediate' else 2}"

    @property
    def trained(self) -> str:
        """What messages call the model that is trained: without a teacher it may become one."""
        return "model" if self.teacher_name is None else "student"

    @property
    def output_dir(self) -> Path:
        """Where the run writes."""
        return Path(str(self.args.output_dir))

    @property
    def teacher(self) -> list[str] | str | None:
        """What teaches beside the student; ``None`` if nothing does."""
        run = self.run
        if run.baseline or run.teacher_model is None:
            return None
        return run.teacher_model[0] if len(run.teacher_model) == 1 else run.teacher_model

    @property
    def teacher_name(self) -> str | None:
        """What reports call the teacher."""
        run = self.run
        if run.baseline:
            return None
        if run.teacher_outputs is not None:
            return cached_teacher(run.teacher_outputs).teacher
        return " + ".join(map(display_name, run.teacher_model or ())) or None


def prepare(request: Request) -> DistillationTrainer:
    """Load data and models; whatever does not fit together is refused here."""
    run, data, task, args = request.run, request.data, request.task, request.args
    if args.stage == "intermediate":
        return _prepare_without_labels(request)
    train, labelled = load_labelled_or_not(
        task,
        data.train_file,
        split=data.train_split,
        needed=args.needs_labels or not args.needs_teacher,
        **request.data.source,
    )
    validation = None
    if request.data.validates:
        validation = load_examples(
            task,
            data.validation_file,
            split=data.validation_split,
            most=data.max_eval_samples,
            **request.data.source,
        )
    tokenizer = load_tokenizer("student_model", run.student_model)
    begins_with = request.begins_with or run.student_model
    # From all of the data, and alike with and without --baseline: a label may be rare.
    teacher_config = None if run.teacher_model is None else load_config(run.teacher_model[0])
    if run.teacher_outputs is not None:
        teacher_config = cached_teacher(run.teacher_outputs).read_config()
    options = task.model_options(
        load_config(begins_with), teacher_config, train if labelled else None
    )
    if data.max_train_samples is not None:
        train = spread(train, data.max_train_samples)
    if not labelled and task.reads_targets:
        train, labelled = _with_targets(request, train), True
    student = _load_student(request, begins_with, **options)
    workers = data.preprocessing_num_workers
    encoded = task.features(
        train, tokenizer, student, training=True, labelled=labelled, num_proc=workers
    )
    splits, train_features = {"train": (train, encoded, labelled)}, encoded.features
    if run.teacher_outputs is not None and not run.baseline:
        train_features = load_teacher_outputs(
            train_features, run.teacher_outputs, preprocessing=preprocessing_of(task)
        )
    features = scorer = None
    if validation is not None:
        encoded = task.features(validation, tokenizer, student, training=False, num_proc=workers)
        splits["validation"], features = (validation, encoded, True), encoded.features
        scorer = task.scorer(validation, features, tokenizer, student)
    if request.shows_data:
        show_data(task, splits, student)
    return _trainer(
        request,
        student,
        tokenizer,
        train_dataset=train_features,
        eval_dataset=features,
        compute_metrics=scorer,
        preprocess_logits_for_metrics=None if scorer is None else scorer.preprocess_logits,
    )


def _with_targets(request: Request, examples: Dataset) -> Dataset:
    """Let the teacher write the targets that the data lacks."""
    args = request.args
    if request.run.teacher_model is None:
        raise ValueError(
            "--teacher_outputs: the data has no targets, and stored outputs cannot write them; "
            "pass --teacher_model, or data with targets."
        )
    source = request.run.teacher_model[0]
    log_rank_0(f"{display_name(source)} writes the targets that the data lacks …")
    teacher = load_trained_model("teacher_model", source, request.task)
    write: Any = request.task.predictor(
        teacher.to(args.device),  # type: ignore[arg-type]
        load_tokenizer("teacher_model", source),
        args.per_device_eval_batch_size,
    )
    mine = range(args.process_index, len(examples), args.world_size)
    written = list(zip(mine, write(examples.select(mine).to_list()), strict=True))
    if args.world_size > 1:
        written = sorted(gather_object(written))
    return examples.add_column("target", [text for _, text in written])


def prepare_first_stage(
    request: Request, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> DistillationTrainer:
    """The first of two stages, with the student as the second one has it, head included."""
    return _trainer(
        request, student, tokenizer, train_dataset=_unlabelled(request, student, tokenizer)
    )


def _prepare_without_labels(request: Request) -> DistillationTrainer:
    """Stage ``intermediate`` alone: no labels, and no scores of a head that learns nothing."""
    run = request.run
    tokenizer = load_tokenizer("student_model", run.student_model)
    student = _load_student(request, run.student_model)
    features = None
    if request.data.validates:
        features = _unlabelled(request, student, tokenizer, validation=True)
    return _trainer(
        request,
        student,
        tokenizer,
        train_dataset=_unlabelled(request, student, tokenizer),
        eval_dataset=features,
    )


def _load_student(request: Request, source: str, **options: Any) -> PreTrainedModel:
    # Before the student: its new head begins the same with and without a teacher.
    set_seed(request.args.seed)
    student, new_parts = load_student(source, request.task, **options)
    if new_parts:
        learns = request.args.stage == "prediction"
        what = "so trained from scratch" if learns else "random, and this stage leaves it so"
        log_rank_0(f"New in the {request.trained}, {what}: {', '.join(new_parts)}")
    return student


def _unlabelled(
    request: Request,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    validation: bool = False,
) -> Any:
    data, task = request.data, request.task
    examples = load_examples(
        task,
        data.validation_file if validation else data.train_file,
        split=data.validation_split if validation else data.train_split,
        most=data.max_eval_samples if validation else data.max_train_samples,
        labelled=False,
        **request.data.source,
    )
    encoded = task.features(
        examples,
        tokenizer,
        student,
        training=True,
        labelled=False,
        num_proc=data.preprocessing_num_workers,
    )
    split = "validation" if validation else "train"
    if request.shows_data:
        show_data(task, {split: (examples, encoded, False)}, student)
    return encoded.features


def _trainer(
    request: Request,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    **options: Any,
) -> DistillationTrainer:
    run, task = request.run, request.task
    layers = ChosenLayers(request.output_dir)
    callbacks: list[Any] = [layers]
    if run.record_steps is not None:
        folder = request.output_dir / SAMPLES
        callbacks.append(TeacherRecorderCallback(folder, every_steps=run.record_steps))
    trainer = DistillationTrainer(
        model=student,
        teacher_model=request.teacher,
        args=request.args,
        data_collator=task.data_collator(tokenizer, student),
        processing_class=tokenizer,
        callbacks=callbacks,
        **options,
    )
    layers.trainer = trainer
    scorer = options.get("compute_metrics")
    for shown in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(shown)
    trainer.add_callback(
        StageProgress(request.title, {} if scorer is None else scorer.measures.quality)
    )
    return trainer


def summary(
    request: Request, trainer: DistillationTrainer, train_metrics: dict[str, Any]
) -> dict[str, Any]:
    """What ``metrics.json`` says of a run or of one of its stages, scores apart."""
    run, data, args = request.run, request.data, request.args
    inherited = {f.name for f in fields(TrainingArguments)}
    content: dict[str, Any] = {
        "hf_distill_version": __version__,
        "task": request.task.name,
        "recipe": run.recipe,
        "student_model": display_name(run.student_model),
        "teacher_model": request.teacher_name,
        "train_data": data_name(data.train_file, data.dataset_name, data.train_split),
        "distillation": {
            f.name: getattr(args, f.name) for f in fields(args) if f.name not in inherited
        },
        "steps": trainer.state.global_step,
        "train": {name.removeprefix("train_"): value for name, value in train_metrics.items()},
    }
    if args.uses_layer_losses:
        content["layer_pairs"] = [list(pair) for pair in trainer.layer_pairs]
    return content


def report(
    request: Request,
    trainer: DistillationTrainer,
    scorer: Scorer | None,
    train_metrics: dict[str, Any],
    eval_metrics: dict[str, Any],
    intermediate_stage: dict[str, Any] | None,
) -> None:
    """Write metrics and predictions, and show the scores.

    Args:
        request: of the run, or of the last of its stages.
        trainer: the trained one.
        scorer: with its predictions.
        train_metrics: of the training.
        eval_metrics: of the evaluation; may be empty.
        intermediate_stage: the summary of the stage before, if there was one.
    """
    data, args, folder = request.data, request.args, request.output_dir
    scores = {name.removeprefix("eval_"): value for name, value in eval_metrics.items()}
    validation = None
    if request.data.validates:
        validation = data_name(data.validation_file, data.dataset_name, data.validation_split)
    content = summary(request, trainer, train_metrics)
    replicates = {} if scorer is None else scorer.replicates()
    content |= {"validation_data": validation, "eval": scores}
    content["baseline"] = None if scorer is None else scorer.baseline
    content["intervals"] = {name: interval(values) for name, values in replicates.items()}
    content["intermediate_stage"] = intermediate_stage
    trainer.add_facts(
        recipe=request.run.recipe,
        # The second of two stages begins with a folder.
        base_model=hub_id(request.run.student_model),
        train_data=content["train_data"],
        train_data_id=hub_id(data.dataset_name),
        validation_data=validation,
        validation_data_id=hub_id(data.dataset_name) if validation else None,
        scores=scores_of([eval_metrics]),
        stages=[] if intermediate_stage is None else [intermediate_stage["stage"]],
    )
    write_facts(folder, trainer.distillation_facts())
    write_json(folder / REPLICATES, {name: row.tolist() for name, row in replicates.items()})
    write_json(folder / "metrics.json", content)
    figures = {"training loss": train_metrics["train_loss"]}
    quality: dict[str, str] = {}
    if scorer is not None:
        for name, predictions in scorer.files().items():
            write_json(folder / name, predictions)
        quality = dict(scorer.measures.quality)
    figures |= in_words(scores, quality)
    print_figures(f"{display_name(folder)}: {trainer.state.global_step} steps", figures)
    what = "scores are" if scores else "figures are"
    sys.stdout.write(
        f"The {request.trained} is in {args.output_dir}. Its {what} in metrics.json there.\n"
    )
