"""Metrics of all tasks, from predictions and references, without a download.

A metric is a function of row weights: with weight 1 for every row it is the score, with other
whole numbers the score if row i were there ``weights[i]`` times. A call costs a few array
operations, so that a thousand resamples of ten thousand rows take about a second.

Shares (accuracy, F1, precision, recall, correlations, ROUGE, BLEU, chrF) are in percent.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
import torch
from torch import Tensor
from torch.nn import functional

from hf_distill.extras import require
from hf_distill.heads.base import IGNORED

Weights = npt.NDArray[Any]
"""``(rows,)``, whole numbers from 0."""

SCHEMES = {
    "IOB": "BI", "IOE": "IE", "IOBES": "BIES", "BILOU": "BILU", "BMES": "BMES", "BMEWO": "BMEW",
}  # fmt: skip
"""Schemes of entity tags, by the letters that they put before a type."""
# What each letter is to seqeval: beginning, inside, end, an entity of one word.
_LETTERS = {letter: letter for letter in "BIES"} | {"M": "I", "L": "E", "W": "S", "U": "S"}
_TAG = regex.compile(r"([BIESLUMW])-.+")
# Scripts without spaces between words: there each letter counts as a word, with its marks.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"(?V1)[[{_UNSPACED}]&&\w--\p{{M}}]\p{{M}}*|[\w--[_{_UNSPACED}]]+")
_ASCII = regex.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Metric:
    """What some predictions score.

    Attributes:
        rows: how many rows were predicted.
        weighted: the scores of weighted rows.
        of_all: scores that only all rows together have.
    """

    rows: int
    weighted: Callable[[Weights], dict[str, float]]
    of_all: Mapping[str, float] = field(default_factory=dict)

    def scores(self) -> dict[str, float]:
        """Return the scores of all rows."""
        return {**self.weighted(np.ones(self.rows, dtype=np.int64)), **self.of_all}


def mean_metric(scores: Mapping[str, npt.ArrayLike]) -> Metric:
    """Average a score per row, between 0 and 1; in percent."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    return Metric(
        len(next(iter(arrays.values()))),
        lambda w: {name: 100 * float(w @ row / w.sum()) for name, row in arrays.items()},
    )


def classification_metric(
    predicted: npt.ArrayLike, gold: npt.ArrayLike, *, labels: int, positive: int | None = None
) -> Metric:
    """Score one label per row.

    Args:
        predicted: label numbers, ``(rows,)``.
        gold: the right ones.
        labels: how many labels there are.
        positive: with two labels, the one whose F1 is ``f1``.

    Returns:
        ``accuracy``; ``f1_macro``, the plain mean of the F1 of each label that occurs;
        ``matthews``, the correlation coefficient; with two labels also ``f1``.
    """
    cells = np.asarray(gold) * labels + np.asarray(predicted)

    def weighted(weights: Weights) -> dict[str, float]:
        confusion = np.bincount(cells, weights, labels * labels).reshape(labels, labels)
        golden, guessed, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
        total = confusion.sum()
        occurs = golden + guessed > 0
        f1 = 2 * right / np.maximum(golden + guessed, 1)
        spread = (total**2 - (guessed**2).sum()) * (total**2 - (golden**2).sum())
        covariance = right.sum() * total - golden @ guessed
        scores = {
            "accuracy": 100 * right.sum() / total,
            "f1_macro": 100 * f1[occurs].mean(),
            "matthews": 100 * covariance / math.sqrt(spread) if spread > 0 else 0.0,
        }
        if labels == 2 and positive is not None:
            scores["f1"] = 100 * f1[positive]
        return {name: float(value) for name, value in scores.items()}

    return Metric(len(cells), weighted)


def multi_label_metric(predicted: npt.ArrayLike, gold: npt.ArrayLike) -> Metric:
    """Score several labels per row.

    Args:
        predicted: yes or no for each label, ``(rows, labels)``.
        gold: the right ones.

    Returns:
        ``f1_micro`` over all yes-or-no decisions, ``f1_macro`` the mean over labels, and
        ``exact_match``, the share of rows with all labels right.
    """
    guessed, golden = (np.asarray(side, dtype=bool) for side in (predicted, gold))
    hits = (guessed & golden).astype(np.float64)
    sides = guessed.astype(np.float64) + golden
    same = (guessed == golden).all(axis=1).astype(np.float64)

    def weighted(weights: Weights) -> dict[str, float]:
        right, both = 2 * weights @ hits, weights @ sides
        return {
            "f1_micro": _percentage(right.sum(), both.sum()),
            "f1_macro": float(100 * np.mean(right / np.maximum(both, 1))),
            "exact_match": _percentage(weights @ same, weights.sum()),
        }

    return Metric(len(guessed), weighted)


def regression_metric(predicted: npt.ArrayLike, gold: npt.ArrayLike) -> Metric:
    """Score a number per row.

    Returns:
        ``pearson`` and ``spearman`` (NaN where one side is constant; equal values share a rank),
        and ``mse``, the mean squared error, which is not in percent.
    """
    left, right = (np.asarray(side, dtype=np.float64) for side in (predicted, gold))
    ties = [np.unique(side, return_inverse=True)[1] for side in (left, right)]

    def weighted(weights: Weights) -> dict[str, float]:
        ranks, varies = [], True
        for places in ties:
            counts = np.bincount(places, weights)
            ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
            varies &= bool(np.count_nonzero(counts) > 1)
        return {
            "pearson": 100 * _correlation(left, right, weights) if varies else math.nan,
            "spearman": 100 * _correlation(ranks[0], ranks[1], weights) if varies else math.nan,
            "mse": float(weights @ (left - right) ** 2 / weights.sum()),
        }

    return Metric(len(left), weighted)


def tagging_metric(
    predicted: Sequence[Sequence[str]],
    gold: Sequence[Sequence[str]],
    *,
    tags: Iterable[str] | None = None,
) -> Metric:
    """Score one tag per word; a row is a sentence.

    Where ``entity_scheme`` finds a scheme, entities are read as the CoNLL script does, whatever the
    scheme: an entity begins where its type changes or a tag marks it, and a tag that continues
    nothing begins one. For correct sequences that is seqeval's strict mode. A predicted tag
    outside the scheme counts as ``O``.

    Args:
        predicted: the tags of each sentence.
        gold: the right ones.
        tags: all tags that the model knows; those of ``predicted`` by default.

    Returns:
        ``accuracy`` over all words. With tags of entities (``B-person``, ``I-person``, ``O``) also
        ``precision``, ``recall`` and ``f1`` of whole entities (micro average); with other tags
        ``f1_macro``.
    """
    guessed, golden = ([tag for row in rows for tag in row] for rows in (predicted, gold))
    known = guessed if tags is None else list(tags)
    numbers = {tag: n for n, tag in enumerate(dict.fromkeys([*known, *guessed, *golden]))}
    of_words = classification_metric(
        [numbers[tag] for tag in guessed], [numbers[tag] for tag in golden], labels=len(numbers)
    )
    sentences = np.repeat(np.arange(len(gold)), [len(row) for row in gold])
    scheme = entity_scheme(golden, known)
    entities = None
    if scheme is not None:
        labeling = require("seqeval.metrics.sequence_labeling", "metrics")
        sides = [
            [{*labeling.get_entities([_to_seqeval(tag, scheme) for tag in row])} for row in rows]
            for rows in (predicted, gold)
        ]
        hits = [len(some & others) for some, others in zip(*sides, strict=True)]
        entities = np.array([hits, *([len(row) for row in side] for side in sides)])

    def weighted(weights: Weights) -> dict[str, float]:
        scores = of_words.weighted(weights[sentences])
        if entities is None:
            return {name: scores[name] for name in ("f1_macro", "accuracy")}
        right, found, there = entities @ weights
        return {
            "f1": _percentage(2 * right, found + there),
            "precision": _percentage(right, found),
            "recall": _percentage(right, there),
            "accuracy": scores["accuracy"],
        }

    return Metric(len(gold), weighted)


def entity_scheme(gold: Iterable[str], known: Iterable[str] = ()) -> str | None:
    """Find the scheme of entity tags.

    The data decide whether tags are those of entities: each is ``O``, or a letter and a type
    (``B-person``). The scheme is the first of ``SCHEMES`` that has all letters of the data and of
    the other known tags; if none has, the first that has those of the data. Where several have
    them (``B`` and ``I`` alone are IOB1, IOB2, IOBES and BILOU), the entities are the same in all.

    Args:
        gold: the tags that occur in the data.
        known: the tags that the model knows.

    Returns:
        A key of ``SCHEMES``; ``None`` if the tags are not those of entities.
    """
    found = {tag: _TAG.fullmatch(tag) for tag in set(gold) - {"O"}}
    if not all(found.values()):
        return None
    letters = {match[1] for match in found.values() if match}
    more = {match[1] for tag in set(known) if (match := _TAG.fullmatch(tag))}
    for wanted in (letters | more, letters):
        for name, own in SCHEMES.items():
            if wanted <= set(own):
                return name
    return None


def _to_seqeval(tag: str, scheme: str) -> str:
    match = _TAG.fullmatch(tag)
    known = match is not None and tag[0] in SCHEMES[scheme]
    return _LETTERS[tag[0]] + tag[1:] if known else "O"


def token_scores(logits: Any, labels: Tensor, *, shifted: bool) -> tuple[Tensor, Tensor]:
    """Keep what scoring a language model needs of its logits, per token.

    For ``Trainer(preprocess_logits_for_metrics=…)``, so that an evaluation holds two numbers per
    token instead of one for each entry of the vocabulary.

    Args:
        logits: ``(batch, length, vocabulary)``, or a tuple that begins with them.
        labels: ``(batch, length)``, -100 where nothing is predicted.
        shifted: the logits of token i are about token i + 1, as in causal models.

    Returns:
        The negative log-likelihood of each label (0 where there is none) in float32, and the most
        likely tokens; both ``(batch, length)``, or one shorter if shifted.
    """
    if isinstance(logits, tuple):
        logits = logits[0]
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    # Row by row: a float32 copy of all logits would double the memory of an evaluation.
    losses = [
        functional.cross_entropy(row.float(), gold, ignore_index=IGNORED, reduction="none")
        for row, gold in zip(logits, labels, strict=True)
    ]
    return torch.stack(losses), logits.argmax(dim=-1)


def perplexity_metric(losses: npt.ArrayLike, top: npt.ArrayLike, labels: npt.ArrayLike) -> Metric:
    r"""Score how well a language model predicts.

    ``perplexity = exp(-1/n sum log p(token))`` over the n tokens of all rows that have a label, so
    that every token counts the same, however the rows are batched.

    Args:
        losses: from ``token_scores``, ``(rows, length)``.
        top: the most likely tokens, the same shape.
        labels: the right ones, the same shape, -100 where none is predicted.

    Returns:
        ``perplexity``, ``loss_per_token`` (its logarithm) and ``accuracy``, the share of tokens
        that are the most likely one, in percent.
    """
    losses, top, labels = np.asarray(losses), np.asarray(top), np.asarray(labels)
    counts = labels != IGNORED
    right = (top == labels) & counts
    # Trainer pads the losses of shorter batches with -100.
    losses = np.where(counts, losses, 0).sum(1, dtype=np.float64)
    sums = np.array([losses, right.sum(1), counts.sum(1)], dtype=np.float64)

    def weighted(weights: Weights) -> dict[str, float]:
        loss, hits, number = sums @ weights
        mean = float(loss / number) if number else math.nan
        return {
            "perplexity": math.inf if mean > 709 else math.exp(mean),  # over 709 exp overflows
            "accuracy": float(100 * hits / number) if number else math.nan,
        }

    tokens = sums[2].sum()
    loss = float(sums[0].sum() / tokens) if tokens else math.nan
    return Metric(len(labels), weighted, {"loss_per_token": loss})


def rouge_metric(written: Sequence[str], references: Sequence[str]) -> Metric:
    """Score summaries by ROUGE (Lin 2004): the mean F-measures ``rouge1``, ``rouge2``, ``rougeL``.

    Words of a to z and digits as in ``rouge-score`` with stemming, if most of the references are
    such words. That library drops all other letters and vowel signs; here they stay part of
    their word. In scripts without spaces each letter is a word, with its marks.
    """
    kinds = ["rouge1", "rouge2", "rougeL"]
    words = [word for text in references for word in _words(text)]
    ascii_letters = sum(len(word) for word in words if _ASCII.fullmatch(word))
    stems = 2 * ascii_letters >= sum(map(len, words))
    rouge = require("rouge_score.rouge_scorer", "metrics")
    scorer = rouge.RougeScorer(kinds, tokenizer=_UnicodeWords(stems))
    each = [scorer.score(gold, one) for one, gold in zip(written, references, strict=True)]
    return mean_metric({kind: [one[kind].fmeasure for one in each] for kind in kinds})


def translation_metric(written: Sequence[str], references: Sequence[str]) -> Metric:
    """Score translations as sacrebleu does, with one reference per text.

    Returns:
        ``bleu``; and of all texts ``chrf``, of which sacrebleu has no counts for single texts.
    """
    sacrebleu = require("sacrebleu", "metrics")
    each = [
        sacrebleu.sentence_bleu(text, [gold])
        for text, gold in zip(written, references, strict=True)
    ]
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in each])

    def weighted(weights: Weights) -> dict[str, float]:
        sums = [int(number) for number in weights @ counts]
        score = sacrebleu.BLEU.compute_bleu(
            sums[:4], sums[4:8], sums[8], sums[9], smooth_method="exp"
        )
        return {"bleu": float(score.score)}

    chrf = sacrebleu.corpus_chrf(list(written), [list(references)]).score
    return Metric(len(each), weighted, {"chrf": float(chrf)})


class _UnicodeWords:
    """A tokenizer for ``rouge-score``: words of any script."""

    def __init__(self, stems: bool) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer() if stems else None

    def tokenize(self, text: str) -> list[str]:
        """Return the words; English ones longer than three letters are stemmed."""
        words = _words(text)
        if self._stemmer is None:
            return words
        return [
            self._stemmer.stem(word) if len(word) > 3 and _ASCII.fullmatch(word) else word
            for word in words
        ]


def _words(text: str) -> list[str]:
    found: list[str] = _WORD.findall(unicodedata.normalize("NFC", text.lower()))
    return found


def _percentage(part: float, whole: float) -> float:
    return float(100 * part / whole) if whole > 0 else 0.0


def _correlation(left: Weights, right: Weights, weights: Weights) -> float:
    total = weights.sum()
    left, right = left - weights @ left / total, right - weights @ right / total
    scale = math.sqrt((weights @ left**2) * (weights @ right**2))
    return float(weights @ (left * right)) / scale
