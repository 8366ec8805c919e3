"""Token classification: sentences of words with a tag each, such as named entities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    EvalPrediction,
    Trainer,
)

from hf_distill.alignment import TeacherReader
from hf_distill.alignment.words import TOKEN_MAP, first_tokens, word_map
from hf_distill.console import log_rank_0
from hf_distill.extras import require
from hf_distill.heads import TokenClassificationHead
from hf_distill.heads.base import IGNORED
from hf_distill.tasks.base import (
    Batch,
    Config,
    Measures,
    Model,
    ScoredRow,
    Scorer,
    Task,
    Tokenizer,
    check_usable,
    pipeline_usage,
)
from hf_distill.tasks.cells import read_labels
from hf_distill.tasks.columns import (
    TAGS,
    TOKENS,
    checked_words,
    describe,
    is_list,
    kind_of,
    pick_columns,
)
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.label_choice import student_labels
from hf_distill.tasks.labels import (
    LabelMap,
    label_agreement,
    model_labels,
)
from hf_distill.tasks.metrics import entity_scheme, tagging_metric, token_scores

_AGREEMENT = {"identical": "same tag as the teacher"}
_ENTITIES = Measures(
    {"f1": "F1 of entities", "precision": "precision", "recall": "recall", "accuracy": "accuracy"},
    _AGREEMENT,
)
_TAGS = Measures({"accuracy": "accuracy", "f1_macro": "F1, mean of the tags"}, _AGREEMENT)


class TokenClassificationTask(Task):
    """Words in, a tag for each out.

    The words are joined by spaces and tokenised as any text is, so that every tokenizer encodes
    them as it does in use. The first token of a word has the word's label, all others -100.
    """

    name = "token-classification"
    head = TokenClassificationHead
    classes_column = "tags"
    timed = "words to tags"
    usage = pipeline_usage(name)
    _logged_scheme: str | None = "IOB"

    def rows(self, table: Dataset, *, labelled: bool = True) -> Dataset:
        """Pick ``tokens``, ``tags`` (as ``read_labels`` makes them), and ``row``, its place."""
        words = self.column(table, "text_column", TOKENS, "the list of words")
        if not labelled:
            checked_words(table, words)
            return Dataset.from_dict({"tokens": [row or [] for row in table[words]]})
        wanted: dict[str, Any] = {"taken": [words], "error": MissingLabelsError}
        tags = self.column(table, "label_column", TAGS, "the list of tags", **wanted)
        checked_words(table, words)
        feature = table.features[tags]
        if not is_list(feature) or kind_of(feature) not in ("name", "number"):
            raise TaskDataError(
                f"The column {tags!r} holds {describe(feature)}, not lists of tags; choose another "
                "one with label_column."
            )
        for row, (some_words, some_tags) in enumerate(zip(table[words], table[tags], strict=True)):
            if some_words is None or some_tags is None or len(some_words) != len(some_tags):
                raise TaskDataError(
                    f"Row {row} has {len(some_words or ())} words ({words}) and "
                    f"{len(some_tags or ())} tags ({tags}); each word needs one tag."
                )
        labels = read_labels(table, tags, names=self.options.class_names)
        rows = pick_columns(labels, {"tokens": words, "tags": tags})
        return rows.add_column("row", list(range(len(rows))))

    def model_options(
        self, student: Config | None, teacher: Config | None, examples: Dataset | None
    ) -> dict[str, Any]:
        return student_labels(student, teacher, examples, "tags")

    def label_counts(self, examples: Dataset, model: Model) -> dict[str, float]:
        return dict(LabelMap(model_labels(model.config), examples, "tags").counts())

    def texts(self, batch: Batch) -> list[list[str]]:
        return [[" ".join(tokens) for tokens in batch["tokens"]]]

    def labelled(self, examples: Dataset, config: Config) -> Dataset:
        return examples.remove_columns("tags").add_column("tags", tag_numbers(examples, config))

    def targets(self, batch: Batch, encoding: Any, tokenizer: Tokenizer) -> dict[str, list[Any]]:
        """Return ``labels``, and ``words``: for each label that is not -100 its word's index."""
        columns: dict[str, list[Any]] = {"labels": [], "words": []}
        for tokens, tags, encoded in zip(
            batch["tokens"], batch["tags"], encoding.encodings, strict=True
        ):
            places = first_tokens(tokens, encoded.offsets)
            labels = [IGNORED] * len(encoded.offsets)
            for word, token in places.items():
                labels[token] = tags[word]
            columns["labels"].append(labels)
            columns["words"].append(list(places))
        return columns

    def teacher_columns(
        self, batch: Batch, encoding: Any, teacher: TeacherReader, length: int
    ) -> dict[str, list[Any]]:
        """Return the teacher's inputs, of all words that it takes, and where each begins."""
        columns, theirs = teacher.encode(self.texts(batch), None)
        columns[TOKEN_MAP] = [
            word_map(
                first_tokens(tokens, ours.offsets),
                first_tokens(tokens, others.offsets),
                len(ours.offsets),
            )
            for tokens, ours, others in zip(
                batch["tokens"], encoding.encodings, theirs.encodings, strict=True
            )
        ]
        return columns

    def data_collator(self, tokenizer: Tokenizer, model: Model) -> Callable[..., Any]:
        return DataCollatorForTokenClassification(tokenizer)

    def scorer(
        self, examples: Dataset, features: Dataset, tokenizer: Tokenizer, model: Model
    ) -> TokenClassificationScorer:
        scorer = TokenClassificationScorer(examples, features, model.config)
        if scorer.scheme not in (self._logged_scheme, "IOB"):
            self._logged_scheme = scorer.scheme
            log_rank_0(
                "The tags are not those of entities in one scheme; each tag is scored by itself."
                if scorer.scheme is None
                else f"The tags mark entities by {scorer.scheme}; whole entities are scored."
            )
        return scorer


class TokenClassificationScorer(Scorer):
    """Scores the tags of whole sentences, and keeps them.

    A word that was cut off, or of which the tokenizer keeps nothing, counts as predicted ``O``
    (or the first tag, if there is no ``O``).

    Args:
        examples: the sentences with their tags.
        features: what was made of them.
        config: the model's; its label names are those of the predictions.
    """

    def __init__(self, examples: Dataset, features: Dataset, config: Any) -> None:
        self.names = model_labels(config)
        self._examples = examples
        labels = LabelMap(self.names, examples, "tags")
        self._gold, self.meanings = labels.all_numbers(), labels.meanings()
        self.scheme = entity_scheme(
            {self.names[tag] for row in self._gold for tag in row}, self.names
        )
        self.measures = _TAGS if self.scheme is None else _ENTITIES
        if self.scheme is not None:
            require("seqeval", "metrics")  # now, and not after hours
        self._words = features["words"]
        self._outside = self.names.index("O") if "O" in self.names else 0
        self._loss = math.nan

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Keep the loss and the most likely tag of each token."""
        return token_scores(logits, labels, shifted=False)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        kept: Any = eval_prediction.predictions
        losses, tags = kept
        labels: Any = eval_prediction.label_ids
        counts = labels != IGNORED
        check_usable(np.isnan(losses) & counts, "sentence")
        self._loss = float(losses[counts].mean(dtype=np.float64)) if counts.any() else math.nan
        self.predictions = []
        for row, (gold, words) in enumerate(zip(self._gold, self._words, strict=True)):
            predicted = [self._outside] * len(gold)
            of_words = tags[row][counts[row]]
            for word, tag in zip(words, of_words.tolist(), strict=True):
                predicted[word] = tag
            self.predictions.append(predicted)
        found, right = self._named(self.predictions), self._named(self._gold)
        self.metric = tagging_metric(found, right, tags=self.names)
        return self.metric.scores()

    def finish(self, trainer: Trainer) -> dict[str, float]:
        """Return the loss as the mean over words; ``Trainer`` takes the mean over batches."""
        return {"loss": self._loss}

    def agreement(self, teacher: TokenClassificationScorer) -> dict[str, float]:
        """Return the share of words with the same tag."""
        sides = [
            (scorer.meanings, [tag for row in scorer.predictions or [] for tag in row])
            for scorer in (self, teacher)
        ]
        return {"identical": label_agreement(*sides)}

    def rows(self) -> list[ScoredRow]:
        """Return the sentences with the tagged words; right is one without a wrong tag."""
        sentences = zip(self._examples["tokens"], self._gold, self.predictions or [], strict=True)
        return [
            ScoredRow(
                " ".join(words),
                self._tagged(words, gold),
                self._tagged(words, tags),
                gold == tags,
                [self.meanings[tag] for tag in tags],
            )
            for words, gold, tags in sentences
        ]

    def _tagged(self, words: Sequence[str], tags: Sequence[int]) -> str:
        """Return the words whose tag is not ``O``; ``none`` without any."""
        pairs = zip(words, tags, strict=True)
        shown = [f"{word}/{self.names[tag]}" for word, tag in pairs if self.names[tag] != "O"]
        return " ".join(shown) or "none"

    def files(self) -> dict[str, Any]:
        """Return ``predictions.json``: the tags of each sentence, in the data's order."""
        return {"predictions.json": self._named(self.predictions or [])}

    def _named(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.names[tag] for tag in row] for row in rows]


def tag_numbers(rows: Dataset, config: Any) -> list[list[int]]:
    """Return the tags of all sentences as the model numbers them.

    Raises:
        TaskDataError: a tag is missing or not the model's; names the row.
    """
    return LabelMap(model_labels(config), rows, "tags").all_numbers()
