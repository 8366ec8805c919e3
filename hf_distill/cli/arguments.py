"""What the commands can be asked for, beside the options of ``DistillationTrainingArguments``.

The help text of a field is its documentation. Nothing here imports PyTorch.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.cli.tasks import TASKS

FORMATS = (
    ".csv, .tsv, .jsonl, .json, .parquet, .txt (language models) or .conll (token classification), "
    "also with .gz; for question answering .json in the layout of SQuAD; or a folder written by "
    "`Dataset.save_to_disk`"
)


def option(default: Any = None, *, help: str, choices: list[str] | None = None) -> Any:
    """A field of a dataclass that becomes an option; without a default it must be given."""
    metadata: dict[str, Any] = {"help": help}
    if choices is not None:
        metadata["choices"] = choices
    return field(default=default, metadata=metadata)


def names(*dataclass_types: type) -> list[str]:
    """The options that dataclasses define, in order."""
    return [f.name for dataclass_type in dataclass_types for f in fields(dataclass_type)]


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
        """Check that there is data.

        Raises:
            ValueError: names the options.
        """
        if (self.file is None) == (self.dataset_name is None):
            raise ValueError("say which data: either --file or --dataset_name.")


@dataclass
class InputArguments:
    """Which columns of the data are what, and how long inputs may be."""

    text_column: str | None = option(
        help="The column with the text; the list of words for token classification; what is to be "
        "summarized or translated. By default the usual names are looked for (text, sentence, "
        "tokens, document, …)."
    )
    text_pair_column: str | None = option(
        help="Text classification: the column with the second text, for pairs such as "
        "premise and hypothesis."
    )
    label_column: str | None = option(
        help="Text classification: the column with the label (a name or a number), with a list of "
        "labels, or with a number to predict. Token classification: with the list of tags. By "
        "default the usual names are looked for (label, labels, ner_tags, tags, …)."
    )
    target_column: str | None = option(
        help="Summarization and translation: the column with the text to write. By default the "
        "usual names are looked for (summary, highlights, target, …)."
    )
    max_length: int | None = option(
        help="Most tokens of an input, special ones included. Question answering cuts longer "
        "contexts into windows (default 384); the other tasks cut longer texts off (default 256, "
        "or fewer if the model takes fewer). Language models: see --block_size."
    )


@dataclass
class QuestionAnsweringArguments:
    """How contexts are cut and answers are read."""

    doc_stride: int = option(128, help="Tokens that two windows of one context share.")
    n_best: int = option(20, help="Answers a question to keep in nbest_predictions.json.")
    max_answer_length: int = option(30, help="Most tokens in an answer.")
    no_answer_threshold: float = option(
        0.0,
        help="For data with unanswerable questions: say `no answer` if it scores better than the "
        "best answer by more than this (in logits). Without such questions there is always an "
        "answer.",
    )


@dataclass
class ClassificationArguments:
    """What the labels of texts mean."""

    problem_type: str | None = option(
        help="What the label column holds: one label a text (single_label_classification), "
        "several (multi_label_classification) or a number to predict (regression). By default the "
        "teacher decides, or the data without one: lists are several labels, numbers with decimals "
        "are to be predicted, all else is one label.",
        choices=["single_label_classification", "multi_label_classification", "regression"],
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "The names of the labels in the order of their numbers, for data that has "
            "numbers, or vectors with a 0 or 1 for each label. By default those of the teacher."
        },
    )


@dataclass
class LanguageModelingArguments:
    """How text is cut for language models."""

    block_size: int | None = option(
        help="Tokens of a block of text. By default 512, or fewer if the model takes fewer."
    )
    join_texts: bool = option(
        True,
        help="Write all texts one after the other and cut that into blocks. Otherwise each row of "
        "the data is a block, and cut off where it is longer.",
    )
    mlm_probability: float = option(
        0.15,
        help="fill-mask: the share of the tokens to predict. In training they are drawn anew each "
        "time; for scores they are always the same.",
    )


@dataclass
class SequenceToSequenceArguments:
    """How models write texts."""

    max_target_length: int | None = option(
        help="Most tokens of a target (default 128), and of what the model writes (by default "
        "what its generation configuration says)."
    )
    num_beams: int | None = option(
        help="Beams of the search when the model writes; 1 is greedy. By default what its "
        "generation configuration says."
    )
    source_prefix: str = option(
        "", help="What the model expects before each text, such as `summarize: ` for T5."
    )
    source_lang: str | None = option(
        help="Translation: the language to translate from; a key of the column `translation` as "
        "on the Hub (en, de, …) or the name of a column."
    )
    target_lang: str | None = option(help="Translation: the same for the language to write.")


@dataclass
class TaskArguments(
    SequenceToSequenceArguments,
    LanguageModelingArguments,
    ClassificationArguments,
    QuestionAnsweringArguments,
    InputArguments,
):
    """The options of all tasks."""


SCORING_OPTIONS = (
    "n_best", "max_answer_length", "no_answer_threshold", "mlm_probability", "num_beams",
    "class_names",
)  # fmt: skip
"""The options of tasks that change no input of a model."""


def task_sections() -> list[Section]:
    """The parts of a help text that list the options of the tasks."""
    return [
        Section("columns and length of the data", names(InputArguments)),
        Section("question answering", names(QuestionAnsweringArguments)),
        Section("text classification", names(ClassificationArguments)),
        Section("fill-mask and text generation", names(LanguageModelingArguments)),
        Section("summarization and translation", names(SequenceToSequenceArguments)),
    ]


@dataclass
class RuntimeArguments:
    """On what the models of `evaluate` and `compare` run."""

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
    use_cpu: bool = option(False, help="Leave an accelerator unused.")

    def __post_init__(self) -> None:
        """Check the batch size.

        Raises:
            ValueError: it is not above 0.
        """
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
        """Check that there is something to compare.

        Raises:
            ValueError: names the options.
        """
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
    no_answer_threshold: float = option(
        0.0,
        help="Say `no answer` if it scores better than the best answer by more than this (in "
        "logits).",
    )
    max_length: int = option(384, help="Most tokens in a window, question included.")
    doc_stride: int = option(128, help="Tokens that two windows of the text share.")
    max_answer_length: int = option(30, help="Most tokens in an answer.")
    device: str | None = option(
        help="Where to compute (cpu, cuda:0, …); an accelerator if there is one."
    )

    def __post_init__(self) -> None:
        """Check that there is one text.

        Raises:
            ValueError: names the options.
        """
        if self.context is not None and self.context_file is not None:
            raise ValueError("pass either --context or --context_file, not both.")


def scoring_parser(arguments: type, title: str, **kwargs: Any) -> CommandParser:
    """The parser of a command that scores models on data.

    Args:
        arguments: the command's own options.
        title: that of their section in the help text.
        **kwargs: as for ``CommandParser``.

    Returns:
        It reads ``arguments``, ``EvaluationDataArguments``, ``TaskArguments`` and
        ``RuntimeArguments``.
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
