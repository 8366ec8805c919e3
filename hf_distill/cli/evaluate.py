"""``hf-distill evaluate``: the scores of a model on labelled data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_distill.cli.arguments import (
    EvaluateArguments,
    EvaluationDataArguments,
    QuestionAnsweringArguments,
    RuntimeArguments,
    names,
)
from hf_distill.cli.parsing import CommandParser, Section

EXAMPLES = """\
examples:
  hf-distill evaluate --model distilled --file dev.json
  hf-distill evaluate --model owner/model-on-the-hub --dataset_name squad_v2 --output_dir scores
"""


def build_parser() -> CommandParser:
    """The parser of the command."""
    return CommandParser(
        [EvaluateArguments, EvaluationDataArguments, QuestionAnsweringArguments, RuntimeArguments],
        prog="hf-distill evaluate",
        usage="hf-distill evaluate --model MODEL --file FILE [--output_dir FOLDER] [options]",
        description="Score a fine-tuned model: exact match and F1; with unanswerable questions "
        "also for each kind,\nand the best thresholds.",
        sections=[
            Section("model", names(EvaluateArguments)),
            Section("data", names(EvaluationDataArguments)),
            Section("question answering", names(QuestionAnsweringArguments)),
        ],
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Score a model, show the scores and write them.

    Args:
        argv: the options, without the command's name.

    Raises:
        ValueError: an option, the model or the data cannot be used.
        OSError: a file or a download failed.
    """
    arguments, data, question_answering, runtime = build_parser().parse(argv)

    from hf_distill._version import __version__
    from hf_distill.cli.loading import (
        check_model_source,
        check_paths,
        load_examples,
        load_tokenizer,
        load_trained_model,
    )
    from hf_distill.cli.scoring import score_model
    from hf_distill.cli.tasks import create_task
    from hf_distill.reporting.files import display_name, write_json
    from hf_distill.reporting.tables import print_figures

    source = check_model_source("model", arguments.model)
    check_paths({"file": data.file})
    task = create_task(runtime.task, question_answering)
    examples = load_examples(
        task,
        data.file,
        data.dataset_name,
        config_name=data.dataset_config_name,
        split=data.split,
        most=data.max_eval_samples,
    )
    tokenizer = load_tokenizer("model", source)
    scores = score_model(
        task,
        load_trained_model("model", source, task, runtime.dtype),
        tokenizer,
        examples,
        batch_size=runtime.batch_size,
        use_cpu=runtime.use_cpu,
        num_proc=data.preprocessing_num_workers,
    )
    if not scores.is_main_process:
        return
    data_name = display_name(data.file) if data.file else f"{data.dataset_name} ({data.split})"
    shown = {label: scores.metrics[key] for key, label in task.quality_labels.items()}
    rest = {key: v for key, v in scores.metrics.items() if key not in task.quality_labels}
    title = f"{display_name(source)} on {data_name}, {len(examples)} examples"
    print_figures(title, {**shown, **rest})
    if arguments.output_dir is not None:
        content = {
            "hf_distill_version": __version__,
            "task": task.name,
            "model": display_name(source),
            "data": {"name": data_name, "examples": len(examples)},
            "metrics": scores.metrics,
        }
        for name, part in {"evaluation.json": content, **scores.files}.items():
            write_json(Path(arguments.output_dir) / name, part)
