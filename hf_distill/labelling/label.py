"""Labels of texts by a language model, as a column of probabilities to train a student from."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Features, Value, concatenate_datasets
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_distill._version import versions
from hf_distill.augmentation.tables import check_rows
from hf_distill.compatibility import input_limit
from hf_distill.compatibility.tokenizers import tokenizer_hash, tokenizer_of
from hf_distill.console import log_rank_0
from hf_distill.files import json_hash
from hf_distill.heads import head_of_class, unwrapped
from hf_distill.labelling.output import (
    check_output_path,
    date_of,
    finished,
    parts_path,
    write_labelled,
)
from hf_distill.labelling.prompts import EncodedRow, Prompt, default_prompt
from hf_distill.labelling.scoring import WordScorer, calibrated, label_probabilities
from hf_distill.labelling.words import LabelWords, check_label_words
from hf_distill.labelling.work import Work
from hf_distill.launch import check_processes
from hf_distill.loading import fewest_tokens, load_teacher, read_config
from hf_distill.restoring import evaluating
from hf_distill.tasks.columns import checked_texts, is_text
from hf_distill.tasks.tables import load_table
from hf_distill.teachers.caching.fingerprints import data_hash
from hf_distill.teachers.identity import TeacherIdentity, identify

CONTENT_FREE = ["N/A", "", "[MASK]"]
"""The texts without content of Zhao et al. 2021, section 5, over which they average."""
_COLUMN = "probabilities"
_TASK = "text-generation"
_ROLES = ("text", "text_pair")
_FORMAT = 1


class Labelled(NamedTuple):
    """A data set with a column of probabilities, and how they were made."""

    dataset: Dataset
    manifest: dict[str, Any]
    """Teacher, prompt, words, calibration and data; ``cut`` is the number of rows with a text that
    was too long."""


def label_dataset(
    dataset: Dataset,
    teacher_model: nn.Module | str | os.PathLike[str],
    label_words: LabelWords,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    text_columns: Sequence[str] = ("text",),
    prompt: str | None = None,
    chat: bool | None = None,
    calibrate: bool = False,
    output_column: str = _COLUMN,
    output_path: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    batch_size: int = 8,
    teacher_dtype: str | None = None,
    use_cpu: bool = False,
) -> Labelled:
    """Let a causal language model label texts, and store how probable it finds each label.

    A word is scored by the log-probability of all its tokens after the prompt, a label by its
    words: ``p(label) = softmax_labels(logsumexp_words(Σ_tokens log p))``. With ``calibrate``
    these are divided by what the model answers to prompts without a text ("N/A", "", "[MASK]",
    averaged) and normalised (contextual calibration, Zhao et al. 2021, "Calibrate Before Use",
    section 5), which takes away the model's liking for some words.

    Args:
        dataset: the texts; other columns are kept.
        teacher_model: the language model: a module, a folder or a Hub id.
        label_words: the words of each label, such as ``{"positive": ["good", "great"],
            "negative": ["bad"]}``, without a space in front.
        processing_class: a fast tokenizer; by default that of the teacher.
        text_columns: the column of the texts, or the two columns of pairs.
        prompt: a template in which ``{name}`` stands for the text of a column; ``{text}`` and
            ``{text_pair}`` also name the first and second of ``text_columns``. The words follow its
            end. By default the texts, and a question that lists the first word of each label.
        chat: write the prompt as a user's message by the tokenizer's chat template. By default if
            it has one.
        calibrate: calibrate by prompts without a text.
        output_column: the name of the new column: in each row an object of label to probability,
            in float64, which add up to 1.
        output_path: a ``.jsonl`` (also ``.jsonl.gz``) or ``.parquet`` file to write. It appears
            when it is whole; next to it the manifest, ``NAME.manifest.json``. An interrupted run
            leaves its parts in the folder ``.NAME.parts`` there, and the same call resumes it. Of
            a finished file the probabilities are kept, and other columns that have changed are
            written again. By default nothing is kept.
        max_length: the most tokens of a prompt with a word; of longer ones the text is cut. By
            default what the model takes.
        batch_size: rows at a time, of similar length.
        teacher_dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; by default as saved.
        use_cpu: leave an accelerator unused.

    Returns:
        The data with the new column, and the manifest.

    Raises:
        ValueError: the data, an option, the words, the prompt or the model cannot be used, or
            ``output_path`` is of another run; the message says what changed.
        OSError: the disk is full; the parts before are kept.
    """
    words = check_label_words(label_words)
    _check_options(dataset, output_column, batch_size)
    dataset = dataset.with_format(None)
    target = None if output_path is None else Path(output_path).expanduser()
    if target is not None:
        check_output_path(target)
        check_rows(dataset, target)
    fields = _fields(dataset, text_columns)
    state = PartialState(cpu=use_cpu)
    check_processes(state.num_processes)
    if target is None and state.num_processes > 1:
        raise ValueError("output_path is missing: several processes meet in a file.")
    dates = [date_of(target)]
    if state.num_processes > 1:
        broadcast_object_list(dates)
    model = _load(teacher_model, teacher_dtype, state.device)
    tokenizer = processing_class or tokenizer_of(model)
    if tokenizer is None:
        raise ValueError(
            "processing_class is missing: there is no tokenizer next to the teacher; pass its own."
        )
    chat = bool(tokenizer.chat_template) if chat is None else chat
    if prompt is None:
        first = [some[0] for some in words.values()]
        prompt = default_prompt(first, _ROLES[: len(text_columns)], chat=chat)
    writer = Prompt(
        prompt,
        fields,
        [word for some in words.values() for word in some],
        tokenizer,
        chat=chat,
        max_length=_longest(model, tokenizer, max_length),
        date=dates[0],
    )
    for column in writer.columns:
        checked_texts(dataset, column, "prompt")
        _check_plain(dataset, column, tokenizer)
    content_free = [writer.encode(dict.fromkeys(writer.columns, text)) for text in CONTENT_FREE]
    _check_endings(words, content_free[0])
    manifest = {
        "format": _FORMAT,
        "teacher": _describe(identify(teacher_model, model), model, tokenizer),
        "prompt": writer.identity,
        "label_words": words,
        "labels": list(words),
        "data": {
            "rows": len(dataset),
            "columns": writer.columns,
            "sha256": data_hash(dataset.select_columns(sorted(writer.columns))),
        },
        "calibrate": calibrate,
        "column": output_column,
        "batch_size": batch_size,
        "versions": versions(),
        "table_sha256": json_hash([str(dataset.features), data_hash(dataset)]),
    }
    if target is not None and (before := finished(target, manifest)):
        column = load_table(target).select_columns([output_column])
        labelled = Labelled(concatenate_datasets([dataset, column], axis=1), before)
        state.wait_for_everyone()
        if before.get("table_sha256") != manifest["table_sha256"]:
            log_rank_0(f"Other columns have changed, and {target.name} is written again.")
            before["table_sha256"] = manifest["table_sha256"]
            if state.is_main_process:
                write_labelled(target, *labelled)
            state.wait_for_everyone()
        return labelled
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        if target is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = parts_path(target)
        work = Work(folder, manifest, len(content_free[0].endings))
        if state.is_main_process:
            work.prepare(stack)
        scorer = WordScorer(model, batch_size)
        scorer.check(content_free)
        work.compute(dataset, writer, scorer, state)
        scores, manifest["cut"] = work.read()
        places = np.cumsum([0, *map(len, words.values())]).tolist()
        words_of = [range(*pair) for pair in pairwise(places)]
        found = label_probabilities(scores, words_of)
        if calibrate:
            free = label_probabilities(scorer.scores(content_free), words_of).mean(dim=0)
            found = calibrated(found, free)
            named = dict(zip(words, free.tolist(), strict=True))
            manifest["calibration"] = {"texts": CONTENT_FREE, "probabilities": named}
        labelled = Labelled(_with_column(dataset, output_column, list(words), found), manifest)
        if target is not None and state.is_main_process:
            write_labelled(target, *labelled)
        state.wait_for_everyone()
    return labelled


def _check_options(dataset: Any, output_column: str, batch_size: int) -> None:
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}; pass one datasets.Dataset, such as the "
            "training split (Dataset.from_generator makes one of a stream)."
        )
    if len(dataset) == 0:
        raise ValueError("dataset is empty: it has no rows.")
    if output_column in dataset.column_names:
        raise ValueError(
            f"output_column={output_column!r}: the data has that column already; name another one."
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but it is {batch_size!r}.")


def _fields(dataset: Dataset, text_columns: Sequence[str]) -> dict[str, str]:
    """Return the columns that a prompt may show, by the names of fields; roles come first.

    Raises:
        ValueError: ``text_columns`` are not one or two columns of texts.
    """
    if isinstance(text_columns, str) or not 1 <= len(text_columns) <= len(_ROLES):
        raise ValueError(
            f"text_columns={text_columns!r} must be a list of one column, or of two for pairs."
        )
    for column in text_columns:
        if column not in dataset.column_names:
            raise ValueError(
                f"text_columns: the data has no column {column!r}; it has "
                f"{', '.join(dataset.column_names)}."
            )
        checked_texts(dataset, column, "text_columns")
    texts = [name for name, feature in dataset.features.items() if is_text(feature)]
    roles = dict(zip(_ROLES, text_columns, strict=False))
    return {**roles, **{name: name for name in texts if name not in roles}}


def _check_plain(dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that no text has a special token written out, which would end it for the model.

    Raises:
        ValueError: names the first row and the token.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    written = re.compile(
        "|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)"
    )
    for row, text in enumerate(dataset[column]):
        if found := written.search(text):
            raise ValueError(
                f"Row {row} of the column {column!r} has {found[0]!r} in its text, which the "
                "teacher's tokenizer reads as a special token, such as the end of the text. "
                "Remove it from the text, or the row from the data."
            )


def _load(
    source: nn.Module | str | os.PathLike[str], dtype: str | None, device: torch.device
) -> nn.Module:
    """Load a causal language model onto a device."""
    if isinstance(source, nn.Module):
        name, config = type(unwrapped(source)).__name__, getattr(source, "config", None)
    else:
        config = read_config(os.fspath(source), "teacher_model")
        name = (config.architectures or [type(config).__name__])[0]
    head = None if config is None else head_of_class(name, config)
    if head is None or head.task != _TASK:
        raise ValueError(
            f"teacher_model is a {name}, which does not write a text token by token; take a causal "
            "language model (…ForCausalLM)."
        )
    model: Any = load_teacher(source, head.auto_model, _TASK, dtype=dtype, device=device)
    return model if model.device.type == device.type else model.to(device)


def _longest(model: nn.Module, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    most = fewest_tokens(input_limit(model), tokenizer.model_max_length)
    if wanted is None:
        return most or 10**9
    if wanted < 2 or (most is not None and wanted > most):
        upper = "" if most is None else f" and at most the {most} tokens that the teacher takes"
        raise ValueError(f"max_length={wanted} must be at least 2{upper}.")
    return wanted


def _check_endings(label_words: LabelWords, row: EncodedRow) -> None:
    """Check that words have different tokens, and none begins another one."""
    owned = [(label, word) for label, words in label_words.items() for word in words]
    words = sorted(zip(row.endings, owned, strict=True), key=lambda one: len(one[0]))
    for (tokens, (owner, other)), (longer, (label, word)) in combinations(words, 2):
        if tokens == longer:
            raise ValueError(
                f"label_words: the tokenizer gives {other!r} ({owner}) and {word!r} ({label}) "
                "the same tokens, so the teacher cannot tell them apart; choose another word."
            )
        if longer[: len(tokens)] == tokens:
            raise ValueError(
                f"label_words: the tokens of {other!r} ({owner}) begin those of {word!r} "
                f"({label}), whose probability is a part of its own; choose another word."
            )


def _describe(
    identity: TeacherIdentity, model: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {
        "name": identity.name,
        "revision": identity.revision,
        "weights_sha256": identity.weights,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
    }


def _with_column(
    dataset: Dataset, name: str, labels: Sequence[str], probabilities: Tensor
) -> Dataset:
    features = Features({name: {label: Value("float64") for label in labels}})
    rows = [dict(zip(labels, row, strict=True)) for row in probabilities.tolist()]
    column = Dataset.from_dict({name: rows}, features=features)
    return concatenate_datasets([dataset, column], axis=1)
