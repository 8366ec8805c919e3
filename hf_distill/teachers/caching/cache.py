"""``cache_teacher_outputs``: the teacher runs once over the data, and never again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from datasets import ClassLabel, Dataset, Value
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from hf_distill._version import versions
from hf_distill.alignment import INPUTS, Alignment, TeacherBatches
from hf_distill.compatibility import head_of
from hf_distill.compatibility.tokenizers import saved_tokenizer, tokenizer_hash, tokenizer_of
from hf_distill.compatibility.two_tokenizers import choose_alignment
from hf_distill.files import in_use
from hf_distill.heads import TaskHead
from hf_distill.launch import check_processes
from hf_distill.teachers import EnsembleTeacher, OneProcess, Teacher, create_live_teacher
from hf_distill.teachers.base import MIXED_PRECISIONS
from hf_distill.teachers.caching.computing import PartComputer
from hf_distill.teachers.caching.fingerprints import row_lengths
from hf_distill.teachers.caching.folder import (
    FORMAT,
    LOCK,
    MANIFEST,
    TOKENIZER,
    CacheFolder,
    changes,
    describe_data,
)
from hf_distill.teachers.caching.parts import part_starts
from hf_distill.teachers.columns import DTYPES, SignalDescription
from hf_distill.teachers.columns.description import SIGNAL_COLUMNS

_BUSY = (
    "output_dir {}: another process is computing teacher outputs in this folder; wait for it, or "
    "name another folder."
)
_POLL_SECONDS = 0.2
_LABELS = ("label", "label_ids", "labels")
_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def cache_teacher_outputs(
    teacher: nn.Module | str | os.PathLike[str] | Sequence[Any],
    dataset: Dataset,
    *,
    task: str | None = None,
    processing_class: Any = None,
    teacher_processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    dtype: str = "float16",
    top_k: int | None = None,
    hidden_layers: Sequence[int] = (),
    batch_size: int = 32,
    teacher_weights: Sequence[float] | None = None,
    teacher_combination: str = "probabilities",
    teacher_dtype: str | None = None,
    teacher_attn_implementation: str | None = None,
    mixed_precision: str = "no",
    use_cpu: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
) -> Dataset:
    """Run a teacher over a data set once, and keep its outputs as columns.

    ``DistillationTrainer(teacher_model=None, train_dataset=…)`` then learns from the columns. A row
    keeps its own through ``select``, ``shuffle``, ``filter``, ``save_to_disk`` and ``push_to_hub``,
    and a checksum in each row tells whether they belong to the input that a data collator makes of
    it. Only what the loss uses is stored, without padding; in bytes, with ``float16``,

    - question answering: 4 per token (start and end);
    - classification of texts, images, sounds: 2 per label;
    - token classification: 2 per label and token that counts;
    - language models: 2 per token that counts and entry of the vocabulary, or 4 to 6 per token and
      ``top_k``, and 2 for the rest;

    and 8 per row for checksum and length. Hidden states take 2 bytes per token, layer and unit.

    The work is done in parts, of which each is written whole or not at all; the same call resumes
    an earlier one that was interrupted, with the same result. Under ``accelerate launch`` the
    processes share the parts. A finished cache is checked and returned at once.

    Args:
        teacher: a fine-tuned model: a module, or the Hub id or directory of one. Several are
            averaged; see ``EnsembleTeacher``.
        dataset: the data as it will be trained on: tokenised, in any order.
        task: as the Hub calls it (``question-answering``, …); by default what the teacher was made
            for.
        processing_class: the tokenizer (or processor) that the data was prepared with; by default
            the teacher's.
        teacher_processing_class: the teacher's tokenizer, if it is not the one of
            ``processing_class``. The data then has both encodings, as for ``DistillationTrainer``.
        data_collator: the one that will be trained with; by default ``Trainer``'s default. It must
            make the same of a row each time; one that masks tokens at random is refused.
        output_dir: where the outputs are kept; by default a folder of the ``datasets`` cache,
            named by everything that they depend on.
        dtype: how numbers are stored: ``float16`` (a relative error of up to 1/2,048),
            ``bfloat16`` (1/256, and any size) or ``float32`` (as they were computed).
        top_k: for large vocabularies, store only so many of the largest logits of a token, and
            what all others add up to, which is later shared out evenly among them. The
            probabilities of the stored classes are exact at temperature 1.
        hidden_layers: also store the hidden states of these layers (0 is the embedding output),
            for stage ``intermediate`` without an attention loss.
        batch_size: rows at a time, of about the same length.
        teacher_weights: of several teachers, one each.
        teacher_combination: of several teachers, ``probabilities`` or ``logits``.
        teacher_dtype: number format of the teacher's weights, as in
            ``DistillationTrainingArguments``.
        teacher_attn_implementation: as in ``from_pretrained``.
        mixed_precision: ``no``, ``bf16`` or ``fp16``: autocast, as a live teacher has it in a run
            with ``--bf16`` or ``--fp16``.
        use_cpu: leave an accelerator unused.
        preprocessing: what the data was prepared with (``max_length``, ``doc_stride``, …), to be
            written into the manifest and compared with it, so that a change is called by its name.

    Returns:
        ``dataset`` with the columns ``teacher_logits`` and ``teacher_checksum`` (and
        ``teacher_token_ids``, ``teacher_rest``, ``teacher_hidden_states``), memory-mapped.

    Raises:
        ValueError: the teacher, the data or an option cannot be used; the folder holds outputs of
            another teacher, other data or other options (the message says what changed), or
            another process is computing in it.
        OSError: the disk is full.
    """
    _check_options(dataset, dtype=dtype, top_k=top_k, batch_size=batch_size)
    if mixed_precision not in MIXED_PRECISIONS:
        raise ValueError(
            f"mixed_precision must be one of {', '.join(MIXED_PRECISIONS)}, but it is "
            f"{mixed_precision!r}."
        )
    if output_dir is not None and Path(output_dir).expanduser().is_file():
        raise ValueError(f"output_dir {Path(output_dir).name} is a file; name a folder.")
    sources: list[Any] = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if hidden_layers and len(sources) > 1:
        raise ValueError(
            "hidden_layers: the hidden states of several teachers cannot be averaged; take one."
        )
    state = PartialState(cpu=use_cpu)
    check_processes(state.num_processes)
    heads = [head_of(sources[0], task, "teacher") for _ in sources]
    alignment = choose_alignment(nn.Module(), heads[0], processing_class, teacher_processing_class)
    alignment.check_data(dataset)
    read_by = teacher_processing_class if alignment.two_encodings else processing_class
    live = create_live_teacher(
        sources,
        heads,
        None,
        read_by,
        alignment=alignment,
        dtype=teacher_dtype,
        attn_implementation=teacher_attn_implementation,
        device=state.device,
        weights=teacher_weights,
        combination=teacher_combination,
    )
    if processing_class is None:
        processing_class = read_by = tokenizer_of(live.members[0].model)
    given, used = _columns(dataset, live, heads[0], alignment)
    inputs = dataset.select_columns(given)
    collator = data_collator or _default_collator(processing_class)
    if alignment.two_encodings:
        collator = TeacherBatches(collator, teacher_processing_class, alignment)
    computer = PartComputer(
        live,
        heads[0],
        OneProcess(state.device, mixed_precision),
        inputs,
        collator,
        dtype=dtype,
        top_k=top_k,
        hidden_layers=hidden_layers,
        batch_size=batch_size,
        own_tokens=alignment.uses_own_tokens_only,
    )
    computer.check_collator()
    hashes = [str(one.weights) for one in live.identities]
    mixture: dict[str, Any] = {}
    weights = hashes[0]
    if isinstance(live, EnsembleTeacher):
        mixture = {"shares": live.shares, "combination": teacher_combination}
        weights = sha256(repr((hashes, sorted(mixture.items()))).encode()).hexdigest()
    description = computer.describe(weights, tokenizer_hash(read_by))
    computer.check_padding()
    labels = []
    if description.by_position:  # the loss looks where labels are not -100
        labels = [
            name
            for name in inputs.column_names
            if name in _LABELS
            and name not in used
            and not isinstance(inputs.features[name], Value | ClassLabel)
        ]
    manifest = {
        "format": FORMAT,
        "signal": {**asdict(description), "hidden_layers": list(description.hidden_layers)},
        "teachers": {
            "names": [one.name for one in live.identities],
            "weights_sha256": hashes,
            **mixture,
        },
        "data": describe_data(dataset.select_columns([*used, *labels]), labels),
        "parts": part_starts(row_lengths(inputs), _bytes_per_token(description)),
        "computation": {
            "mixed_precision": mixed_precision,
            "attn_implementation": teacher_attn_implementation,
            "device": state.device.type,
        },
        "data_collator": {"inputs": computer.probe()},
        "batch_size": batch_size,
        "preprocessing": dict(preprocessing or {}),
        "versions": versions(),
    }
    if output_dir is None:
        key = CacheFolder(Path(), manifest).key
        output_dir = Path(datasets.config.HF_DATASETS_CACHE) / "teacher_outputs" / key[:32]
    folder = CacheFolder(Path(output_dir).expanduser(), manifest)
    with ExitStack() as stack:
        if state.is_main_process and not folder.is_finished():
            if not (folder.path / MANIFEST).exists():
                _check_place(folder)
            stack.enter_context(in_use(folder.path / LOCK, _BUSY.format(folder.path.name)))
            folder.begin()
            if alignment.two_encodings:
                teacher_processing_class.save_pretrained(folder.path / TOKENIZER)
        state.wait_for_everyone()
        folder = CacheFolder.open(folder.path) or folder
        missing = folder.files.missing()
        # All look before any adds a file: they share out the same list.
        state.wait_for_everyone()
        computer.compute(
            missing[state.process_index :: state.num_processes],
            folder.files,
            description,
            show_progress=state.is_main_process,
        )
        # Not a barrier of the process group alone: that gives up after half an hour.
        while any(folder.files.find(part) is None for part in missing):
            time.sleep(_POLL_SECONDS)
        state.wait_for_everyone()
    return folder.join(dataset)


def load_teacher_outputs(
    dataset: Dataset,
    output_dir: str | os.PathLike[str],
    *,
    preprocessing: Mapping[str, Any] | None = None,
) -> Dataset:
    """Return a data set with the outputs that ``cache_teacher_outputs`` computed for it before.

    The teacher is not needed. Every file is compared with its checksum, and the data set with the
    one that the outputs were computed for.

    Args:
        dataset: the data, as it was then.
        output_dir: the folder.
        preprocessing: as for ``cache_teacher_outputs``, to say what changed if something did.

    Returns:
        ``dataset`` with the teacher columns.

    Raises:
        ValueError: there is no (finished) cache in the folder, it is of other data, or a file is
            damaged.
    """
    folder = CacheFolder.open_finished(Path(output_dir).expanduser())
    before, prepared = folder.manifest["data"], folder.manifest["preprocessing"]
    missing = [name for name in before["columns"] if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The teacher outputs in {folder.path.name} were computed from the column "
            f"{missing[0]!r}, which the data lacks (it has: {', '.join(dataset.column_names)})."
        )
    now = describe_data(dataset.select_columns(before["columns"]), before["positions_of"])
    if before != now:
        found = changes(
            {"data": before, "preprocessing": prepared},
            {"data": now, "preprocessing": prepared if preprocessing is None else preprocessing},
        )
        raise ValueError(
            f"The teacher outputs in {folder.path.name} are of other data: {'; '.join(found)}. "
            "Cache them again, into another folder."
        )
    return folder.join(dataset)


def cached_teacher(output_dir: str | os.PathLike[str]) -> SignalDescription:
    """Describe the teacher whose outputs are in a folder.

    Raises:
        ValueError: there are none.
    """
    return CacheFolder.open_finished(Path(output_dir).expanduser()).description


def teacher_tokenizer(output_dir: str | os.PathLike[str]) -> PreTrainedTokenizerBase | None:
    """Return the teacher's tokenizer, if outputs are stored for data of another one."""
    return saved_tokenizer(str(Path(output_dir).expanduser() / TOKENIZER))


def _check_options(dataset: Any, *, dtype: str, top_k: int | None, batch_size: int) -> None:
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}; caching needs a datasets.Dataset, whose rows "
            "can be asked for twice (Dataset.from_generator makes one of a stream)."
        )
    if len(dataset) == 0:
        raise ValueError("dataset is empty: it has no rows.")
    there = [name for name in dataset.column_names if name in SIGNAL_COLUMNS]
    if there:
        raise ValueError(
            f"dataset has a column {there[0]!r} already; take the data without teacher columns "
            "(remove_columns)."
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but it is {dtype!r}.")
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be at least 1, but it is {value!r}.")


def _columns(
    dataset: Dataset, teacher: Teacher, head: TaskHead, alignment: Alignment
) -> tuple[list[str], list[str]]:
    """Return the columns for the data collator, and those that the outputs are computed from.

    All columns where a collator or a transform prepares the inputs. The values of labels do not
    matter, unless they are a target that the teacher reads.
    """
    names = teacher.input_names | set(head.target_names)
    there = dataset.column_names
    if alignment.two_encodings:
        both = {*INPUTS, *head.label_names, *_LABELS, *alignment.columns}
        given = there if dataset.format["type"] == "custom" else [n for n in there if n in both]
        return given, [name for name in there if name in alignment.columns]
    if dataset.format["type"] == "custom" or not teacher.input_names & set(there):
        return there, there
    used = [name for name in there if name in names]
    return [name for name in there if name in (*used, *_LABELS)], used


def _default_collator(processing_class: Any) -> Callable[[list[Any]], Any]:
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return DataCollatorWithPadding(processing_class)
    return default_data_collator


def _bytes_per_token(description: SignalDescription) -> int:
    size = _ITEM_BYTES[description.dtype]
    stored = description.stored * size
    if description.top_k is not None:
        stored += description.stored * 4 + size
    return stored + len(description.hidden_layers) * description.hidden_width * size


def _check_place(folder: CacheFolder) -> None:
    """Check that a new cache has a folder for itself, and room."""
    name, description, data = folder.path.name, folder.description, folder.manifest["data"]
    if folder.unknown_files():
        raise ValueError(
            f"output_dir {name} holds other files and no {MANIFEST}; name a new folder."
        )
    by_token = description.by_position or description.hidden_layers
    needed = (data["tokens"] if by_token else data["rows"]) * _bytes_per_token(description)
    there = folder.path.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        remedy = "set top_k, " if description.top_k is None and description.classes > 1000 else ""
        raise OSError(
            f"The teacher's outputs need up to {_size(needed)}, and there are {_size(free)} free "
            f"for {name}; {remedy}take fewer rows or another output_dir."
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
