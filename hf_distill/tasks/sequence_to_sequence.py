"""Texts with a target text each: summaries and translations, and how models write their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from hf_distill.tasks.base import Measures, Scorer, Task
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
from hf_distill.tasks.forward import Rows
from hf_distill.tasks.metrics import (
    perplexity_scores,
    rouge_of_each,
    rouge_scores,
    token_scores,
    translation_scores,
)
from hf_distill.tasks.resampling import Resampler, resample_bleu, resample_means
from hf_distill.tasks.tables import load_table

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


class _SequenceToSequenceTask(Task):
    """What summaries and translations have in common."""

    auto_model = "AutoModelForSeq2SeqLM"
    measures: Measures
    limit = "--max_length, --max_target_length"
    reads_targets = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        if options.num_beams is not None and options.num_beams < 1:
            raise ValueError(f"--num_beams {options.num_beams} must be at least 1.")

    def score_texts(self, written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """The metrics of written texts, in percent."""
        raise NotImplementedError

    def resampler(self, written: Sequence[str], references: Sequence[str]) -> Resampler:
        """Resample the metrics of written texts, as far as they have one."""
        raise NotImplementedError

    def load_data(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load texts and targets."""
        table = load_table(source, split=split, config_name=config_name, revision=revision)
        return text_pairs(
            table,
            text_column=self.options.text_column,
            target_column=self.options.target_column,
            source_lang=self.options.source_lang,
            target_lang=self.options.target_lang,
        )

    def load_unlabelled(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load texts."""
        table = load_table(source, split=split, config_name=config_name, revision=revision)
        return source_texts(
            table, text_column=self.options.text_column, source_lang=self.options.source_lang
        )

    def features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        training: bool,
        num_proc: int | None,
    ) -> Encoded:
        """One row a text and its target."""
        set_languages(tokenizer, self.options.source_lang, self.options.target_lang)
        length = self.options.max_length
        return encode_pairs(
            examples,
            tokenizer,
            model,
            prefix=self.options.source_prefix,
            max_length=length,
            max_target_length=self.options.max_target_length,
            num_proc=num_proc,
        )

    def data_collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> Callable[..., Any]:
        """Pads texts and targets, and makes the decoder's inputs of the targets."""
        return DataCollatorForSeq2Seq(tokenizer, model=model)

    def scorer(
        self,
        examples: Dataset,
        features: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
    ) -> SequenceToSequenceScorer:
        """ROUGE, or BLEU and chrF."""
        return SequenceToSequenceScorer(self, examples, features, tokenizer)

    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """Texts in, texts out."""
        length = input_length(self.options.max_length, tokenizer, model)
        set_languages(tokenizer, self.options.source_lang, self.options.target_lang)

        def predict(examples: Rows) -> object:
            texts = [self.options.source_prefix + row["text"] for row in examples]
            encoding = tokenizer(texts, truncation=True, max_length=length)
            rows = [
                {"input_ids": ids, "attention_mask": mask}
                for ids, mask in zip(encoding["input_ids"], encoding["attention_mask"], strict=True)
            ]
            return self.write(model, tokenizer, rows, batch_size)

        return predict

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Mapping[str, Any]],
        batch_size: int,
    ) -> list[str]:
        """What the model writes for some inputs."""
        return generate_texts(
            model,
            tokenizer,
            rows,
            batch_size=batch_size,
            num_beams=self.options.num_beams,
            max_new_tokens=self.options.max_target_length,
        )


class SummarizationTask(_SequenceToSequenceTask):
    """Texts in, summaries out."""

    name = "summarization"
    timed = "text to summary"
    measures = Measures(
        {"rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2"},
        {"rougeL": "ROUGE-L with the teacher's text", "identical": "same text as the teacher"},
    )

    def score_texts(self, written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """ROUGE."""
        return rouge_scores(written, references)

    def resampler(self, written: Sequence[str], references: Sequence[str]) -> Resampler:
        """ROUGE."""
        return resample_means(rouge_of_each(written, references))


class TranslationTask(_SequenceToSequenceTask):
    """Texts in, their translations out."""

    name = "translation"
    timed = "text to translation"
    measures = Measures(
        {"bleu": "BLEU", "chrf": "chrF"},
        {"chrf": "chrF with the teacher's text", "identical": "same text as the teacher"},
    )

    def score_texts(self, written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """BLEU and chrF."""
        return translation_scores(written, references)

    def resampler(self, written: Sequence[str], references: Sequence[str]) -> Resampler:
        """BLEU; sacrebleu has no counts of chrF for single texts."""
        return resample_bleu(written, references)


class SequenceToSequenceScorer(Scorer):
    """Scores the likelihood of targets in an evaluation, and what the model writes after it.

    Args:
        task: knows how texts are written and scored.
        examples: the texts with their targets.
        features: what was made of them.
        tokenizer: of the model.
    """

    predictions: list[str] | None

    def __init__(
        self,
        task: _SequenceToSequenceTask,
        examples: Dataset,
        features: Dataset,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.measures = task.measures
        self._task = task
        self._references = list(examples["target"])
        self._features = features
        self._loss = math.nan
        self._tokenizer = tokenizer

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Two numbers a token instead of a whole vocabulary."""
        return token_scores(logits, labels, shifted=False)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """The perplexity of the targets."""
        kept: Any = eval_prediction.predictions
        losses, top = kept
        labels: Any = eval_prediction.label_ids
        scores = perplexity_scores(losses, top, labels)
        self._loss = scores["loss_per_token"]
        return {"perplexity": scores["perplexity"]}

    def finish(self, trainer: Trainer) -> dict[str, float]:
        """Let the model write, on all processes, and score that; and the loss per token."""
        args = trainer.args
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        model.eval()
        mine = range(args.process_index, len(self._features), args.world_size)
        rows = [self._features[place] for place in mine]
        batch_size = args.per_device_eval_batch_size
        texts = self._task.write(model, self._tokenizer, rows, batch_size)
        written = list(zip(mine, texts, strict=True))
        if args.world_size > 1:
            written = sorted(gather_object(written))
        self.predictions = [text for _, text in written]
        self.rows = len(self.predictions)
        self.resampler = self._task.resampler(self.predictions, self._references)
        return {**self._task.score_texts(self.predictions, self._references), "loss": self._loss}

    def agreement(self, teacher: SequenceToSequenceScorer) -> dict[str, float]:
        """The likeness of the written texts, the teacher's being the references."""
        own, theirs = self.predictions or [], teacher.predictions or []
        primary = next(iter(self.measures.agreement))
        same = [one == other for one, other in zip(own, theirs, strict=True)]
        return {
            primary: self._task.score_texts(own, theirs)[primary] / 100,
            "identical": float(np.mean(same)),
        }

    def files(self) -> dict[str, Any]:
        """``predictions.json``: what was written for each text, in the data's order."""
        return {"predictions.json": self.predictions}
