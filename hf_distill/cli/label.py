"""``hf-distill label``: a language model's probabilities of labels, as a column of the data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from hf_distill.cli.arguments import config_option, use_cpu_option
from hf_distill.cli.outline import outline
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.cli.train_arguments import TrainingFileArguments
from hf_distill.tasks.options import TaskArguments, names, option

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.tasks.text_classification import TextClassificationTask

EXAMPLES = """\
examples:
  ask which of two words the model continues with
    hf-distill label --teacher_model LANGUAGE_MODEL --train_file reviews.csv \\
        --label_words negative=negative,bad positive=positive,good \\
        --prompt 'Review: {text} Sentiment:' --chat no --calibrate --output_path labelled.jsonl

  then train a small model from these probabilities
    hf-distill train --task text-classification --student_model SMALL_MODEL \\
        --train_file labelled.jsonl --teacher_column probabilities …

  continue after an interruption: the same command again
"""

_HELP = {f.name: f.metadata for f in fields(TaskArguments)}


@dataclass
class LabelArguments:
    """The language model, and what it is asked."""

    teacher_model: str = option(
        MISSING, help="The causal language model (…ForCausalLM): a folder or a Hub id."
    )
    label_words: list[str] = option(
        MISSING,
        help="The words that stand for each label: `positive=good,great negative=bad`. The model "
        "gives each word a probability after the prompt, and those of a label are added. A label "
        "without `=` is its own word.",
    )
    output_path: str = option(
        MISSING,
        help="The .jsonl (also .jsonl.gz) or .parquet file to write: all columns of the data, and "
        "the probabilities. It appears there when it is whole; NAME.manifest.json next to it says "
        "how it was made.",
    )
    output_column: str = option(
        "probabilities", help="The name of the new column, with an object of label to probability."
    )
    prompt: str | None = option(
        help="The prompt that the words follow, with columns of the data in braces; {text} and "
        "{text_pair} stand for the text column and the second one. By default the texts, and a "
        "question that lists the first word of each label."
    )
    chat: str = option(
        "auto",
        help="Write the prompt as a user's message, by the tokenizer's chat template: yes, no, or "
        "if it has one (auto).",
        choices=["auto", "yes", "no"],
    )
    calibrate: bool = option(
        False,
        help="Divide by the probabilities that the model gives without a text (contextual "
        "calibration, Zhao et al. 2021): takes away its liking for some words.",
    )
    max_length: int | None = option(
        help="The most tokens of a prompt with a word; of a longer one the text is cut, not the "
        "prompt. By default what the model takes."
    )
    batch_size: int = option(8, help="Rows at a time, of about the same length.")
    use_cpu: bool = use_cpu_option()
    config: str | None = config_option()


@dataclass
class LabelDataArguments(TrainingFileArguments):
    """The texts, and the columns that they are in."""

    text_column: str | None = field(default=None, metadata=_HELP["text_column"])
    text_pair_column: str | None = field(default=None, metadata=_HELP["text_pair_column"])
    label_column: str | None = option(
        help="The column with gold labels, if there are any: the model's answers are then scored. "
        "By default the usual names are looked for."
    )
    class_names: list[str] | None = field(default=None, metadata=_HELP["class_names"])

    def __post_init__(self) -> None:
        """Check that there is data."""
        if (self.train_file is None) == (self.dataset_name is None):
            raise ValueError("name the data: either --train_file or --dataset_name.")
        self.check_use({"train_split": self.training})
        if self.preprocessing_num_workers is not None:
            raise ValueError("--preprocessing_num_workers has no effect here; leave it out.")


TeacherArguments = outline(
    "hf_distill.training_args:DistillationTrainingArguments", only=("teacher_dtype",)
)


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        [LabelArguments, TeacherArguments, LabelDataArguments],
        prog="hf-distill label",
        usage="hf-distill label --teacher_model MODEL --label_words LABEL=WORD,… … "
        "--train_file FILE --output_path FILE [options]",
        description="Let a language model label texts (or pairs of texts), and write how probable "
        "it finds each label:\n`hf-distill train --teacher_column` trains a small model from that. "
        "No gold labels are needed.",
        sections=[
            Section("language model and output", names(LabelArguments, TeacherArguments)),
            Section("data", ["train_file", *names(LabelDataArguments)]),
        ],
        hidden=["preprocessing_num_workers"],
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Label texts."""
    arguments, averaging, data = build_parser().parse(argv)

    from hf_distill.cli.loading import check_model_source, check_paths, naming, place_of
    from hf_distill.console import log_rank_0
    from hf_distill.labelling import label_dataset
    from hf_distill.labelling.words import check_label_words, read_label_words
    from hf_distill.tasks.tables import evenly_spaced, load_table
    from hf_distill.tasks.text_classification import TextClassificationTask

    source = check_model_source("teacher_model", arguments.teacher_model)
    check_paths({"train_file": data.train_file})
    words = check_label_words(read_label_words(arguments.label_words))
    place, options = place_of(data.training)
    with naming(data.training):
        table = load_table(place, **options)
    if data.max_train_samples is not None:
        table = evenly_spaced(table, data.max_train_samples, "max_train_samples")
    task = TextClassificationTask(
        TaskArguments(
            text_column=data.text_column,
            text_pair_column=data.text_pair_column,
            label_column=data.label_column,
            class_names=data.class_names,
        )
    )
    with naming(data.training):
        columns = task.columns(table, labelled=False)
        gold = _gold(task, table, list(words))
    labelled = label_dataset(
        table,
        source,
        words,
        text_columns=[columns[name] for name in ("text", "text_pair") if name in columns],
        prompt=arguments.prompt,
        chat={"auto": None, "yes": True, "no": False}[arguments.chat],
        calibrate=arguments.calibrate,
        output_column=arguments.output_column,
        output_path=arguments.output_path,
        max_length=arguments.max_length,
        batch_size=arguments.batch_size,
        use_cpu=arguments.use_cpu,
        **vars(averaging),
    )
    manifest = labelled.manifest
    form = "by the chat template" if manifest["prompt"]["chat"] else "as plain text"
    log_rank_0(f"The prompt, {form}, with the first word: {manifest['prompt']['written']!r}")
    if manifest["cut"]:
        log_rank_0(f"The texts of {manifest['cut']:,} rows were too long, and were cut.")
    if gold is not None:
        _show_scores(gold, labelled.dataset[arguments.output_column], list(words))
    log_rank_0(
        f"The probabilities of {len(table):,} rows are in {arguments.output_path}; train with "
        f"--train_file {arguments.output_path} --teacher_column {arguments.output_column}."
    )


def _gold(
    task: TextClassificationTask, table: Dataset, labels: Sequence[str]
) -> tuple[Dataset, list[int]] | None:
    """Return rows and the numbers of their gold labels; ``None`` if the data has none.

    Raises:
        TaskDataError: a gold label is not among the labels; names the row.
    """
    from transformers import PreTrainedConfig

    from hf_distill.console import log_rank_0
    from hf_distill.tasks.columns import kind_of
    from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
    from hf_distill.tasks.labels import label_options, label_values
    from hf_distill.tasks.text_classification import SINGLE, data_problem_type, label_targets

    try:
        rows = task.rows(table)
    except MissingLabelsError as error:
        log_rank_0(f"Without gold labels the answers are not scored: {error}")
        return None
    if data_problem_type(rows) != SINGLE:
        log_rank_0("The answers are not scored: the data has no single label per text.")
        return None
    found = set(map(str, label_values(rows, "label")))
    if kind_of(rows.features["label"]) == "number" and found - set(labels):
        numbered = ", ".join(f"{number} is {label!r}" for number, label in enumerate(labels))
        log_rank_0(
            f"The gold labels are numbers, in the order of --label_words: {numbered}. Of another "
            "order they need --class_names."
        )
    config = PreTrainedConfig(problem_type=SINGLE, **label_options(labels))
    try:
        return rows, label_targets(rows, config)
    except TaskDataError as error:
        raise TaskDataError(
            f"--label_words lacks a label that the data has, or spells it in another way. {error}"
        ) from error


def _show_scores(
    gold: tuple[Dataset, list[int]],
    probabilities: Sequence[dict[str, float]],
    labels: Sequence[str],
) -> None:
    """Print the accuracy and the other metrics of the most probable labels."""
    import numpy as np
    from transformers import EvalPrediction, PreTrainedConfig

    from hf_distill.reports.terminal import in_words, print_figures
    from hf_distill.tasks.labels import label_options
    from hf_distill.tasks.text_classification import SINGLE, TextClassificationScorer

    rows, numbers = gold
    config = PreTrainedConfig(problem_type=SINGLE, **label_options(labels))
    scorer = TextClassificationScorer(rows, config)
    predictions = np.array([[row[label] for label in labels] for row in probabilities])
    metrics = scorer(EvalPrediction(predictions=predictions, label_ids=np.array(numbers)))
    figures: dict[str, Any] = in_words(metrics, scorer.measures.quality)
    print_figures(f"the teacher's labels against the gold ones, {len(rows):,} rows", figures)
    if scorer.baseline is not None:
        constant, scores = scorer.baseline
        sys.stdout.write(f"Accuracy of {constant}: {scores['accuracy']:.1f}.\n")
