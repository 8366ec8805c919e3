"""``hf-distill compare``: teacher, student alone and student distilled, measured side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_distill.cli.arguments import (
    CompareArguments,
    EvaluationDataArguments,
    RuntimeArguments,
    scoring_parser,
)
from hf_distill.cli.parsing import CommandParser
from hf_distill.reporting.comparison import ROLES, Comparison, ModelReport, write_comparison

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.cli.tasks import Task

EXAMPLES = """\
example:
  hf-distill compare --teacher teacher --student_alone alone --student_distilled distilled \\
      --file dev.json --output_dir comparison

`student alone` is the same student, trained by the same command with --baseline.
"""


def build_parser() -> CommandParser:
    """The parser of the command."""
    return scoring_parser(
        CompareArguments,
        "models (at least two) and measurements",
        prog="hf-distill compare",
        usage="hf-distill compare --task TASK --teacher MODEL --student_alone MODEL\n"
        "                          --student_distilled MODEL --file FILE [options]",
        description="What distillation was worth: quality, size, speed and agreement with the "
        "teacher, in one table and plot.",
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Measure the models, show the table, and write it as JSON, Markdown and a plot.

    Args:
        argv: the options, without the command's name.

    Raises:
        ValueError: an option, a model or the data cannot be used.
        OSError: a file or a download failed.
    """
    arguments, data, options, runtime = build_parser().parse(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "compare measures how fast one process is, but WORLD_SIZE="
            f"{os.environ['WORLD_SIZE']} processes were launched; run it as `hf-distill compare …`."
        )

    from hf_distill.cli.loading import check_model_source, check_paths
    from hf_distill.cli.tasks import create_task
    from hf_distill.reporting.tables import print_comparison

    named = {role: getattr(arguments, role) for role in ROLES}
    models = {
        role: check_model_source(role, source)
        for role, source in named.items()
        if source is not None
    }
    check_paths({"file": data.file})
    task = create_task(runtime.task, options)
    comparison = compare_models(task, models, data, runtime, arguments)
    print_comparison(comparison)
    written = ", ".join(path.name for path in write_comparison(comparison, arguments.output_dir))
    sys.stdout.write(f"Written to {arguments.output_dir}: {written}\n")


def compare_models(
    task: Task,
    models: Mapping[str, str],
    data: EvaluationDataArguments,
    runtime: RuntimeArguments,
    measurements: CompareArguments,
) -> Comparison:
    """Measure models on the same data, one after the other, and their speed in turns.

    Args:
        task: knows the metrics.
        models: folder or Hub id by role, a key of ``ROLES``; at least two.
        data: the labelled data.
        runtime: batch size, number format, device.
        measurements: how many examples to time.

    Raises:
        ValueError: a model or the data cannot be used.
        OSError: a file or a download failed.
    """
    from hf_distill.cli.loading import (
        data_name,
        load_evaluation_data,
        load_tokenizer,
        load_trained_model,
    )
    from hf_distill.cli.scoring import score_model
    from hf_distill.reporting.files import display_name
    from hf_distill.reporting.size import stored_as, weight_files
    from hf_distill.reporting.speed import WARM_UP, describe_machine

    examples = load_evaluation_data(task, data)
    ordered = {role: models[role] for role in ROLES if role in models}
    tokenizers = {role: load_tokenizer(role, source) for role, source in ordered.items()}
    loaded = {
        role: load_trained_model(role, source, task, runtime.dtype)
        for role, source in ordered.items()
    }
    scores = {}
    for role, model in loaded.items():
        sys.stderr.write(f"Scoring the {ROLES[role]}, {display_name(ordered[role])} …\n")
        scores[role] = score_model(
            task,
            model,
            tokenizers[role],
            examples,
            batch_size=runtime.batch_size,
            use_cpu=runtime.use_cpu,
            num_proc=data.preprocessing_num_workers,
        )
    sys.stderr.write("Measuring speed …\n")
    latencies, throughputs = _measure_speed(
        task, loaded, tokenizers, examples, runtime, measurements
    )
    reports = []
    for role, source in ordered.items():
        files = weight_files(source)
        agreement = None
        if role != "teacher" and "teacher" in scores:
            agreement = scores[role].scorer.agreement(scores["teacher"].scorer)
        reports.append(
            ModelReport(
                role=role,
                name=display_name(source),
                quality=scores[role].metrics,
                parameters=loaded[role].num_parameters(),
                size_on_disk=sum(path.stat().st_size for path in files) or None,
                stored_as=stored_as(files),
                latency=latencies.get(role),
                throughput=throughputs.get(role),
                agreement=agreement,
            )
        )
    settings: dict[str, Any] = {"computed in": runtime.dtype, "batch size": runtime.batch_size}
    if latencies:
        settings["latency"] = f"{task.timed}, one at a time, after {WARM_UP} for warm-up"
    measures = next(iter(scores.values())).scorer.measures
    return Comparison(
        task=task.name,
        data=data_name(data.file, data.dataset_name, data.split),
        examples=len(examples),
        models=reports,
        quality_labels=measures.quality,
        agreement_labels=measures.agreement,
        lower_is_better=measures.lower_is_better,
        settings=settings,
        machine=describe_machine(next(iter(loaded.values())).device),
    )


def _measure_speed(
    task: Task,
    models: Mapping[str, PreTrainedModel],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    examples: Dataset,
    runtime: RuntimeArguments,
    measurements: CompareArguments,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Latency and throughput by role; an empty dict for what is not to be measured."""
    from hf_distill.cli.loading import spread
    from hf_distill.reporting.speed import measure_latencies, measure_throughputs

    predictors = {
        role: task.predictor(model, tokenizers[role], runtime.batch_size)
        for role, model in models.items()
    }
    latencies: dict[str, Any] = {}
    throughputs: dict[str, float] = {}
    if measurements.latency_samples > 0:
        rows = list(spread(examples, measurements.latency_samples))
        latencies = measure_latencies(predictors, rows)
    if measurements.throughput_samples > 0:
        rows = list(spread(examples, measurements.throughput_samples))
        throughputs = measure_throughputs(predictors, rows)
    return latencies, throughputs
