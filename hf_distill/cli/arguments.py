"""Options of the commands, in addition to those of ``DistillationTrainingArguments``.

The help text of a field is its documentation. Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
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
    """One split of data: a file or folder, or a data set on the Hub.

    ``option`` is the one that names the file.
    """

    file: str | None = None
    dataset_name: str | None = None
    config_name: str | None = None
    revision: str | None = None
    split: str = "train"
    max_samples: int | None = None
    option: str = "file"
    limited_by: str = "max_eval_samples"
    """The option that ``max_samples`` is from."""

    @property
    def has_splits(self) -> bool:
        """Return whether there are several splits to choose from."""
        if self.file is None:
            return self.dataset_name is not None
        return (Path(self.file).expanduser() / "dataset_dict.json").is_file()

    @property
    def shown_option(self) -> str:
        """The data in messages: the option that names it."""
        return f"--{self.option}" if self.file is not None else f"--dataset_name {self.name}"

    @property
    def name(self) -> str:
        """Name of the data in reports."""
        if self.file is not None:
            return display_name(self.file)
        return f"{self.dataset_name} ({self.split})"


def task_option() -> Any:
    """Return the option that names the task."""
    return option(
        help=f"What the models do: {', '.join(TASKS)}. By default what the teacher, or the model "
        "to score, was fine-tuned for; needed where there is none.",
        choices=list(TASKS),
    )


def teacher_column_option(how: str = "") -> Any:
    """Return the option that names a column of a teacher's predictions."""
    return option(
        help=f"{how}the column of the data with the teacher's prediction of each row: an object "
        '{"label": number}, a list of {"label", "score"} or a list of numbers in the order of '
        "--class_names; a number for regression; a list of these, one per word, for token "
        "classification. In CSV files as JSON text."
    )


def teacher_column_kind_option() -> Any:
    """Return the option that tells what the numbers in a column are."""
    return option(
        "probabilities",
        help="What the numbers in --teacher_column are.",
        choices=["probabilities", "log_probabilities", "logits"],
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


def check_split(option: str, split: str, usual: str, source: DataSource | None) -> None:
    """Check that a split is named only of data that has several."""
    if split != usual and not (source is not None and source.has_splits):
        raise ValueError(
            f"--{option} {split} is for data of several splits (a folder of them, or a data set on "
            "the Hub); leave it out."
        )


@dataclass
class HubDataArguments:
    """A data set on the Hub instead of files, and how many processes prepare it."""

    dataset_name: str | None = option(
        help="Instead of files: the id of a data set on the Hub, such as `squad_v2`."
    )
    dataset_config_name: str | None = option(help="The configuration of --dataset_name.")
    dataset_revision: str | None = option(
        help="The branch, tag or commit of --dataset_name, such as `refs/convert/parquet`."
    )
    preprocessing_num_workers: int | None = option(
        help="Processes that prepare the data; by default the main process does."
    )

    def check_use(self, sources: Mapping[str, DataSource | None]) -> None:
        """Check that no option is given that nothing would read.

        Args:
            sources: the data, by the option that names its split.
        """
        workers = self.preprocessing_num_workers
        if workers is not None and workers < 1:
            raise ValueError(f"--preprocessing_num_workers {workers} must be at least 1.")
        for name in ("dataset_config_name", "dataset_revision"):
            if getattr(self, name) is not None and self.dataset_name is None:
                raise ValueError(f"--{name} is for --dataset_name; add it, or leave --{name} out.")
        usual = {field.name: field.default for field in fields(self)}
        for name, source in sources.items():
            check_split(name, getattr(self, name), str(usual[name]), source)

    def source_of(
        self, file: str | None, split: str, max_samples: int | None = None, *, option: str = "file"
    ) -> DataSource:
        return DataSource(
            file,
            self.dataset_name,
            self.dataset_config_name,
            self.dataset_revision,
            split,
            max_samples,
            option,
        )


@dataclass
class EvaluationDataArguments(HubDataArguments):
    """Data of `evaluate` and `compare`."""

    file: str | None = option(help=f"The labelled data: {FORMATS}.")
    split: str = option("validation", help="The split of --dataset_name.")
    max_eval_samples: int | None = option(
        help="Use only this many examples, taken evenly from all over the data."
    )

    def __post_init__(self) -> None:
        """Check that there is data."""
        if (self.file is None) == (self.dataset_name is None):
            raise ValueError("name the data: either --file or --dataset_name.")
        self.check_use({"split": self.source})

    @property
    def source(self) -> DataSource:
        return self.source_of(self.file, self.split, self.max_eval_samples)


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
    """Running of models by `evaluate` and `compare`."""

    task: str | None = task_option()
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


def scoring_parser(arguments: type, title: str, **kwargs: Any) -> CommandParser:
    """Create the parser of a command that scores models on data.

    It reads ``arguments``, whose section in the help text has the given title, and
    ``EvaluationDataArguments``, ``TaskArguments`` and ``RuntimeArguments``.
    """
    return CommandParser(
        [arguments, EvaluationDataArguments, TaskArguments, RuntimeArguments],
        sections=[
            Section(title, ["task", *names(arguments)]),
            Section("data", ["file", *names(EvaluationDataArguments)]),
            *task_sections(),
        ],
        **kwargs,
    )
