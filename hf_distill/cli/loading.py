"""Models and data that options name: checked and loaded, or refused by the name of the option."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_distill import loading
from hf_distill.alignment import TeacherReader
from hf_distill.compatibility import input_limit
from hf_distill.compatibility.tokenizers import saved_tokenizer
from hf_distill.compatibility.two_tokenizers import are_equal, choose_alignment
from hf_distill.console import log_rank_0
from hf_distill.files import display_name
from hf_distill.loading import fewest_tokens
from hf_distill.tasks import TASKS, create_task, task_of_class
from hf_distill.tasks.base import Encoded
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.options import TaskArguments, names
from hf_distill.tasks.overview import look_at, overview_table
from hf_distill.tasks.tables import evenly_spaced
from hf_distill.teachers.caching import cached_teacher

if TYPE_CHECKING:
    from hf_distill.cli.arguments import DataSource
    from hf_distill.tasks.base import Task


def _flag(option: str) -> str:
    """Return an option as it is typed: a name in capitals stands for a positional argument."""
    return option if option.isupper() else f"--{option}"


def check_model_source(option: str, source: str) -> str:
    """Check, without loading anything, that a model can be where ``source`` says.

    Returns:
        ``source``, with a leading ``~`` replaced.

    Raises:
        ValueError: a folder is missing or has no model in it; names ``option``.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            if option == "student_model":
                raise ValueError(
                    f"{_flag(option)} {source} is a PEFT adapter; name the folder that "
                    "merge_and_unload().save_pretrained wrote of it and its base."
                )
        elif not (path / "config.json").is_file():
            raise ValueError(
                f"{_flag(option)} {source}: this folder holds no model (no config.json); name the "
                "folder that `save_pretrained` or `hf-distill train` wrote."
            )
        return str(path)
    if path.is_file():
        raise ValueError(
            f"{_flag(option)} {source} is a file; name the folder that holds it, with its "
            "config.json."
        )
    looks_like_a_path = path.is_absolute() or source.startswith((".", "~")) or "\\" in source
    if looks_like_a_path or source.count("/") > 1:
        raise ValueError(f"{_flag(option)} {source}: there is no such folder.")
    return source


def choose_task(
    name: str | None,
    options: TaskArguments,
    models: Mapping[str, str | Sequence[str] | None],
    *,
    teacher_outputs: str | None = None,
) -> Task:
    """Make the task of ``--task``, or else the one that fine-tuned models were made for.

    Args:
        name: the task's name, if it is given.
        options: the options of all tasks.
        models: one or several folders or Hub ids by option; ``None`` for what was not given.
        teacher_outputs: a folder of stored outputs, which know their teacher's task.

    Raises:
        ValueError: the models do not tell, or differ; asks for ``--task``.
    """
    return create_task(name or task_of(models, teacher_outputs), options)


def task_of(models: Mapping[str, str | Sequence[str] | None], teacher_outputs: str | None) -> str:
    found: dict[str, str] = {}
    for option, named in models.items():
        for source in [named] if isinstance(named, str) else named or ():
            config = loading.read_config(check_model_source(option, source), _flag(option))
            class_name = (config.architectures or [type(config).__name__])[0]
            task = task_of_class(class_name, config)
            if task is None:
                raise ValueError(
                    f"{_flag(option)} {source} is a {class_name}, which has none of the tasks "
                    f"here; pass --task with one of {', '.join(TASKS)}."
                )
            found[option] = task
    if teacher_outputs is not None:
        found["teacher_outputs"] = cached_teacher(teacher_outputs).task
    if not found:
        raise ValueError(f"--task is missing; name what the model is to do: {', '.join(TASKS)}.")
    if len(set(found.values())) > 1:
        different = ", ".join(f"{_flag(option)} for {task}" for option, task in found.items())
        raise ValueError(f"the models have different tasks: {different}; name models of one task.")
    option, task = found.popitem()
    if task == "summarization":
        raise ValueError(
            f"{_flag(option)} writes texts, for summarization or translation; pass --task with "
            "one of the two."
        )
    return task


def load_tokenizer(option: str, source: str) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer; a ``ValueError`` tells why there is none."""
    try:
        tokenizer = loading.load_tokenizer(source, name=f"{_flag(option)} {source}")
    except OSError as error:
        raise ValueError(loading.not_found(f"{_flag(option)} {source}", error)) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{_flag(option)} {source}: its tokenizer ({type(tokenizer).__name__}) is a slow one, "
            "which cannot say where in the text a token is; choose a model with a fast tokenizer."
        )
    return tokenizer


def load_teacher_reader(
    sources: Sequence[str], task: Task, tokenizer: PreTrainedTokenizerBase
) -> TeacherReader | None:
    """Load the tokenizer of teachers; ``None`` if they have none, or the one that is given.

    Raises:
        ValueError: it is another one, and the task's predictions cannot be aligned, or not all
            have the same.
    """
    known = [
        (source, theirs, task.head(config))
        for source in sources
        if (theirs := saved_tokenizer(source)) is not None
        and (config := load_config(source)) is not None
    ]
    others = [one for one in known if not are_equal(one[1], tokenizer, one[2])]
    if not others:
        return None
    first, theirs, head = others[0]
    for source, own, _ in known:
        if not are_equal(own, theirs, head):
            raise ValueError(
                f"--teacher_model: {display_name(first)} and "
                f"{display_name(source)} have different tokenizers. Several teachers read "
                "one encoding of a text; choose those that share a tokenizer."
            )
    models = [load_meta_model("teacher_model", source, task) for source in sources]
    choose_alignment(models[0], head, tokenizer, theirs)
    # Stored with outputs, it tells how much was read.
    limit = fewest_tokens(theirs.model_max_length, *map(input_limit, models))
    theirs.model_max_length = limit or theirs.model_max_length
    return TeacherReader(theirs, limit)


def load_meta_model(option: str, source: str, task: Task) -> PreTrainedModel:
    """Return a model without weights, as its configuration has it."""
    config = loading.read_config(source, option)
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, task.head.auto_model).from_config(config)
    return model


def load_config(source: str) -> PreTrainedConfig | None:
    """Read the configuration of a model; ``None`` if that fails."""
    try:
        return loading.read_config(source, "model")
    except ValueError:
        return None


def load_trained_model(
    option: str, source: str, task: Task, dtype: str = "float32", *, exported: bool = True
) -> PreTrainedModel:
    """Load a model that is fine-tuned for a task; without a trained head it is refused."""
    return loading.load_fine_tuned(
        task.head.auto_model,
        source,
        task=task.name,
        dtype=getattr(torch, dtype),
        name=f"{_flag(option)} {source}",
        exported=exported,
    )


def place_of(source: DataSource) -> tuple[str, dict[str, Any]]:
    """Return where data is, and the options of ``load_table`` for it."""
    if source.file is None:
        more = {"config_name": source.config_name, "revision": source.revision}
        return str(source.dataset_name), {"split": source.split, **more}
    path = Path(source.file).expanduser()
    return str(path), {"split": source.split if source.has_splits else None}


@contextmanager
def naming(source: DataSource) -> Iterator[None]:
    """Begin what is said of data that a task cannot use with the option that it is from."""
    try:
        yield
    except TaskDataError as error:
        message = as_typed(str(error), names(TaskArguments))
        raise type(error)(f"{source.shown_option}: {message}") from error


def as_typed(
    message: str, arguments: Iterable[str], renamed: Mapping[str, str] | None = None
) -> str:
    """Return a message with arguments of Python written as options.

    Args:
        message: may have ``layers='auto'``, or a name with an underscore.
        arguments: those that are options.
        renamed: options of other names than their arguments.
    """
    options = {name: name for name in arguments} | dict(renamed or {})
    known = "|".join(name if "_" in name else f"{name}(?==)" for name in options)
    return re.sub(
        rf"(?<![\w'/.-])({known})\b(=?)",
        lambda found: f"--{options[found[1]]}{' ' if found[2] else ''}",
        message,
    )


def load_examples(
    task: Task,
    source: DataSource,
    *,
    labelled: bool = True,
    or_unlabelled: bool = False,
    teacher_column: str | None = None,
) -> tuple[Dataset, bool]:
    """Load data, with its labels or without.

    Args:
        task: checks the data.
        source: where it is; of more than ``max_samples`` rows it is so many from all over the data.
        labelled: read the labels.
        or_unlabelled: leave labels out where they are not complete.
        teacher_column: a column of a teacher's predictions to keep.

    Returns:
        The examples, and whether they have labels.

    Raises:
        TaskDataError: it is not data of the task; names the option.
    """
    place, options = place_of(source)
    if teacher_column is not None:
        options["teacher_column"] = teacher_column
    with naming(source):
        try:
            examples = task.load_data(place, labelled=labelled, **options)
        except ConnectionError as error:
            raise ConnectionError(
                f"--dataset_name {place}: {error}; without the Hub, pass a file with "
                f"--{source.option}."
            ) from error
        except MissingLabelsError as error:
            if not or_unlabelled:
                raise
            labelled = False
            examples = task.load_data(place, labelled=False, **options)
            log_rank_0(
                "The data is used without labels, which the teacher's outputs do not need. "
                f"{as_typed(str(error), names(TaskArguments))}"
            )
    if source.max_samples is not None:
        examples = evenly_spaced(examples, source.max_samples, source.limited_by)
    return examples, labelled


def show_data(task: Task, splits: Mapping[str, tuple[Dataset, Encoded, bool]], model: Any) -> None:
    """Show an overview of examples, their features, and whether they have labels, by name."""
    looks = {
        name: look_at(
            examples,
            len(encoded.features),
            encoded.truncated,
            task.label_counts(examples, model) if labelled else {},
        )
        for name, (examples, encoded, labelled) in splits.items()
    }
    log_rank_0(overview_table(looks, task.limit))


def check_paths(files: Mapping[str, str | None]) -> None:
    """Check that files exist, by the name of the option; ``None`` is not given."""
    for option, file in files.items():
        if file is not None and not Path(file).expanduser().exists():
            raise ValueError(f"{_flag(option)} {file}: there is no such file.")
