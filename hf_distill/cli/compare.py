"""``hf-distill compare``: teacher, students and any other models, measured side by side."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hf_distill.cli.arguments import (
    RuntimeArguments,
    scoring_parser,
    teacher_column_kind_option,
    teacher_column_option,
)
from hf_distill.cli.output import shown_command
from hf_distill.cli.parsing import CommandParser
from hf_distill.files import display_name
from hf_distill.reports.comparison import FURTHER, ROLES, Comparison, ModelReport
from hf_distill.reports.pages import write_comparison
from hf_distill.tasks.options import option

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_distill.reports.disagreements import Disagreements
    from hf_distill.reports.report import Report
    from hf_distill.scoring import Scores
    from hf_distill.tasks.base import Task
    from hf_distill.tasks.bootstrap import Replicates
    from hf_distill.tasks.calibration import Calibration
    from hf_distill.tasks.fidelity import OutputRecorder

EXAMPLES = """\
example:
  hf-distill compare --teacher teacher --student_alone alone --student_distilled distilled \\
      --file dev.json --output_dir comparison

`student alone` is the same student, trained by the same command with --baseline.

  any number of models, next to the teacher or without one
    hf-distill compare --teacher teacher --models small smaller served --file dev.json

  a column of the data as the teacher
    hf-distill compare --teacher_column probabilities --models small smaller --file dev.jsonl \\
        --task text-classification
"""


@dataclass
class CompareArguments:
    """The models of `compare`, and how they are timed."""

    teacher: str | None = option(help="The teacher: a folder or a Hub id.")
    teacher_column: str | None = teacher_column_option("Instead of --teacher: ")
    teacher_column_kind: str = teacher_column_kind_option()
    student_alone: list[str] | None = option(
        help="The student that was trained with --baseline; several models if it was "
        "trained with several seeds."
    )
    student_distilled: list[str] | None = option(
        help="The student that was trained with the teacher; several models if it was "
        "trained with several seeds."
    )
    models: list[str] | None = option(
        help="Any other models, such as students of several sizes or exported ones; each is "
        "compared by itself."
    )
    output_dir: str = option(
        "comparison",
        help="Where to write report.html and report.md, and comparison.json, comparison.md and "
        "comparison.png.",
    )
    latency_samples: int = option(
        50,
        help="Examples that are answered one by one to measure the latency; 0 leaves it out. Use "
        "an idle machine.",
    )
    throughput_samples: int = option(
        100,
        help="Examples that are answered in batches of --batch_size, three times, to measure the "
        "throughput; 0 leaves it out.",
    )

    def __post_init__(self) -> None:
        """Check that there is something to compare."""
        if self.teacher and self.teacher_column:
            raise ValueError("pass either --teacher or --teacher_column: each is a teacher.")
        if self.teacher_column is None and self.teacher_column_kind != "probabilities":
            raise ValueError(
                f"--teacher_column_kind {self.teacher_column_kind} has no effect without "
                "--teacher_column."
            )
        if len(self.sources()) < 2:
            raise ValueError(
                "name at least two models: --teacher (or --teacher_column), --student_alone, "
                "--student_distilled, --models."
            )
        for name in ("latency_samples", "throughput_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)} must not be below 0.")

    def sources(self) -> dict[str, list[str]]:
        """Return the models of each role, in the order of the table."""
        teacher = self.teacher
        if self.teacher_column is not None:
            teacher = f"column:{self.teacher_column}:{self.teacher_column_kind}"
        found = {"teacher": [teacher] if teacher else []}
        found |= {role: getattr(self, role) or [] for role in ROLES if role != "teacher"}
        found |= {f"{FURTHER}_{i}": [one] for i, one in enumerate(self.models or (), start=1)}
        return {role: sources for role, sources in found.items() if sources}


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    return scoring_parser(
        CompareArguments,
        "models (at least two) and measurements",
        prog="hf-distill compare",
        usage="hf-distill compare --teacher MODEL --student_alone MODEL --student_distilled MODEL\n"
        "                          [--models MODEL …] --file FILE [options]",
        description="Show what distillation was worth: quality, size, speed and agreement with the "
        "teacher, in one table, plot and page.",
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> Report:
    """Measure the models, show the table, and write it as JSON, Markdown, a plot and a page.

    Returns:
        What the page shows.
    """
    arguments, data, options, runtime = build_parser().parse(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "compare measures how fast one process is, but WORLD_SIZE="
            f"{os.environ['WORLD_SIZE']} processes were launched; run it as `hf-distill compare …`."
        )

    from hf_distill.cli.loading import (
        check_model_source,
        check_paths,
        choose_task,
        load_examples,
        load_tokenizer,
        load_trained_model,
        naming,
    )
    from hf_distill.cli.run_folder import (
        COMPARED,
        check_kind,
        check_strangers,
        make_output_folder,
    )
    from hf_distill.cli.teacher_column import ColumnSource, check_column_task, score_column
    from hf_distill.plotting import why_no_pictures
    from hf_distill.reports.measurements import describe_devices
    from hf_distill.reports.report import Report, write_report
    from hf_distill.reports.terminal import print_comparison
    from hf_distill.scoring import score_model
    from hf_distill.tasks.columns import TEACHER_CELL, TEACHER_ROW
    from hf_distill.tasks.fidelity import OutputRecorder

    sources = arguments.sources()
    column = ColumnSource.of(sources.get("teacher", [""])[0])
    option_of = {role: role if role in ROLES else "models" for role in sources}
    models = {
        role: [check_model_source(option_of[role], source) for source in of_role]
        for role, of_role in sources.items()
        if column is None or role != "teacher"
    }
    check_paths({"file": data.file})
    task = choose_task(runtime.task, options, models)
    if column is not None:
        check_column_task(task, column.name)
    folder = Path(arguments.output_dir)
    check_kind(folder, COMPARED)
    check_strangers(folder, COMPARED)
    make_output_folder(folder)
    examples, _ = load_examples(task, data.source, teacher_column=column and column.name)
    loaded = {
        role: [
            (
                load_trained_model(option_of[role], source, task, runtime.dtype),
                load_tokenizer(option_of[role], source),
            )
            for source in sources
        ]
        for role, sources in models.items()
    }
    with naming(data.source):
        task.check_numbering(
            examples,
            {
                f"--{option_of[role]} {display_name(source)}": model.config
                for role, pairs in loaded.items()
                for source, (model, _) in zip(models[role], pairs, strict=True)
            },
        )
    firsts = {role: pairs[0] for role, pairs in loaded.items()}
    scores: dict[str, list[Scores]] = {role: [] for role in sources}
    recorders: dict[str, list[OutputRecorder]] = {role: [] for role in sources}

    def keep(role: str, scored: Scores, recorder: OutputRecorder) -> None:
        scores[role].append(scored)
        recorders[role].append(recorder)
        labels = scored.scorer.measures.quality
        shown = (f"{label} {scored.metrics[name]:.2f}" for name, label in labels.items())
        sys.stderr.write(f"  {', '.join(shown)}\n")

    if column is not None:
        sys.stderr.write(f"Scoring the teacher, the column {column.name!r} …\n")
        with naming(data.source):
            scored_column = score_column(task, examples, column, batch_size=runtime.batch_size)
        keep("teacher", *scored_column)
        examples = examples.remove_columns([TEACHER_CELL, TEACHER_ROW])
    for role, pairs in loaded.items():
        for source, (model, tokenizer) in zip(models[role], pairs, strict=True):
            what = f"the {ROLES[role]}, " if role in ROLES else ""
            sys.stderr.write(f"Scoring {what}{display_name(source)} …\n")
            teacher = next(iter(recorders.get("teacher", ())), None)
            recorder = OutputRecorder(
                task.head(model.config), teacher, keeps_logits=role == "teacher"
            )
            with naming(data.source):
                scored = score_model(
                    task,
                    model,
                    tokenizer,
                    examples,
                    batch_size=runtime.batch_size,
                    use_cpu=runtime.use_cpu,
                    num_proc=data.preprocessing_num_workers,
                    recorder=recorder,
                )
            keep(role, scored, recorder)
    names = _names(models)
    if column is not None:
        names = {"teacher": f"column {column.name!r}", **names}
    reports = _model_reports(names, models, firsts, scores, recorders)
    scorer = next(iter(scores.values()))[0].scorer
    comparison = Comparison(
        task=task.name,
        data=data.source.name,
        examples=len(examples),
        models=reports,
        # A model whose labels have other names may be scored by fewer.
        quality_labels={
            name: label
            for name, label in scorer.measures.quality.items()
            if all(name in one.quality for one in reports)
        },
        agreement_labels=scorer.measures.agreement,
        lower_is_better=scorer.measures.lower_is_better,
        settings={"computed in": runtime.dtype, "batch size": runtime.batch_size},
        machine=describe_devices(
            {names.get(role, role): model.device for role, (model, _) in firsts.items()}
        ),
        baseline=scorer.baseline,
    )
    write_comparison(comparison, folder)
    sys.stderr.write("Measuring speed …\n")
    try:
        comparison = _with_speed(comparison, task, firsts, examples, runtime, arguments)
    except BaseException:
        sys.stderr.write("Measuring speed failed; the scores and sizes were kept before.\n")
        raise
    written = [*write_comparison(comparison, folder)]
    student = comparison.subject
    report = Report(
        title="Comparison of " + ", ".join(one.name for one in comparison.models),
        comparison=comparison,
        disagreements=None if student is None else _disagreements(scores, student.role),
        commands=[shown_command("compare", argv)],
    )
    written += write_report(report, folder)
    print_comparison(comparison)
    if missing := why_no_pictures():
        sys.stderr.write(f"{missing}\n")
    sys.stdout.write(f"Written to {folder}: {', '.join(path.name for path in written)}\n")
    return report


def _names(models: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the name of each role's model; models without a role that share one get a number."""
    names = {role: display_name(of_role[0]) for role, of_role in models.items()}
    counts = Counter([*names.values(), *ROLES.values()])
    return {
        role: name
        if role in ROLES or counts[name] == 1
        else f"{name} ({role.removeprefix(f'{FURTHER}_')})"
        for role, name in names.items()
    }


def _model_reports(
    names: Mapping[str, str],
    models: Mapping[str, Sequence[str]],
    firsts: Mapping[str, tuple[PreTrainedModel, Any]],
    scores: Mapping[str, Sequence[Scores]],
    recorders: Mapping[str, Sequence[OutputRecorder]],
) -> list[ModelReport]:
    """Return what is known of each role without timing it; a column has no weights to measure.

    Several models of one role are the same one trained with several seeds: their quality is
    averaged, and the size is that of the first.
    """
    from hf_distill.reports.measurements import stored_as, weight_files

    # Other tokenizers may cut other rows, whose resamples do not pair.
    metrics = [one.scorer.metric for of_role in scores.values() for one in of_role]
    paired = len({metric.rows for metric in metrics if metric is not None}) == 1
    reports = []
    for stream, (role, name) in enumerate(names.items()):
        sources = models.get(role, [""])
        model, _ = firsts.get(role, (None, None))
        files = [] if model is None else weight_files(sources[0])
        distances = [d for one in recorders[role] if (d := one.divergence) is not None]
        found = _disagreements(scores, role)
        reports.append(
            ModelReport(
                role=role,
                name=name,
                quality=_means(one.metrics for one in scores[role]),
                parameters=None if model is None else model.num_parameters(),
                size_on_disk=sum(path.stat().st_size for path in files) or None,
                stored_as=stored_as(files),
                memory=None if model is None else _bytes(model),
                agreement=_agreement(scores, role),
                divergence=fmean(distances) if distances else None,
                calibration=_calibration(scores[role], recorders[role]),
                outcomes=None if found is None else found.counts,
                seeds=len(scores[role]),
                replicates=_replicates(scores[role], stream) if paired else {},
            )
        )
    return reports


def _means(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    every = list(scores)
    shared = [name for name in every[0] if all(name in one for one in every)]
    return {name: fmean(one[name] for one in every) for name in shared}


def _agreement(scores: Mapping[str, Sequence[Scores]], role: str) -> dict[str, float] | None:
    if role == "teacher" or "teacher" not in scores:
        return None
    teacher = scores["teacher"][0].scorer
    return _means(one.scorer.agreement(teacher) for one in scores[role])


def _disagreements(scores: Mapping[str, Sequence[Scores]], role: str) -> Disagreements | None:
    """Compare the predictions of a role's first model with the teacher's."""
    from hf_distill.reports.disagreements import find_disagreements

    if role == "teacher" or "teacher" not in scores:
        return None
    return find_disagreements(scores[role][0].scorer.rows(), scores["teacher"][0].scorer.rows())


def _calibration(
    scores: Sequence[Scores], recorders: Sequence[OutputRecorder]
) -> Calibration | None:
    """Pool the predictions of all seeds."""
    from hf_distill.tasks.calibration import Calibration

    pooled: Calibration | None = None
    for one, recorder in zip(scores, recorders, strict=True):
        pairs = one.scorer.confidences()
        found = recorder.calibration if pairs is None else Calibration.of(*pairs)
        if found is None:
            return None
        pooled = found if pooled is None else pooled + found
    return pooled


def _bytes(model: PreTrainedModel) -> int | None:
    """Return what the weights take in memory; ``None`` of an exported model, which hides them."""
    return sum(one.numel() * one.element_size() for one in model.parameters()) or None


def _replicates(scores: Sequence[Scores], stream: int) -> dict[str, Replicates]:
    """Return the metrics in resamples of the rows, where the task has them."""
    from hf_distill.tasks.bootstrap import pool_seeds

    seeds = [one.scorer.replicates() for one in scores]
    return {
        metric: pool_seeds([one[metric] for one in seeds], stream=stream)
        for metric in seeds[0]
        if all(metric in one for one in seeds)
    }


def _with_speed(
    comparison: Comparison,
    task: Task,
    firsts: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    examples: Dataset,
    runtime: RuntimeArguments,
    arguments: CompareArguments,
) -> Comparison:
    """Add the latency and the throughput of the first model of each role."""
    from hf_distill.reports.measurements import (
        WARM_UP,
        measure_latencies,
        measure_throughputs,
        other_work,
    )
    from hf_distill.tasks.tables import evenly_spaced

    predictors = {
        role: task.predictor(model, tokenizer, runtime.batch_size)
        for role, (model, tokenizer) in firsts.items()
    }
    latencies: dict[str, Any] = {}
    throughputs: dict[str, float] = {}
    settings = dict(comparison.settings)
    busy = other_work()
    if busy is not None:
        settings["timed on a busy machine"] = busy
    if arguments.latency_samples > 0:
        rows = list(evenly_spaced(examples, arguments.latency_samples))
        latencies = measure_latencies(predictors, rows)
        settings["latency"] = f"{task.timed}, one at a time, after {WARM_UP} for warm-up"
    if arguments.throughput_samples > 0:
        rows = list(evenly_spaced(examples, arguments.throughput_samples))
        throughputs = measure_throughputs(predictors, rows)
    timed = [
        replace(one, latency=latencies.get(one.role), throughput=throughputs.get(one.role))
        for one in comparison.models
    ]
    return replace(comparison, models=timed, settings=settings)
