"""Options of the tasks, each defined once.

The help text of a field is its documentation. Nothing here imports PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def option(default: Any = None, *, help: str, choices: list[str] | None = None) -> Any:
    """A field of a dataclass that becomes an option; without a default it must be given."""
    metadata: dict[str, Any] = {"help": help}
    if choices is not None:
        metadata["choices"] = choices
    return field(default=default, metadata=metadata)


def names(*dataclass_types: type) -> list[str]:
    """Return the options that dataclasses define, in order."""
    return [f.name for dataclass_type in dataclass_types for f in fields(dataclass_type)]


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
class AnswerSpanArguments:
    """Cutting of contexts and reading of answers."""

    doc_stride: int = option(128, help="Tokens that two windows of one context share.")
    max_answer_length: int = option(30, help="Most tokens in an answer.")
    no_answer_threshold: float = option(
        0.0,
        help="Answer `no answer` if it scores better than the best answer by more than this (in "
        "logits). Data in which every question has an answer always gets one.",
    )


@dataclass
class QuestionAnsweringArguments(AnswerSpanArguments):
    """Cutting of contexts, reading of answers and their number."""

    n_best: int = option(20, help="Answers per question to keep in nbest_predictions.json.")


@dataclass
class ClassificationArguments:
    """Meaning of the labels of texts."""

    problem_type: str | None = option(
        help="What the label column holds: one label per text (single_label_classification), "
        "several (multi_label_classification) or a number to predict (regression). By default the "
        "teacher decides, or the data without one: lists are several labels, numbers with decimals "
        "are to be predicted, all else is one label.",
        choices=["single_label_classification", "multi_label_classification", "regression"],
    )
    class_names: list[str] | None = option(
        help="The names of all labels in the order of their numbers, for data that has "
        "numbers, or vectors with a 0 or 1 for each label. By default those of the teacher. Where "
        "the data has names, they must be among these."
    )


@dataclass
class LanguageModelingArguments:
    """Cutting of text for language models."""

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
        help="fill-mask: the share of the tokens to predict. In training they are drawn again each "
        "time; for scores they are always the same.",
    )


@dataclass
class SequenceToSequenceArguments:
    """Writing of texts by models."""

    max_target_length: int | None = option(
        help="Most tokens of a target (default 128), and of what the model writes (by default "
        "what its generation configuration sets)."
    )
    num_beams: int | None = option(
        help="Beams of the search when the model writes; 1 is greedy. By default what its "
        "generation configuration sets."
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
    """Options of all tasks."""


SCORING_OPTIONS = (
    "n_best", "max_answer_length", "no_answer_threshold", "mlm_probability", "num_beams",
    "class_names",
)  # fmt: skip
"""The options of tasks that change no input of a model."""
