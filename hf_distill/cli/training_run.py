"""One training run of ``hf-distill train``: what it needs, its trainer, its report."""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import partial
from typing import Any

import torch
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
from hf_distill.alignment import TeacherReader
from hf_distill.cli.cache import preprocessing_of
from hf_distill.cli.early_stopping import EarlyStopping, StartCounts
from hf_distill.cli.loading import (
    load_config,
    load_examples,
    load_teacher_reader,
    load_tokenizer,
    load_trained_model,
    naming,
    show_data,
)
from hf_distill.cli.progress import ChosenLayers, StageProgress
from hf_distill.cli.run_folder import METRICS, PICTURES, REPLICATES, SAMPLES
from hf_distill.cli.teacher_column import check_column_task, column_config, read_column
from hf_distill.cli.train_request import Request, check_training
from hf_distill.compatibility import input_limit
from hf_distill.compatibility.origin import keep_record, read_record
from hf_distill.compatibility.tokenizers import check_vocabulary
from hf_distill.console import log_rank_0
from hf_distill.files import display_name, write_json
from hf_distill.heads import TokenClassificationHead
from hf_distill.hub import write_facts
from hf_distill.hub.facts import hub_id, scores_of
from hf_distill.layers import TeacherRecorderCallback
from hf_distill.layers.mapping import as_lists
from hf_distill.loading import load_model
from hf_distill.reports.terminal import in_words, print_figures
from hf_distill.tasks.bootstrap import interval
from hf_distill.tasks.errors import MissingLabelsError
from hf_distill.tasks.tables import evenly_spaced
from hf_distill.teachers.cached import meta_model
from hf_distill.teachers.caching import cached_teacher, load_teacher_outputs, teacher_tokenizer
from hf_distill.trainer import DistillationTrainer


def prepare(
    request: Request,
    student: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> DistillationTrainer:
    """Load data and models; whatever does not fit together is refused here.

    Stage ``intermediate`` reads no labels, except for targets that a decoder reads, and does not
    score a head that learns nothing. Student and tokenizer are loaded unless they are given.
    """
    run, data, task, args = request.run, request.data, request.task, request.args
    has_scores = args.stage == "prediction"
    reads_labels = has_scores or task.reads_targets
    needs_labels = args.needs_labels or not args.needs_teacher
    if run.teacher_column is not None:
        check_column_task(task, run.teacher_column)
    try:
        train, labelled = load_examples(
            task,
            request.training_data,
            labelled=reads_labels,
            or_unlabelled=not needs_labels,
            teacher_column=run.teacher_column,
        )
    except MissingLabelsError as error:
        if not args.needs_teacher:
            raise
        raise MissingLabelsError(
            f"{error} To learn from the teacher alone, without labels: --distillation_loss_weight "
            "1."
        ) from error
    validation = None
    if data.validation is not None:
        validation, _ = load_examples(task, data.validation, labelled=reads_labels)
    if tokenizer is None:
        tokenizer = load_tokenizer("student_model", run.student_model)
    with naming(request.training_data):
        options = _model_options(request, train, labelled) if has_scores else {}
    if data.max_train_samples is not None:
        train = evenly_spaced(train, data.max_train_samples, "max_train_samples")
    if not labelled and task.reads_targets:
        train, labelled = _with_targets(request, train), True
    if student is None:
        student = _load_student(request, **options)
    check_vocabulary(tokenizer, student, "student")
    reader = _teacher_reader(request, tokenizer)
    column, has_gold = None, labelled
    if run.teacher_column is not None:
        name, kind = run.teacher_column, run.teacher_column_kind
        train, column = read_column(task, train, name, kind, student.config)
        if not labelled and isinstance(column.head, TokenClassificationHead):
            log_rank_0(
                "The most likely tags of the column stand in for those that the data lacks: they "
                "tell which tokens begin a word, and nothing learns from them."
            )
            train, labelled = train.add_column("tags", column.most_likely()), True
    encode = partial(
        task.features,
        tokenizer=tokenizer,
        model=student,
        num_proc=data.preprocessing_num_workers,
        teacher=reader,
    )
    with naming(request.training_data):
        encoded = encode(train, training=True, labelled=labelled)
    splits = {"train": (train, encoded, has_gold)}
    train_features, features, scorer = encoded.features, None, None
    if run.teacher_outputs is not None and not run.baseline:
        train_features = load_teacher_outputs(
            train_features, run.teacher_outputs, preprocessing=preprocessing_of(task)
        )
    collator = task.data_collator(tokenizer, student)
    if column is not None and not run.baseline:
        train_features = column.join(train_features, student, collator)
    if data.validation is not None and validation is not None:
        with naming(data.validation):
            encoded = encode(validation, training=not has_scores, labelled=reads_labels)
            splits["validation"], features = (validation, encoded, reads_labels), encoded.features
            if has_scores:
                scorer = task.scorer(validation, features, tokenizer, student)
    check_training(args, train_features)
    if request.shows_data:
        show_data(task, splits, student)
    callbacks: list[Any] = []
    if run.record_steps is not None:
        folder = request.output_dir / SAMPLES
        callbacks.append(TeacherRecorderCallback(folder, every_steps=run.record_steps))
    if run.early_stopping_patience is not None and has_scores:
        callbacks.append(EarlyStopping(run.early_stopping_patience))
    trainer = DistillationTrainer(
        model=student,
        teacher_model=request.teacher,
        teacher_processing_class=None if reader is None else reader.tokenizer,
        args=args,
        train_dataset=train_features,
        eval_dataset=features,
        data_collator=collator,
        processing_class=tokenizer,
        compute_metrics=scorer,
        preprocess_logits_for_metrics=None if scorer is None else scorer.preprocess_logits,
        callbacks=callbacks,
    )
    trainer.checkpoints.advice = ""
    for shown in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(shown)
    quality = {} if scorer is None else scorer.measures.quality
    if scorer is not None and args.eval_on_start and args.load_best_model_at_end:
        trainer.add_callback(StartCounts(trainer))
    trainer.add_callback(StageProgress(request.title, quality))
    trainer.add_callback(ChosenLayers(trainer, request.output_dir / PICTURES))
    return trainer


def _teacher_reader(request: Request, tokenizer: PreTrainedTokenizerBase) -> TeacherReader | None:
    """Return the tokenizer of the teacher, if it is another one than the student's."""
    run = request.run
    if run.baseline:
        return None
    if run.teacher_outputs is not None:
        stored = teacher_tokenizer(run.teacher_outputs)
        if stored is None:
            return None
        return TeacherReader(stored, input_limit(meta_model(cached_teacher(run.teacher_outputs))))
    return load_teacher_reader(run.teacher_model or (), request.task, tokenizer)


def _model_options(request: Request, examples: Dataset, labelled: bool) -> dict[str, Any]:
    """Return what the student's configuration needs.

    It is read from all of the data, because a label may be rare, and does not depend on --baseline.
    """
    run = request.run
    teacher = None if run.teacher_model is None else load_config(run.teacher_model[0])
    if run.teacher_outputs is not None:
        teacher = cached_teacher(run.teacher_outputs).read_config()
    if run.teacher_column is not None:
        teacher = column_config(request.task, examples, run.teacher_column, labelled=labelled)
    student = load_config(request.begins_with or run.student_model)
    return request.task.model_options(student, teacher, examples if labelled else None)


def _load_student(request: Request, **options: Any) -> PreTrainedModel:
    # Before the student: its new head begins the same with and without a teacher.
    set_seed(request.args.seed)
    attention = request.args.faster_attention
    if attention is not None:
        options["attn_implementation"] = attention
    student, new = load_model(
        request.task.head.auto_model,
        request.begins_with or request.run.student_model,
        dtype=torch.float32,
        ignore_mismatched_sizes="num_labels" in options,
        **options,
    )
    keep_record(student, read_record(request.run.student_model))
    if new:
        learns = request.args.stage == "prediction"
        what = "so trained from scratch" if learns else "random, and this stage leaves it so"
        parts = sorted({name.rpartition(".")[0] for name in new})
        log_rank_0(f"New in the {request.trained}, {what}: {', '.join(parts)}")
    return student


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


def summary(
    request: Request, trainer: DistillationTrainer, train_metrics: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of ``metrics.json`` of a run or of one of its stages, scores apart."""
    run, args = request.run, request.args
    inherited = {f.name for f in fields(TrainingArguments)}
    content: dict[str, Any] = {
        "hf_distill_version": __version__,
        "task": request.task.name,
        "recipe": run.recipe,
        "student_model": display_name(run.student_model),
        "teacher_model": request.teacher_name,
        "train_data": request.data.training.name,
        "distillation": {
            f.name: getattr(args, f.name) for f in fields(args) if f.name not in inherited
        },
        "steps": trainer.state.global_step,
        "kept_step": trainer.state.best_global_step if args.load_best_model_at_end else None,
        "train": {name.removeprefix("train_"): value for name, value in train_metrics.items()},
    }
    if args.uses_layer_losses:
        content["layer_pairs"] = as_lists(trainer.layer_pairs)
    return content


def report(
    request: Request,
    trainer: DistillationTrainer,
    train_metrics: dict[str, Any],
    eval_metrics: dict[str, Any],
    intermediate_stage: dict[str, Any] | None,
) -> None:
    """Write metrics and predictions, and show the scores."""
    data, folder = request.data, request.output_dir
    scorer: Any = trainer.compute_metrics
    scores = {name.removeprefix("eval_"): value for name, value in eval_metrics.items()}
    replicates = {} if scorer is None else scorer.replicates()
    content = {
        **summary(request, trainer, train_metrics),
        "validation_data": None if data.validation is None else data.validation.name,
        "eval": scores,
        "baseline": None if scorer is None else scorer.baseline,
        "intervals": {name: interval(values) for name, values in replicates.items()},
        "labels": {} if scorer is None else dict(scorer.measures.quality),
        "intermediate_stage": intermediate_stage,
    }
    trainer.add_facts(
        recipe=request.run.recipe,
        # The second of two stages begins with a folder.
        base_model=hub_id(request.run.student_model),
        train_data=content["train_data"],
        train_data_id=hub_id(data.dataset_name),
        validation_data=content["validation_data"],
        validation_data_id=hub_id(data.dataset_name) if data.validation else None,
        scores=scores_of([eval_metrics]),
        stages=[] if intermediate_stage is None else [intermediate_stage["stage"]],
    )
    write_facts(folder, trainer.distillation_facts())
    write_json(folder / REPLICATES, {name: row.tolist() for name, row in replicates.items()})
    for name, predictions in ({} if scorer is None else scorer.files()).items():
        write_json(folder / name, predictions)
    write_json(folder / METRICS, content)  # which ends the run
    quality = {} if scorer is None else scorer.measures.quality
    print_figures(
        f"{display_name(folder)}: {trainer.state.global_step} steps",
        {"training loss": train_metrics["train_loss"], **in_words(scores, quality)},
    )
    what = "scores are" if scores else "figures are"
    sys.stdout.write(f"The {request.trained} is in {folder}. Its {what} in metrics.json there.\n")
