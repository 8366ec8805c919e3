"""What the commands can be asked for, beside the options of ``DistillationTrainingArguments``.

The help text of a field is its documentation. Nothing here imports PyTorch.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from hf_distill.cli.tasks import TASKS


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
class TrainArguments:
    """Which models are trained, and how the run begins."""

    task: str = option(MISSING, help="What the model is to do.", choices=list(TASKS))
    student_model: str = option(
        MISSING,
        help="The model to train: a folder (as written by `save_pretrained`) or a Hub id. It need "
        "not be fine-tuned; a head that it lacks starts out random.",
    )
    teacher_model: str | None = option(
        help="The model to learn from, fine-tuned for the task: a folder or a Hub id. It must use "
        "the student's tokenizer."
    )
    baseline: bool = option(
        False,
        help="Train without a teacher, everything else being equal: the way to make a teacher, "
        "and the run to compare a distilled student with. --teacher_model is then not even loaded.",
    )
    overwrite_output_dir: bool = option(
        False,
        help="Allow an --output_dir that holds an earlier run, and delete that run's checkpoints.",
    )
    config: str | None = option(
        help="A YAML file with options, one `name: value` a line, named as they are here. Options "
        "on the command line override it."
    )


@dataclass
class TrainDataArguments:
    """The data of a training run."""

    train_file: str | None = option(
        help="The training data. Question answering: .json or .json.gz in the layout of SQuAD, "
        ".jsonl, .parquet, or a folder written by `Dataset.save_to_disk`."
    )
    validation_file: str | None = option(
        help="The data to score the student on at the end, and during training with "
        "--eval_strategy. Same formats."
    )
    dataset_name: str | None = option(
        help="Instead of the two files: the id of a data set on the Hub, such as `squad_v2`."
    )
    dataset_config_name: str | None = option(help="The configuration of --dataset_name.")
    train_split: str = option("train", help="The split of --dataset_name to train on.")
    validation_split: str = option(
        "validation", help="The split of --dataset_name to score on; `none` for no scoring."
    )
    max_train_samples: int | None = option(
        help="Use only this many training examples, taken evenly from all over the data."
    )
    max_eval_samples: int | None = option(help="The same for the validation data.")
    preprocessing_num_workers: int | None = option(
        help="Processes that prepare the data; by default the main process does."
    )


@dataclass
class EvaluationDataArguments:
    """The data of `evaluate` and `compare`."""

    file: str | None = option(
        help="The labelled data. Question answering: .json or .json.gz in the layout of SQuAD, "
        ".jsonl, .parquet, or a folder written by `Dataset.save_to_disk`."
    )
    dataset_name: str | None = option(
        help="Instead of --file: the id of a data set on the Hub, such as `squad_v2`."
    )
    dataset_config_name: str | None = option(help="The configuration of --dataset_name.")
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
class QuestionAnsweringArguments:
    """How contexts are cut and answers are read."""

    max_length: int = option(
        384,
        help="Most tokens in a window, question included. Longer contexts are cut into windows "
        "that overlap.",
    )
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
class RuntimeArguments:
    """On what the models of `evaluate` and `compare` run."""

    task: str = option("question-answering", help="What the model does.", choices=list(TASKS))
    batch_size: int = option(16, help="Windows that are computed at a time.")
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
        help="Where to write evaluation.json, predictions.json (the format of the official SQuAD "
        "scorers) and nbest_predictions.json. By default the scores are only shown."
    )


@dataclass
class CompareArguments:
    """What `compare` compares."""

    teacher: str | None = option(help="The teacher: a folder or a Hub id.")
    student_alone: str | None = option(help="The student that was trained with --baseline.")
    student_distilled: str | None = option(help="The student that was trained with the teacher.")
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
        help="Examples that are answered in batches of --batch_size windows, three times, to "
        "measure the throughput; 0 leaves it out.",
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
