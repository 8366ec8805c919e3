"""Fine-tuned models: loaded, or refused if a part of them would be random."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging


class Loaded(NamedTuple):
    """A model, and what of it is not from its file."""

    model: PreTrainedModel
    new: list[str]
    """The weights that were not saved with it, or in another shape, and are random."""


def read_config(source: str, who: str) -> PreTrainedConfig:
    """The configuration of a model.

    Args:
        source: a folder or a Hub id.
        who: what the error calls it.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{who}={source!r} cannot be loaded: it is neither a directory with a model nor a "
            f"model that the Hub gives out. ({str(error).strip().splitlines()[0]})"
        ) from error


def load_model(auto_model: str, source: str, **options: Any) -> Loaded:
    """Load a model that may lack parts, such as a new head.

    Args:
        auto_model: the name of an ``AutoModelFor…`` class.
        source: a folder or a Hub id.
        **options: for ``from_pretrained``.

    Raises:
        OSError: there is no such model.
        ValueError: there is no such model for the task of ``auto_model``, or its file is damaged.
    """
    auto_class: Any = getattr(transformers, auto_model)
    verbosity = logging.get_verbosity()
    # The table that transformers prints of those weights would worry everyone whose student is an
    # encoder; the callers say it in a line.
    logging.set_verbosity_error()
    try:
        model, info = auto_class.from_pretrained(source, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {source} cannot be read: the file is cut off or damaged ({error}). "
            "Copy or download them again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    reshaped = [name for name, *_ in info["mismatched_keys"]]
    return Loaded(model, sorted({*info["missing_keys"], *reshaped}))


def load_fine_tuned(
    auto_model: str,
    source: str,
    *,
    task: str,
    dtype: torch.dtype = torch.float32,
    name: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load a model that is fine-tuned for a task, in evaluation mode.

    Args:
        auto_model: the name of an ``AutoModelFor…`` class.
        source: a folder or a Hub id.
        task: what it is to do, for the error.
        dtype: the precision of its weights.
        name: how the error calls it; by default ``source``.
        **options: for ``from_pretrained``.

    Raises:
        OSError: there is no such model.
        ValueError: it is not fine-tuned for the task: its head would be random.
    """
    model, new = load_model(auto_model, source, dtype=dtype, **options)
    if new:
        raise ValueError(
            f"{name or repr(str(source))} is not fine-tuned for {task}: it lacks {', '.join(new)}, "
            f"which would be random. Train it first (`hf-distill train --task {task} --baseline`)."
        )
    return model.eval()
