"""Token classification, such as named entities, for the commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_distill.cli.forward import Rows, forward_predictor
from hf_distill.cli.tasks import Measures, Scorer, Task, say
from hf_distill.heads.base import IGNORED
from hf_distill.tasks.encoding import Encoded, input_length
from hf_distill.tasks.labels import (
    LabelMap,
    choose_labels,
    data_labels,
    label_options,
    model_labels,
    same_names,
    teacher_labels,
)
from hf_distill.tasks.metrics import entity_scheme, tagging_scores
from hf_distill.tasks.resampling import resample_tags
from hf_distill.tasks.tables import load_table
from hf_distill.tasks.token_classification import (
    encode_tagged,
    tag_numbers,
    tagged_rows,
)
from hf_distill.tasks.unlabelled import encode_unlabelled, unlabelled_sentences

_AGREEMENT = {"identical": "same tag as the teacher"}
_ENTITIES = Measures(
    {"f1": "F1 of entities", "precision": "precision", "recall": "recall", "accuracy": "accuracy"},
    _AGREEMENT,
)
_TAGS = Measures({"accuracy": "accuracy", "f1_macro": "F1, mean of the tags"}, _AGREEMENT)


class TokenClassificationTask(Task):
    """Words in, a tag for each out."""

    name = "token-classification"
    auto_model = "AutoModelForTokenClassification"
    timed = "words to tags"
    _said: str | None = "IOB"

    def load_data(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load words and tags."""
        table = load_table(source, split=split, config_name=config_name, revision=revision)
        return tagged_rows(
            table,
            text_column=self.options.text_column,
            label_column=self.options.label_column,
        )

    def model_options(
        self, examples: Dataset, student: PreTrainedConfig | None, teacher: PreTrainedConfig | None
    ) -> dict[str, Any]:
        """The tags."""
        tags, why = choose_labels(data_labels(examples, "tags"), student, teacher)
        if why is not None:
            say(why)
        return label_options(tags)

    def features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        training: bool,
        num_proc: int | None,
    ) -> Encoded:
        """One row a sentence; the tag is on the first token of a word."""
        length = self.options.max_length
        return encode_tagged(examples, tokenizer, model, max_length=length, num_proc=num_proc)

    def load_unlabelled(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load words."""
        table = load_table(source, split=split, config_name=config_name, revision=revision)
        return unlabelled_sentences(table, text_column=self.options.text_column)

    def unlabelled_features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        num_proc: int | None,
    ) -> Encoded:
        """One row a sentence."""
        length = self.options.max_length
        return encode_unlabelled(examples, tokenizer, model, max_length=length, num_proc=num_proc)

    def unlabelled_options(
        self, student: PreTrainedConfig | None, teacher: PreTrainedConfig | None
    ) -> dict[str, Any]:
        """The tags of the teacher."""
        return teacher_labels(student, teacher)

    def label_counts(self, examples: Dataset, model: PreTrainedModel) -> dict[str, float]:
        """The counts of tags."""
        return dict(LabelMap(model_labels(model.config), examples, "tags").counts())

    def data_collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> Callable[..., Any]:
        """Pads to the longest sentence of a batch."""
        return DataCollatorForTokenClassification(tokenizer)

    def scorer(
        self,
        examples: Dataset,
        features: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
    ) -> TokenClassificationScorer:
        """F1 of entities."""
        scorer = TokenClassificationScorer(examples, features, model.config)
        if scorer.scheme not in (self._said, "IOB"):
            self._said = scorer.scheme
            say(
                "The tags are not those of entities in one scheme; each tag is scored by itself."
                if scorer.scheme is None
                else f"The tags mark entities by {scorer.scheme}; whole entities are scored."
            )
        return scorer

    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """Words in, tags out."""
        length = input_length(self.options.max_length, tokenizer, model)

        def tokenize(rows: Rows) -> Mapping[str, Any]:
            texts = [" ".join(row["tokens"]) for row in rows]
            return tokenizer(texts, truncation=True, max_length=length)

        return forward_predictor(model, tokenizer, batch_size, tokenize)


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
        self._gold = tag_numbers(examples, config)
        self.scheme = entity_scheme(
            {self.names[tag] for row in self._gold for tag in row}, self.names
        )
        self.measures = _TAGS if self.scheme is None else _ENTITIES
        self._words = features["words"]
        self._outside = self.names.index("O") if "O" in self.names else 0

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """The most likely tag of each token."""
        return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Score the tags of an evaluation."""
        tags, labels = eval_prediction.predictions, eval_prediction.label_ids
        self.predictions = []
        for row, (gold, words) in enumerate(zip(self._gold, self._words, strict=True)):
            predicted = [self._outside] * len(gold)
            of_words = np.asarray(tags)[row][np.asarray(labels)[row] != IGNORED]
            for word, tag in zip(words, of_words.tolist(), strict=True):
                predicted[word] = tag
            self.predictions.append(predicted)
        found, right = self._named(self.predictions), self._named(self._gold)
        self.rows = len(right)
        self.resampler = resample_tags(found, right, tags=self.names)
        return tagging_scores(found, right, tags=self.names)

    def agreement(self, teacher: TokenClassificationScorer) -> dict[str, float]:
        """The share of words with the same tag."""
        sides = []
        named = same_names(self.names, teacher.names)
        for scorer in (self, teacher):
            folded = [name.casefold() if named else n for n, name in enumerate(scorer.names)]
            sides.append([folded[tag] for row in scorer.predictions or [] for tag in row])
        pairs = zip(*sides, strict=True)
        return {"identical": float(np.mean([one == other for one, other in pairs]))}

    def files(self) -> dict[str, Any]:
        """``predictions.json``: the tags of each sentence, in the data's order."""
        return {"predictions.json": self._named(self.predictions or [])}

    def _named(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.names[tag] for tag in row] for row in rows]
