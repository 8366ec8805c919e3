"""Options of the commands, in addition to those of ``DistillationTrainingArguments``.

The help text of a field is its documentation. Nothing here imports PyTorch.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, NamedTuple

from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.files import display_name
from hf_distill.tasks import TASKS
from hf_distill.tasks.options import (
    ClassificationArguments,
    InputArguments,
    LanguageModelingArguments,
    QuestionAnsweringArguments,
    SequenceToSequenceArguments,
    TaskArguments,
    names,
    option,
)

FORMATS = (
    ".csv, .tsv, .jsonl, .json, .parquet, .txt (language models) or .conll (token classification), "
    "also with .gz; for question answering .json in the layout of SQuAD; or a folder written by "
    "`Dataset.save_to_disk`"
)


class DataSource(NamedTuple):
    """One split of data: a file or folder, or a data set on the Hub."""

    file: str | None
    dataset_name: str | None
    config_name: str | None
    revision: str | None
    split: str
    max_samples: int | None = None

    @property
    def name(self) -> str:
        """Name of the data in reports."""
        if self.file is not None:
            return display_name(self.file)
        return f"{self.dataset_name} ({self.split})"


@dataclass
class EvaluationDataArguments:
    """The data of `evaluate` and `compare`."""

    file: str | None = option(help=f"The labelled data: {FORMATS}.")
    dataset_name: str | None = option(
        help="Instead of --file: the id of a data set on the Hub, such as `squad_v2`."
    )
    dataset_config_name: str | None = option(help="The configuration of --dataset_name.")
    dataset_revision: str | None = option(
        help="The branch, tag or commit of --dataset_name, such as `refs/convert/parquet`."
    )
    split: str = option("validation", help="The split of --dataset_name.")
    max_eval_samples: int | None = option(
        help="Use only this many examples, taken evenly from all over the data."
    )
    preprocessing_num_workers: int | None = option(
        help="Processes that prepare the data; by default the main process does."
    )

    def __post_init__(self) -> None:
        """Check that there is data."""
        if (self.file is None) == (self.dataset_name is None):
            raise ValueError("name the data: either --file or --dataset_name.")

    @property
    def source(self) -> DataSource:
        return DataSource(
            self.file,
            self.dataset_name,
            self.dataset_config_name,
            self.dataset_revision,
            self.split,
            self.max_eval_samples,
        )


def config_option() -> Any:
    """Return the option that names a file with options."""
    return option(
        help="A YAML file with options, one `name: value` per line, named as they are here. "
        "Options on the command line override it."
    )


def use_cpu_option() -> Any:
    """Return the option that keeps an accelerator unused."""
    return option(False, help="Leave an accelerator unused.")


def task_sections() -> list[Section]:
    """Return the parts of a help text that list the options of the tasks."""
    return [
        Section("columns and length of the data", names(InputArguments)),
        Section("question answering", names(QuestionAnsweringArguments)),
        Section("text classification", names(ClassificationArguments)),
        Section("fill-mask and text generation", names(LanguageModelingArguments)),
        Section("summarization and translation", names(SequenceToSequenceArguments)),
    ]


@dataclass
class RuntimeArguments:
    """How `evaluate` and `compare` run their models."""

    task: str | None = option(
        help=f"What the models do: {', '.join(TASKS)}. By default what they were made for.",
        choices=list(TASKS),
    )
    batch_size: int = option(16, help="Inputs (windows, texts …) that are computed at a time.")
    dtype: str = option(
        "float32",
        help="Number format to compute in.",
        choices=["float32", "bfloat16", "float16"],
    )
    use_cpu: bool = use_cpu_option()

    def __post_init__(self) -> None:
        """Check the batch size."""
        if self.batch_size < 1:
            raise ValueError(f"--batch_size {self.batch_size} must be at least 1.")


@dataclass
class EvaluateArguments:
    """What `evaluate` scores and where it writes."""

    model: str = option(MISSING, help="The model to score: a folder or a Hub id.")
    output_dir: str | None = option(
        help="Where to write evaluation.json and predictions.json (for question answering in the "
        "format of the official SQuAD scorers, with nbest_predictions.json). By default the scores "
        "are only shown."
    )


@dataclass
class CompareArguments:
    """What `compare` compares."""

    teacher: str | None = option(help="The teacher: a folder or a Hub id.")
    student_alone: list[str] | None = field(
        default=None,
        metadata={
            "help": "The student that was trained with --baseline; several models if it was "
            "trained with several seeds."
        },
    )
    student_distilled: list[str] | None = field(
        default=None,
        metadata={
            "help": "The student that was trained with the teacher; several models if it was "
            "trained with several seeds."
        },
    )
    output_dir: str = option(
        "comparison",
        help="Where to write comparison.json, comparison.md and comparison.png.",
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
        if [self.teacher, self.student_alone, self.student_distilled].count(None) > 1:
            raise ValueError(
                "name at least two models: --teacher, --student_alone, --student_distilled."
            )
        for name in ("latency_samples", "throughput_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)} must not be below 0.")


@dataclass
class AnswerArguments:
    """What `answer` is asked."""

    model: str = option(MISSING, help="A question-answering model: a folder or a Hub id.")
    question: str = option(MISSING, help="The question.")
    context: str | None = option(help="The text to answer it from.")
    context_file: str | None = option(
        help="A text file (UTF-8) to answer it from; `-`, or neither of the two, for the standard "
        "input."
    )
    top_k: int = option(1, help="How many answers to give.")
    json: bool = option(
        False, help="Print JSON: text, score and place (characters) of each answer."
    )
    always_answer: bool = option(
        False, help="Leave out the possibility that the text does not answer the question."
    )
    max_length: int = option(384, help="Most tokens in a window, question included.")
    device: str | None = option(
        help="Where to compute (cpu, cuda:0, …); an accelerator if there is one."
    )

    def __post_init__(self) -> None:
        """Check that there is one text."""
        if self.context is not None and self.context_file is not None:
            raise ValueError("pass either --context or --context_file, not both.")


def scoring_parser(arguments: type, title: str, **kwargs: Any) -> CommandParser:
    """Create the parser of a command that scores models on data.

    It reads ``arguments``, whose section in the help text has the given title, and
    ``EvaluationDataArguments``, ``TaskArguments`` and ``RuntimeArguments``.
    """
    return CommandParser(
        [arguments, EvaluationDataArguments, TaskArguments, RuntimeArguments],
        sections=[
            Section(title, ["task", *names(arguments)]),
            Section("data", names(EvaluationDataArguments)),
            *task_sections(),
        ],
        **kwargs,
    )
