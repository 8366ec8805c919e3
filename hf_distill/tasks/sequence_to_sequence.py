"""Texts with a target text each: summaries and translations, and how models write their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.tasks.columns import (
    SOURCES,
    TARGETS,
    checked_texts,
    find_column,
    is_text,
    rows_in_words,
)
from hf_distill.tasks.encoding import Encoded, encode_rows, input_length, truncations
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError

DEFAULT_TARGET_LENGTH = 128


def text_pairs(
    table: Dataset,
    *,
    text_column: str | None = None,
    target_column: str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> Dataset:
    """Pick the columns of texts and their targets.

    Args:
        table: any table.
        text_column: where the text is; guessed by default. For translations as on the Hub the
            column of objects with a text for each language (``translation``).
        target_column: where the target is; guessed by default.
        source_lang: the language to translate from, a key of those objects or a column.
        target_lang: the language to translate into.

    Returns:
        The same rows, with the columns ``text`` and ``target``.

    Raises:
        TaskDataError: a column or language cannot be found or does not hold texts, all texts are
            empty, or a target is.
    """
    nested = text_column or "translation"
    if nested in table.column_names and isinstance(table.features[nested], Mapping):
        table = _from_objects(table, nested, source_lang, target_lang)
        text_column, target_column = "text", "target"
    names = table.column_names
    if text_column is None and source_lang in names:
        text_column = source_lang
    if target_column is None and target_lang in names:
        target_column = target_lang
    target = find_column(
        table, "target_column", target_column, TARGETS, "the target", error=MissingLabelsError
    )
    text = find_column(table, "text_column", text_column, SOURCES, "the text", taken=[target])
    checked_texts(table, text, "text_column")
    if is_text(table.features[target]):
        missing = [row for row, one in enumerate(table[target]) if not (one or "").strip()]
        if missing:
            raise MissingLabelsError(
                f"{rows_in_words(missing)} nothing or an empty target in the column {target!r}; "
                "remove the row."
            )
    checked_texts(table, target, "target_column")
    renamed = {old: new for old, new in {text: "text", target: "target"}.items() if old != new}
    return table.select_columns([text, target]).rename_columns(renamed)


def source_texts(
    table: Dataset, *, text_column: str | None = None, source_lang: str | None = None
) -> Dataset:
    """Pick the column of texts to write something for, without targets: ``text``.

    Args:
        table: any table.
        text_column: as for ``text_pairs``.
        source_lang: as for ``text_pairs``.

    Raises:
        TaskDataError: it cannot be found or does not hold texts, or all texts are empty.
    """
    nested = text_column or "translation"
    if nested in table.column_names and isinstance(table.features[nested], Mapping):
        texts = _of_language(table, nested, "source_lang", source_lang)
        return Dataset.from_dict({"text": texts})
    if text_column is None and source_lang in table.column_names:
        text_column = source_lang
    named = [name for name, feature in table.features.items() if is_text(feature)]
    usual = tuple(named) if len(named) == 1 else SOURCES
    text = find_column(table, "text_column", text_column, usual, "the text")
    checked_texts(table, text, "text_column")
    return Dataset.from_dict({"text": list(table[text])})


def encode_pairs(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    prefix: str = "",
    max_length: int | None = None,
    max_target_length: int | None = None,
    num_proc: int | None = None,
) -> Encoded:
    """Turn texts and targets into the inputs of a model.

    Args:
        rows: as from ``text_pairs``.
        tokenizer: a fast one; for multilingual ones ``src_lang`` and ``tgt_lang`` are set.
        model: says how long inputs may be.
        prefix: what the model expects before each text, such as ``"summarize: "`` for T5.
        max_length: most tokens of a text; what is longer is cut. By default 256, or fewer if the
            model takes fewer.
        max_target_length: the same for targets; by default 128.
        num_proc: processes that do it.

    Returns:
        One row a text: what the tokenizer gives, and ``labels``, the tokens of the target. Not
        padded. ``truncated`` counts rows of which text or target was cut.

    Raises:
        ValueError: the model takes fewer than ``max_length`` tokens.
    """
    length = input_length(max_length, tokenizer, model)
    target_length = DEFAULT_TARGET_LENGTH if max_target_length is None else max_target_length
    if target_length < 1:
        raise ValueError(f"--max_target_length {max_target_length} must be at least 1.")

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [prefix + text for text in batch["text"]]
        encoding = tokenizer(texts, truncation=True, max_length=length)
        targets = tokenizer(text_target=batch["target"], truncation=True, max_length=target_length)
        cut = zip(truncations(encoding), truncations(targets), strict=True)
        return {
            **encoding,
            "labels": targets["input_ids"],
            "truncated": [text or target for text, target in cut],
        }

    return encode_rows(rows, encode, num_proc, "Tokenising")


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 16,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
) -> list[str]:
    """Let a sequence-to-sequence model write.

    Without sampling; everything else is as the model's own generation configuration says.

    Args:
        model: the model, in evaluation mode, on its device.
        tokenizer: its tokenizer.
        inputs: rows with ``input_ids`` and ``attention_mask``.
        batch_size: texts at a time.
        num_beams: beams; 1 is greedy search. By default the model's own number.
        max_new_tokens: most tokens to write. By default the model's own limit, or 128 if it has
            none.

    Returns:
        A text for each row, without special tokens.
    """
    options: dict[str, Any] = {"do_sample": False}
    if num_beams is not None:
        options["num_beams"] = num_beams
    own = model.generation_config
    if max_new_tokens is None and getattr(own, "max_new_tokens", None) is None:
        # 20 is what transformers says where nobody chose.
        chosen = getattr(own, "max_length", None) not in (None, 20)
        max_new_tokens = None if chosen else DEFAULT_TARGET_LENGTH
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    language = getattr(tokenizer, "tgt_lang", None)
    if language and getattr(own, "forced_bos_token_id", None) is None:
        options["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(language)
    # The longest first: texts of like length waste no padding, and too big a batch fails at once.
    order = sorted(range(len(inputs)), key=lambda place: -len(inputs[place]["input_ids"]))
    texts = [""] * len(inputs)
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        rows = [
            {name: inputs[place][name] for name in ("input_ids", "attention_mask")}
            for place in places
        ]
        batch = tokenizer.pad(rows, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            generator: Any = model
            written = generator.generate(**batch, **options)
        decoded = tokenizer.batch_decode(written, skip_special_tokens=True)
        for place, text in zip(places, decoded, strict=True):
            texts[place] = text.strip()
    return texts


def set_languages(
    tokenizer: PreTrainedTokenizerBase, source_lang: str | None, target_lang: str | None
) -> None:
    """Tell a multilingual tokenizer (mBART, NLLB, M2M100 …) which languages it is to mark."""
    for name, language in (("src_lang", source_lang), ("tgt_lang", target_lang)):
        if language is not None and hasattr(tokenizer, name):
            setattr(tokenizer, name, language)


def _from_objects(
    table: Dataset, column: str, source_lang: str | None, target_lang: str | None
) -> Dataset:
    return Dataset.from_dict(
        {
            "text": _of_language(table, column, "source_lang", source_lang),
            "target": _of_language(table, column, "target_lang", target_lang),
        }
    )


def _of_language(table: Dataset, column: str, option: str, language: str | None) -> list[Any]:
    languages = list(table.features[column])
    # Multilingual tokenizers say `en_XX` where data says `en`.
    keys = [key for key in (language, str(language).partition("_")[0]) if key in languages]
    if not keys:
        raise TaskDataError(
            f"{option}={language!r} is not among the languages of the column {column!r}: "
            f"{', '.join(languages)}; choose one of them."
        )
    return [pair[keys[0]] for pair in table[column]]
