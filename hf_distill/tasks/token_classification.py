"""Sentences of words with a tag each, such as named entities."""

from __future__ import annotations

from bisect import bisect_right
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

from hf_distill.console import log_rank_0
from hf_distill.heads.base import IGNORED
from hf_distill.tasks.base import Measures, Scorer, Task
from hf_distill.tasks.cells import read_labels
from hf_distill.tasks.columns import (
    TAGS,
    TOKENS,
    checked_words,
    describe,
    find_column,
    is_list,
    kind_of,
)
from hf_distill.tasks.encoding import Encoded, encode_rows, input_length, truncations
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.forward import Rows, forward_predictor
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
from hf_distill.tasks.unlabelled import encode_unlabelled, unlabelled_sentences


def tagged_rows(
    table: Dataset, *, text_column: str | None = None, label_column: str | None = None
) -> Dataset:
    """Pick the columns of tagged sentences.

    Args:
        table: any table.
        text_column: where the lists of words are; guessed by default.
        label_column: where the lists of tags are; guessed by default.

    Returns:
        The same rows, with the columns ``tokens``, ``tags`` and ``row``, the place in ``table``.

    Raises:
        TaskDataError: a column cannot be found or holds something else, a row has more or fewer
            tags than words, or no row has any word.
    """
    words = find_column(table, "text_column", text_column, TOKENS, "the list of words")
    tags = find_column(
        table,
        "label_column",
        label_column,
        TAGS,
        "the list of tags",
        taken=[words],
        error=MissingLabelsError,
    )
    checked_words(table, words)
    feature = table.features[tags]
    if not is_list(feature) or kind_of(feature) not in ("name", "number"):
        raise TaskDataError(
            f"The column {tags!r} holds {describe(feature)}, not lists of tags; choose another one "
            "with label_column."
        )
    for row, (some_words, some_tags) in enumerate(zip(table[words], table[tags], strict=True)):
        if some_words is None or some_tags is None or len(some_words) != len(some_tags):
            raise TaskDataError(
                f"Row {row} has {len(some_words or ())} words ({words}) and "
                f"{len(some_tags or ())} tags ({tags}); each word needs one tag."
            )
    names = {words: "tokens", tags: "tags"}
    kept = table.select_columns(list(names)).rename_columns(
        {old: new for old, new in names.items() if old != new}
    )
    return read_labels(kept, "tags").add_column("row", list(range(len(kept))))


def tag_numbers(rows: Dataset, config: Any) -> list[list[int]]:
    """The tags of all sentences as the model numbers them.

    Args:
        rows: as from ``tagged_rows``.
        config: the model's configuration, with its label names.

    Raises:
        TaskDataError: a tag is missing or not the model's; names the row.
    """
    return LabelMap(model_labels(config), rows, "tags").all_numbers()


def encode_tagged(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Encoded:
    """Turn tagged sentences into the inputs of a model.

    The words are joined by spaces and tokenised as any text is, so that every tokenizer encodes
    them as it does in use. The first token of a word has the word's label, all others -100.

    Args:
        rows: as from ``tagged_rows``.
        tokenizer: a fast one.
        model: its label names say how tags are numbered.
        max_length: most tokens of a sentence; what is longer is cut. By default 256, or fewer if
            the model takes fewer.
        num_proc: processes that do it.

    Returns:
        One row a sentence: what the tokenizer gives, ``labels``, and ``words``: for each label
        that is not -100 the index of its word. Not padded.

    Raises:
        TaskDataError: a tag is missing or not the model's.
        ValueError: the model takes fewer than ``max_length`` tokens.
    """
    length = input_length(max_length, tokenizer, model)
    numbers = tag_numbers(rows, model.config)
    rows = rows.remove_columns("tags").add_column("tags", numbers)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoding = tokenizer(
            [" ".join(tokens) for tokens in batch["tokens"]],
            truncation=True,
            max_length=length,
            return_offsets_mapping=True,
        )
        offsets = encoding.pop("offset_mapping")
        places = [
            first_tokens(tokens, spans)
            for tokens, spans in zip(batch["tokens"], offsets, strict=True)
        ]
        labels = [
            _labels(len(spans), found, tags)
            for spans, found, tags in zip(offsets, places, batch["tags"], strict=True)
        ]
        words = [list(found) for found in places]
        return {
            **encoding,
            "labels": labels,
            "words": words,
            "truncated": truncations(encoding),
        }

    return encode_rows(rows, encode, num_proc, "Tokenising")


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The first token of each word of a text, in which spaces join the words.

    Args:
        words: the words.
        offsets: for each token its first character and the one after its last; special tokens
            have none (two equal numbers).

    Returns:
        The token by the word, in order. A word that was cut off, or of which the tokenizer keeps
        nothing, is left out.
    """
    begins = []
    place = 0
    for word in words:
        begins.append(place)
        place += len(word) + 1
    found: dict[int, int] = {}
    for token, (begin, end) in enumerate(offsets):
        # Its last character: some tokenizers count the space before a word in.
        index = bisect_right(begins, end - 1) - 1
        if end > begin and end - 1 < begins[index] + len(words[index]):
            found.setdefault(index, token)
    return found


def _labels(length: int, places: dict[int, int], tags: Sequence[int]) -> list[int]:
    labels = [IGNORED] * length
    for word, token in places.items():
        labels[token] = tags[word]
    return labels


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
            log_rank_0(why)
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
            log_rank_0(
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
