"""Summarization and translation: texts with a target text each, and what models write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    Trainer,
)

from hf_distill.compatibility import input_limit
from hf_distill.extras import require
from hf_distill.heads import Seq2SeqLMHead
from hf_distill.tasks.base import Batch, Measures, Model, Rows, Scorer, Task, Tokenizer
from hf_distill.tasks.columns import (
    SOURCES,
    TARGETS,
    checked_texts,
    find_column,
    find_text,
    is_mixed,
    is_text,
    pick_columns,
    rows_in_words,
)
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.metrics import (
    Metric,
    perplexity_metric,
    rouge_metric,
    token_scores,
    translation_metric,
)
from hf_distill.tasks.options import TaskArguments

DEFAULT_TARGET_LENGTH = 128


class SequenceToSequenceTask(Task):
    """Texts in, texts out."""

    head = Seq2SeqLMHead
    measures: ClassVar[Measures]
    scored_by: ClassVar[str]
    limit = "--max_length, --max_target_length"
    reads_targets = True

    def __init__(self, options: TaskArguments) -> None:
        super().__init__(options)
        for name in ("num_beams", "max_target_length"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value} must be at least 1.")

    def length(self, tokenizer: Tokenizer, model: Model, *, pair: bool = False) -> int:
        """Return the most tokens of a text.

        Raises:
            ValueError: as for all tasks; or the decoder has no positions for so long a target.
        """
        chosen = self.options.max_target_length
        most, wanted = input_limit(model), chosen or DEFAULT_TARGET_LENGTH
        if most is not None and wanted > most:
            raise ValueError(
                f"--max_target_length {wanted}{'' if chosen else ' (the default)'} is more than "
                f"the {most} tokens that the model has positions for; set it to at most {most}."
            )
        return super().length(tokenizer, model, pair=pair)

    @staticmethod
    def metric(written: Sequence[str], references: Sequence[str]) -> Metric:
        """Compare written texts with references."""
        raise NotImplementedError

    def rows(self, table: Dataset, *, labelled: bool = True) -> Dataset:
        """Pick ``text`` and ``target``.

        For translations as on the Hub, the text column has objects with a text for each language.
        """
        options = self.options
        text, target = options.text_column, options.target_column
        nested = text or "translation"
        feature = table.features.get(nested)
        if isinstance(feature, Mapping) and not is_mixed(feature):
            texts = {"text": _of_language(table, nested, "source_lang", options.source_lang)}
            if not labelled:
                return Dataset.from_dict(texts)
            if options.source_lang == options.target_lang:
                raise TaskDataError(
                    f"target_lang={options.target_lang!r} is the language of the source "
                    f"(source_lang), too; choose another of the column {nested!r}: "
                    f"{', '.join(feature)}."
                )
            texts["target"] = _of_language(table, nested, "target_lang", options.target_lang)
            table, text, target = Dataset.from_dict(texts), "text", "target"
        names = table.column_names
        if text is None and options.source_lang in names:
            text = options.source_lang
        if not labelled:
            text = find_text(table, text, SOURCES)
            checked_texts(table, text, "text_column")
            return pick_columns(table, {"text": text})
        if target is None and options.target_lang in names:
            target = options.target_lang
        target = find_column(
            table, "target_column", target, TARGETS, "the target", error=MissingLabelsError
        )
        text = find_column(table, "text_column", text, SOURCES, "the text", taken=[target])
        checked_texts(table, text, "text_column")
        if is_text(table.features[target]):
            missing = [row for row, one in enumerate(table[target]) if not (one or "").strip()]
            if missing:
                raise MissingLabelsError(
                    f"{rows_in_words(missing)} nothing or an empty target in the column "
                    f"{target!r}; remove the row."
                )
        checked_texts(table, target, "target_column")
        return pick_columns(table, {"text": text, "target": target})

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Set the languages that a multilingual tokenizer (mBART, NLLB, M2M100 …) marks."""
        languages = {"src_lang": self.options.source_lang, "tgt_lang": self.options.target_lang}
        for name, language in languages.items():
            if language is not None and hasattr(tokenizer, name):
                setattr(tokenizer, name, language)

    def texts(self, batch: Batch) -> list[list[str]]:
        """Put the prefix before each text."""
        return [[self.options.source_prefix + text for text in batch["text"]]]

    def targets(self, batch: Batch, encoding: Any, tokenizer: Tokenizer) -> dict[str, list[Any]]:
        """Return ``labels``, the tokens of the target."""
        targets = tokenizer(
            text_target=batch["target"],
            truncation=True,
            max_length=self.options.max_target_length or DEFAULT_TARGET_LENGTH,
        )
        cut = [
            bool(text.overflowing or target.overflowing)
            for text, target in zip(encoding.encodings, targets.encodings, strict=True)
        ]
        return {"labels": targets["input_ids"], "truncated": cut}

    def data_collator(self, tokenizer: Tokenizer, model: Model) -> Callable[..., Any]:
        """Pad texts and targets, and make the decoder's inputs of the targets."""
        return DataCollatorForSeq2Seq(tokenizer, model=model)

    def scorer(
        self, examples: Dataset, features: Dataset, tokenizer: Tokenizer, model: Model
    ) -> SequenceToSequenceScorer:
        return SequenceToSequenceScorer(self, examples, features, tokenizer)

    def predictor(
        self, model: Model, tokenizer: Tokenizer, batch_size: int
    ) -> Callable[[Rows], list[str]]:
        self.prepare(tokenizer)
        length = self.length(tokenizer, model)

        def predict(examples: Rows) -> list[str]:
            texts = self.texts({"text": [row["text"] for row in examples]})
            encoding = tokenizer(*texts, truncation=True, max_length=length)
            rows = [
                {"input_ids": ids, "attention_mask": mask}
                for ids, mask in zip(encoding["input_ids"], encoding["attention_mask"], strict=True)
            ]
            return self.write(model, tokenizer, rows, batch_size)

        return predict

    def write(
        self,
        model: Model,
        tokenizer: Tokenizer,
        inputs: Sequence[Mapping[str, Any]],
        batch_size: int = 16,
    ) -> list[str]:
        """Let a model write, without sampling.

        Everything that no option sets is as the model's own generation configuration sets it; it
        writes at most 128 tokens if that sets no limit.

        Args:
            model: in evaluation mode, on its device.
            tokenizer: its tokenizer.
            inputs: rows with ``input_ids`` and ``attention_mask``.
            batch_size: texts at a time.

        Returns:
            A text for each row, without special tokens.
        """
        options: dict[str, Any] = {"do_sample": False}
        if self.options.num_beams is not None:
            options["num_beams"] = self.options.num_beams
        own = model.generation_config
        most = self.options.max_target_length
        if most is None and getattr(own, "max_new_tokens", None) is None:
            # 20 is the default of transformers where nobody chose.
            chosen = getattr(own, "max_length", None) not in (None, 20)
            most = None if chosen else DEFAULT_TARGET_LENGTH
        if most is not None:
            options["max_new_tokens"] = most
        language = getattr(tokenizer, "tgt_lang", None)
        if language and getattr(own, "forced_bos_token_id", None) is None:
            options["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(language)
        # The longest first: texts of similar length waste no padding, and a batch that is too big
        # fails at once.
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


class SummarizationTask(SequenceToSequenceTask):
    """Texts in, summaries out."""

    name = "summarization"
    timed = "text to summary"
    measures = Measures(
        {"rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2"},
        {"rougeL": "ROUGE-L with the teacher's text", "identical": "same text as the teacher"},
    )
    metric = staticmethod(rouge_metric)
    scored_by = "rouge_score"


class TranslationTask(SequenceToSequenceTask):
    """Texts in, their translations out."""

    name = "translation"
    timed = "text to translation"
    measures = Measures(
        {"bleu": "BLEU", "chrf": "chrF"},
        {"chrf": "chrF with the teacher's text", "identical": "same text as the teacher"},
    )
    metric = staticmethod(translation_metric)
    scored_by = "sacrebleu"


class SequenceToSequenceScorer(Scorer):
    """Scores the likelihood of targets in an evaluation, and what the model writes after it.

    Args:
        task: knows how texts are written and scored.
        examples: the texts with their targets.
        features: what was made of them.
        tokenizer: the model's tokenizer.
    """

    predictions: list[str] | None

    def __init__(
        self,
        task: SequenceToSequenceTask,
        examples: Dataset,
        features: Dataset,
        tokenizer: Tokenizer,
    ) -> None:
        require(task.scored_by, "metrics")  # now, and not after hours
        self.measures = task.measures
        self._task = task
        self._references = list(examples["target"])
        self._features = features
        self._loss = math.nan
        self._tokenizer = tokenizer

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Keep two numbers per token instead of a whole vocabulary."""
        return token_scores(logits, labels, shifted=False)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        kept: Any = eval_prediction.predictions
        losses, top = kept
        labels: Any = eval_prediction.label_ids
        scores = perplexity_metric(losses, top, labels).scores()
        self._loss = scores["loss_per_token"]
        return {"perplexity": scores["perplexity"]}

    def finish(self, trainer: Trainer) -> dict[str, float]:
        """Let the model write, on all processes, and score that; add the loss per token."""
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
        self.metric = self._task.metric(self.predictions, self._references)
        return {**self.metric.scores(), "loss": self._loss}

    def agreement(self, teacher: SequenceToSequenceScorer) -> dict[str, float]:
        """Score the written texts, the teacher's being the references."""
        own, theirs = self.predictions or [], teacher.predictions or []
        primary = next(iter(self.measures.agreement))
        same = [one == other for one, other in zip(own, theirs, strict=True)]
        return {
            primary: self._task.metric(own, theirs).scores()[primary] / 100,
            "identical": float(np.mean(same)),
        }

    def files(self) -> dict[str, Any]:
        """Return ``predictions.json``: what was written for each text, in the data's order."""
        return {"predictions.json": self.predictions}


def _of_language(table: Dataset, column: str, option: str, language: str | None) -> list[Any]:
    languages = list(table.features[column])
    # Multilingual tokenizers have `en_XX` where data has `en`.
    keys = [key for key in (language, str(language).partition("_")[0]) if key in languages]
    if language is None:
        raise TaskDataError(
            f"The column {column!r} has texts in {', '.join(languages)}: choose one of them with "
            f"{option}."
        )
    if not keys:
        raise TaskDataError(
            f"{option}={language!r} is not among the languages of the column {column!r}: "
            f"{', '.join(languages)}; choose one of them."
        )
    return [pair[keys[0]] for pair in table[column]]
