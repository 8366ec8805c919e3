"""Models and data that the user names: found, checked and loaded, or a clear error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.pairing import TOKENIZER_FILES

if TYPE_CHECKING:
    from hf_distill.cli.tasks import Task


def check_model_source(option: str, source: str) -> str:
    """Check, without loading anything, that a model can be where ``source`` says.

    Args:
        option: the option that named it, for the error.
        source: a folder or a Hub id.

    Returns:
        ``source``, with a leading ``~`` replaced.

    Raises:
        ValueError: a folder is missing or holds no model.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"--{option} {source}: this folder holds no model (no config.json); name the "
                "folder that `save_pretrained` or `hf-distill train` wrote."
            )
        return str(path)
    if path.is_file():
        raise ValueError(
            f"--{option} {source} is a file; name the folder that holds it, with its config.json."
        )
    looks_like_a_path = path.is_absolute() or source.startswith((".", "~")) or "\\" in source
    if looks_like_a_path or source.count("/") > 1:
        raise ValueError(f"--{option} {source}: there is no such folder.")
    return source


def load_tokenizer(option: str, source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        ValueError: there is none, or only a slow one; or the model cannot be found.
    """
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"--{option} {source}: the folder has no tokenizer (no tokenizer.json); save it there "
            "with tokenizer.save_pretrained."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise ValueError(
            f"--{option} {source}: there is no such folder, and the Hub gives out no such model or "
            f"cannot be reached. ({str(error).strip().splitlines()[0]})"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"--{option} {source}: its tokenizer ({type(tokenizer).__name__}) is a slow one, which "
            "cannot say where in the text a token is; choose a model with a fast tokenizer."
        )
    return tokenizer


def load_student(source: str, task: Task) -> tuple[PreTrainedModel, list[str]]:
    """Load a model to train, in float32.

    Returns:
        The model, and the names of its parts that were not saved with it, such as a new head:
        they start out random.

    Raises:
        OSError: there is no such model.
    """
    model, missing = _load(source, task, torch.float32)
    return model, sorted({name.rpartition(".")[0] for name in missing})


def load_trained_model(
    option: str, source: str, task: Task, dtype: str = "float32"
) -> PreTrainedModel:
    """Load a model that is fine-tuned for a task.

    Raises:
        OSError: there is no such model.
        ValueError: it is not fine-tuned for the task: its head would be random.
    """
    model, missing = _load(source, task, getattr(torch, dtype))
    if missing:
        raise ValueError(
            f"--{option} {source} is not fine-tuned for {task.name}: it lacks "
            f"{', '.join(missing)}, which would be random. Train it first "
            "(`hf-distill train --baseline`)."
        )
    return model.eval()


def load_examples(
    task: Task,
    file: str | None,
    dataset_name: str | None,
    *,
    config_name: str | None = None,
    split: str | None = None,
    most: int | None = None,
) -> Dataset:
    """Load data from a file or the Hub, all of it or ``most`` examples from all over it.

    Raises:
        OSError: it is not there.
        ValueError: it is not data of the task, or ``most`` is not above 0.
    """
    if file is not None:
        path = Path(file).expanduser()
        has_splits = (path / "dataset_dict.json").is_file()
        examples = task.load_data(str(path), split=split if has_splits else None)
    else:
        examples = task.load_data(str(dataset_name), split=split, config_name=config_name)
    return examples if most is None else spread(examples, most)


def spread(examples: Dataset, most: int) -> Dataset:
    """At most ``most`` examples, at even distances: no seed, and no topic is left out.

    Data sets are often ordered by article; their first rows would all be about one thing.

    Raises:
        ValueError: ``most`` is not above 0.
    """
    if most < 1:
        raise ValueError(f"max_…_samples={most} must be at least 1; leave it out to use all.")
    total = len(examples)
    return examples if most >= total else examples.select([i * total // most for i in range(most)])


def check_paths(files: dict[str, str | None]) -> None:
    """Check that files exist, before anything else is done.

    Args:
        files: paths (or ``None``) by the name of the option.

    Raises:
        ValueError: names the first that does not exist.
    """
    for option, file in files.items():
        if file is not None and not Path(file).expanduser().exists():
            raise ValueError(f"--{option} {file}: there is no such file.")


def _load(source: str, task: Task, dtype: torch.dtype) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of the weights that were not saved with it."""
    auto_model: Any = getattr(transformers, task.auto_model)
    verbosity = logging.get_verbosity()
    # The table that transformers prints of those weights would worry everyone whose student is an
    # encoder; the callers say it in a line.
    logging.set_verbosity_error()
    try:
        model, info = auto_model.from_pretrained(source, dtype=dtype, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    return model, sorted(info["missing_keys"])
