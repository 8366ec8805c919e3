"""``hf-distill evaluate``: the scores of a model on labelled data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from hf_distill.cli.arguments import scoring_parser
from hf_distill.cli.parsing import CommandParser
from hf_distill.tasks.options import option

EXAMPLES = """\
examples:
  hf-distill evaluate --model distilled --file dev.json
  hf-distill evaluate --model owner/model-on-the-hub --dataset_name squad_v2 --output_dir scores
  hf-distill evaluate --model distilled --file dev.csv
"""


@dataclass
class EvaluateArguments:
    """The model that `evaluate` scores, and where it writes."""

    model: str = option(
        MISSING,
        help="The model to score: a folder or a Hub id; or `column:NAME`, the predictions in a "
        "column of the data (see --teacher_column of `train`; `column:NAME:logits` and "
        "`column:NAME:log_probabilities` for other numbers than probabilities).",
    )
    output_dir: str | None = option(
        help="Where to write evaluation.json and predictions.json (for question answering in the "
        "format of the official SQuAD scorers, with nbest_predictions.json). By default the scores "
        "are only shown."
    )


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    return scoring_parser(
        EvaluateArguments,
        "model",
        prog="hf-distill evaluate",
        usage="hf-distill evaluate --model MODEL --file FILE [--output_dir FOLDER] [options]",
        description="Score a fine-tuned model with the metrics of its task: F1 and exact match for "
        "question answering,\naccuracy, F1 and Matthews for classes, Pearson and Spearman for "
        "numbers, F1 of entities for tags,\nperplexity for language models, ROUGE for summaries, "
        "BLEU and chrF for translations.",
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Score a model, show the scores and write them."""
    arguments, data, options, runtime = build_parser().parse(argv)

    from hf_distill._version import __version__
    from hf_distill.cli.loading import (
        check_model_source,
        check_paths,
        choose_task,
        load_examples,
        load_tokenizer,
        load_trained_model,
        naming,
    )
    from hf_distill.cli.run_folder import EVALUATED, check_kind, make_output_folder
    from hf_distill.cli.teacher_column import ColumnSource, check_column_task, score_column
    from hf_distill.files import display_name, write_json
    from hf_distill.reports.terminal import in_words, print_figures
    from hf_distill.scoring import score_model

    column = ColumnSource.of(arguments.model)
    source = arguments.model if column else check_model_source("model", arguments.model)
    check_paths({"file": data.file})
    if arguments.output_dir is not None:
        check_kind(Path(arguments.output_dir), EVALUATED)
    task = choose_task(runtime.task, options, {} if column else {"model": source})
    if column is not None:
        check_column_task(task, column.name)
    examples, _ = load_examples(task, data.source, teacher_column=column and column.name)
    if arguments.output_dir is not None:
        make_output_folder(arguments.output_dir)
    with naming(data.source):
        if column is not None:
            scores, _ = score_column(task, examples, column)
        else:
            scores = score_model(
                task,
                load_trained_model("model", source, task, runtime.dtype),
                load_tokenizer("model", source),
                examples,
                batch_size=runtime.batch_size,
                use_cpu=runtime.use_cpu,
                num_proc=data.preprocessing_num_workers,
            )
    if not scores.is_main_process:
        return
    name_of_model = source if column else display_name(source)
    name = data.source.name
    if arguments.output_dir is not None:
        content = {
            "hf_distill_version": __version__,
            "task": task.name,
            "model": name_of_model,
            "data": {"name": name, "examples": len(examples)},
            "metrics": scores.metrics,
        }
        for file, part in {EVALUATED: content, **scores.scorer.files()}.items():
            write_json(Path(arguments.output_dir) / file, part)
    title = f"{name_of_model} on {name}, {len(examples)} examples"
    print_figures(title, in_words(scores.metrics, scores.scorer.measures.quality))
