"""Summarization and translation for the commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from hf_distill.cli.forward import Rows
from hf_distill.cli.tasks import Measures, Scorer, Task
from hf_distill.tasks.encoding import Encoded, input_length
from hf_distill.tasks.metrics import (
    perplexity_scores,
    rouge_of_each,
    rouge_scores,
    token_scores,
    translation_scores,
)
from hf_distill.tasks.resampling import Resampler, resample_bleu, resample_means
from hf_distill.tasks.sequence_to_sequence import (
    encode_pairs,
    generate_texts,
    set_languages,
    source_texts,
    text_pairs,
)
from hf_distill.tasks.tables import load_table


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
