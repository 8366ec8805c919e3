"""Models, configurations and tokenizers, from folders or the Hub: loaded, or refused.

Whatever a folder or a repository holds, none of it is run: weights are safetensors, never pickles,
and code that a repository brings is refused. The Hub is asked once, and briefly where it cannot be
reached.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_peft_available

from hf_distill.onnx_model import exported_file, load_exported
from hf_distill.restoring import temporarily_set

TRANSPORT_ERROR: Any = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
"""The Hub client's error without an answer; its class depends on the version of the client."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "tekken.json",
)
"""Files of vocabularies. Without any, transformers makes up an empty one instead of raising."""

_SECONDS_BEFORE_ASKING_AGAIN = 60.0
_asked: dict[str, tuple[float, bool]] = {}


class UnusableSourceError(ValueError):
    """A model that is there and cannot be loaded as it is; the message names the remedy."""


class UnsafeSourceError(UnusableSourceError):
    """A model, or its tokenizer, that cannot be loaded without running what came with it."""


class Loaded(NamedTuple):
    """A model, and the weights that are not from its file."""

    model: PreTrainedModel
    new: list[str]
    """The weights that were not saved with it, or in another shape, and are random."""


def read_config(source: str, who: str) -> PreTrainedConfig:
    """Read the configuration of a model.

    Args:
        source: a folder or a Hub id; a PEFT adapter has the configuration of its base.
        who: what the error calls it.

    Raises:
        ValueError: there is none.
    """
    try:
        with hub_tried_once(source), _code_refused(source):
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except UnsafeSourceError:
        raise
    except (OSError, ValueError) as error:
        base = adapter_base(source)
        if base is not None:
            return read_config(base, who)
        raise ValueError(not_found(f"{who}={source!r} cannot be loaded", error)) from error


def load_tokenizer(
    source: str, *, revision: str | None = None, name: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is saved with a model.

    Args:
        source: a folder or a Hub id.
        revision: a branch, tag or commit on the Hub.
        name: what the error calls it; by default ``source``.

    Raises:
        OSError: the source does not exist.
        ValueError: it has no tokenizer, or none of a known kind.
    """
    name = name or repr(source)
    try:
        with hub_tried_once(source), _code_refused(source):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source, revision=revision, trust_remote_code=False
            )
    except UnsafeSourceError:
        raise
    except (TypeError, ValueError):
        _check_vocabulary(source, None, name, revision)
        raise
    _check_vocabulary(source, tokenizer, name, revision)
    return tokenizer


def _check_vocabulary(source: str, tokenizer: Any, name: str, revision: str | None) -> None:
    """Check that ``tokenizer`` (``None``: it failed) was read, and not made up by transformers."""
    own: Mapping[str, str] = getattr(tokenizer, "vocab_files_names", {})
    if tokenizer is not None and not own:
        return  # its tokens are bytes or characters
    # What there is on the Hub has been downloaded by now.
    where = {"revision": revision, "local_files_only": True}
    if not any(find_file(source, one, **where) for one in (*TOKENIZER_FILES, *own.values())):
        raise ValueError(
            f"{name} has no tokenizer (no tokenizer.json); save it there with "
            "tokenizer.save_pretrained."
        )


def fewest_tokens(*limits: int | None) -> int | None:
    """Return the lowest of some limits on the tokens of an input; ``None`` without any.

    Tokenizers without a limit have 10**30, and T5's relative positions none (0, -1).
    """
    return min((int(n) for n in limits if n and 0 < n < 10**9), default=None)


def load_model(auto_model: str, source: str, **options: Any) -> Loaded:
    """Load a model that may lack parts, such as a new head.

    Args:
        auto_model: the name of an ``AutoModelFor…`` class.
        source: a folder or a Hub id. A PEFT adapter is merged into its base.
        **options: for ``from_pretrained``.

    Raises:
        OSError: the model does not exist.
        UnsafeSourceError: its weights are pickled, or it needs its own code.
        UnusableSourceError: an adapter cannot be merged into its base, or PEFT is missing.
        ValueError: its architecture has no ``auto_model``, its file is damaged, or it is an
            exported model.
    """
    if exported_file(source) is not None:
        raise ValueError(
            f"{source} is an exported model, which can be asked and scored, but neither teach nor "
            "be trained or exported; name the folder it was made of."
        )
    base = adapter_base(source)
    if base is not None:
        return _load_adapter(auto_model, source, base, **options)
    auto_class: Any = getattr(transformers, auto_model)
    verbosity = logging.get_verbosity()
    # The table that transformers prints of those weights would worry everyone whose student is an
    # encoder; the callers report them in a line.
    logging.set_verbosity_error()
    try:
        with hub_tried_once(source), _code_refused(source), _pickles_refused(source):
            model, info = auto_class.from_pretrained(
                source,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                **options,
            )
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
    dtype: torch.dtype | str = torch.float32,
    name: str | None = None,
    new_head: bool = False,
    exported: bool = True,
    **options: Any,
) -> PreTrainedModel:
    """Load a model that is fine-tuned for a task, in evaluation mode.

    A folder with nothing but an exported model gives an ``ExportedModel``, which is used in the
    same way and cannot be trained.

    Args:
        auto_model: the name of an ``AutoModelFor…`` class.
        source: a folder or a Hub id.
        task: what it is to do, for the error.
        dtype: the precision of its weights; ``auto`` as they were saved.
        name: what the error calls it; by default ``source``.
        new_head: also load a model whose head is random.
        exported: also load an exported model.
        **options: for ``from_pretrained``.

    Raises:
        OSError: the model does not exist.
        ValueError: it cannot be loaded, or is not fine-tuned for the task: its head would be
            random.
    """
    name = name or repr(str(source))
    onnx = load_exported(source) if exported else None
    if onnx is not None:
        if not auto_model.endswith(onnx.kind):
            raise ValueError(f"{name} is an exported model …{onnx.kind}, which is not for {task}.")
        if dtype not in (torch.float32, "float32", "auto"):
            raise ValueError(
                f"{name} is an exported model, which computes in its own number format; leave out "
                f"dtype={dtype}."
            )
        return cast(PreTrainedModel, onnx)
    try:
        model, new = load_model(auto_model, source, dtype=dtype, **options)
    except UnusableSourceError as error:
        raise type(error)(f"{name} cannot be loaded: {error}") from error
    except OSError as error:
        raise OSError(not_found(f"{name} cannot be loaded", error)) from error
    except ValueError as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    if new and not new_head:
        raise ValueError(
            f"{name} is not fine-tuned for {task}: its weights lack {', '.join(new)}, "
            f"which would be random. Train it first (`hf-distill train --task {task} --baseline`), "
            "or choose another model."
        )
    return model.eval()


def load_teacher(
    source: nn.Module | str | os.PathLike[str],
    auto_model: str,
    task: str,
    *,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    device: torch.device | None = None,
    new_head: bool = False,
) -> nn.Module:
    """Return a teacher: a module as it is, or one loaded by Hub id or directory.

    Args:
        source: module, Hub id or local directory.
        auto_model: the name of the ``AutoModelFor…`` class.
        task: the student's task, for the error.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. By default as it was saved, and
            a module as it is; but float32 where it was saved in float16 and runs on a CPU, which
            is slow in float16 and cannot mix it with bfloat16 autocast.
        attn_implementation: as in ``from_pretrained``; the model's own choice by default.
        device: where it will run.
        new_head: also load one whose head was never trained.

    Raises:
        ValueError: it cannot be found, has another task, or its head has no trained weights.
    """
    if isinstance(source, nn.Module):
        module: Any = source
        while isinstance(module, nn.DataParallel | DistributedDataParallel):
            module = module.module  # it is placed where the student is
        if dtype not in (None, "auto"):
            module = module.to(getattr(torch, str(dtype)))
        if attn_implementation is not None:
            module.set_attn_implementation(attn_implementation)
        return module
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    name = os.fspath(source)
    try:
        model = load_fine_tuned(
            auto_model,
            name,
            task=task,
            dtype=dtype or "auto",
            name=f"teacher_model={name!r}",
            new_head=new_head,
            exported=False,
            **options,
        )
    except OSError as error:
        raise ValueError(str(error)) from error
    on_cpu = device is not None and device.type == "cpu"
    quantised = getattr(model, "is_quantized", False)
    convert = dtype is None and on_cpu and model.dtype == torch.float16 and not quantised
    return model.float() if convert else model


def not_found(what: str, error: Exception) -> str:
    """Return the message for a source that is neither here nor on the Hub."""
    return (
        f"{what}: it is neither a local model directory nor a Hub model that you can access. "
        f"({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
    )


def adapter_base(source: str) -> str | None:
    """Return the base model of a PEFT adapter; ``None`` for anything else."""
    file = find_file(source, "adapter_config.json")
    if file is None:
        return None
    base: str | None = json.loads(Path(file).read_text("utf-8")).get("base_model_name_or_path")
    return base


def find_file(source: str, name: str, **options: Any) -> str | None:
    """Return where a file of a folder or repository is on this machine; ``None`` without it.

    Args:
        source: a folder or a Hub id.
        name: the name of the file.
        **options: for ``cached_file``.
    """
    try:
        with hub_tried_once(source):
            path: str | None = cached_file(
                source,
                name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                **options,
            )
    except OSError:  # neither a folder nor a repository
        return None
    return path


def copy_processor(source: str, folder: Path) -> None:
    """Copy the settings by which images or sounds are prepared, if a model has any."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path := find_file(source, name)) is not None:
            shutil.copyfile(path, folder / name)


def _load_adapter(auto_model: str, source: str, base: str, **options: Any) -> Loaded:
    """Load a PEFT adapter merged into its base; what neither has is new."""
    if not is_peft_available():
        raise UnusableSourceError(
            f"{source} is a PEFT adapter of {base}. Install PEFT to load both (pip install peft), "
            "or name a folder with the merged model (merge_and_unload().save_pretrained)."
        )
    weights = find_file(source, "adapter_model.safetensors")
    if weights is None:
        raise UnsafeSourceError(
            f"{source} is a PEFT adapter without adapter_model.safetensors. Pickled weights can "
            "run code when they are read, so they are refused; save it with safetensors."
        )
    from peft import PeftModel

    model, new = load_model(auto_model, base, **options)
    try:
        adapted: Any = PeftModel.from_pretrained(model, source)
        with safe_open(weights, framework="pt") as file:
            saved = {name.removeprefix("base_model.model.") for name in file.keys()}  # noqa: SIM118
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise UnusableSourceError(
            f"The PEFT adapter {source} does not fit its base {base}: an adapter is saved without "
            "the number and the names of labels, for example. Load it in Python "
            "(AutoPeftModelFor….from_pretrained(source, num_labels=…)), set config.id2label, and "
            "name the folder that merge_and_unload().save_pretrained wrote."
        ) from error
    if not hasattr(adapted, "merge_and_unload"):
        raise UnusableSourceError(
            f"{source} is a PEFT adapter of a kind that cannot be merged into its base {base}, "
            "such as a trained prompt; choose an adapter of weights, such as LoRA."
        )
    # Not by `load_adapter` of transformers, which in older versions leaves the saved head out.
    merged: Any = adapted.merge_and_unload()
    return Loaded(merged, [name for name in new if name not in saved])


@contextmanager
def _code_refused(source: str) -> Iterator[None]:
    """Refuse code that comes with a model, where transformers asks on the terminal to run it."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UnsafeSourceError(
            f"{source} needs code of its own, which is never run here. If you trust it, load it "
            "yourself in Python (trust_remote_code=True) and pass the module; or choose a model "
            "that transformers knows."
        ) from None


@contextmanager
def _pickles_refused(source: str) -> Iterator[None]:
    """Refuse weights that are only there as a pickle.

    transformers would let a service convert those of a repository and take what that offers.
    """
    try:
        with temporarily_set(os.environ, DISABLE_SAFETENSORS_CONVERSION="1"):
            yield
    except OSError as error:
        if "model.safetensors" not in str(error):
            raise
        raise UnsafeSourceError(
            f"{source} has no model.safetensors. Weights in pickled files (pytorch_model.bin) can "
            "run code when they are read, so they are refused. If you trust them, convert them "
            "once: AutoModel….from_pretrained(source, use_safetensors=False)"
            ".save_pretrained(folder), and name that folder."
        ) from error


@contextmanager
def hub_tried_once(source: str | os.PathLike[str]) -> Iterator[None]:
    """Load from the Hub, or, if it does not answer, from what was downloaded before.

    Left to themselves, the libraries ask for each file six times in half a minute. Without an
    answer they are switched to ``HF_HUB_OFFLINE=1``.

    Args:
        source: a Hub id; a path that exists is not looked for on the Hub.
    """
    is_local = os.path.exists(os.path.expanduser(source))
    with ExitStack() as stack:
        if not (is_local or constants.HF_HUB_OFFLINE or _hub_answers()):
            # datasets has its own copy of the switch.
            for module in filter(None, [constants, sys.modules.get("datasets.config")]):
                stack.enter_context(temporarily_set(module, HF_HUB_OFFLINE=True))
        yield


def _hub_answers() -> bool:
    """Return whether the Hub answers, or did when it was asked in the last minute."""
    url, now = constants.ENDPOINT, time.monotonic()
    when, answered = _asked.get(url, (-math.inf, False))
    if now - when > _SECONDS_BEFORE_ASKING_AGAIN:
        try:
            get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            answered = True
        except (OSError, TRANSPORT_ERROR):
            answered = False
        _asked[url] = (time.monotonic(), answered)
    return answered
