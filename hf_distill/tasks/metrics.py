"""Scores of all tasks, from predictions and references, without a download.

Shares (accuracy, F1, precision, recall, correlations, ROUGE, BLEU, chrF) are in percent.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
import torch
from torch import Tensor
from torch.nn import functional

from hf_distill.heads.base import IGNORED

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


def classification_scores(
    predicted: npt.ArrayLike, gold: npt.ArrayLike, *, labels: int, positive: int | None = None
) -> dict[str, float]:
    """One label a row.

    Args:
        predicted: label numbers, ``(rows,)``.
        gold: the right ones.
        labels: how many labels there are.
        positive: with two labels, the one whose F1 is ``f1``.

    Returns:
        ``accuracy``; ``f1_macro``, the plain mean of the F1 of each label that occurs;
        ``matthews``, the correlation coefficient; with two labels also ``f1``.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted, gold = np.asarray(predicted), np.asarray(gold)
    scores = {
        "accuracy": accuracy_score(gold, predicted),
        "f1_macro": f1_score(gold, predicted, average="macro", zero_division=0),
        "matthews": matthews_corrcoef(gold, predicted),
    }
    if labels == 2 and positive is not None:
        scores["f1"] = f1_score(gold == positive, predicted == positive, zero_division=0)
    return _percent(scores)


def multi_label_scores(predicted: npt.ArrayLike, gold: npt.ArrayLike) -> dict[str, float]:
    """Several labels a row.

    Args:
        predicted: yes or no for each label, ``(rows, labels)``.
        gold: the right ones.

    Returns:
        ``f1_micro`` over all yes-or-no decisions, ``f1_macro`` the mean over labels, and
        ``exact_match``, the share of rows with all labels right.
    """
    from sklearn.metrics import f1_score

    predicted, gold = np.asarray(predicted, dtype=bool), np.asarray(gold, dtype=bool)
    return _percent(
        {
            "f1_micro": f1_score(gold, predicted, average="micro", zero_division=0),
            "f1_macro": f1_score(gold, predicted, average="macro", zero_division=0),
            "exact_match": (predicted == gold).all(axis=1).mean(),
        }
    )


def regression_scores(predicted: npt.ArrayLike, gold: npt.ArrayLike) -> dict[str, float]:
    """A number a row.

    Returns:
        ``pearson`` and ``spearman`` (NaN where one side is constant), and ``mse``, the mean
        squared error, which is not in percent.
    """
    from scipy.stats import rankdata

    left = np.asarray(predicted, dtype=np.float64)
    right = np.asarray(gold, dtype=np.float64)
    shares = {
        "pearson": _correlation(left, right),
        "spearman": _correlation(rankdata(left), rankdata(right)),
    }
    return {**_percent(shares), "mse": float(np.mean((left - right) ** 2))}


def tagging_scores(
    predicted: Sequence[Sequence[str]],
    gold: Sequence[Sequence[str]],
    *,
    tags: Iterable[str] | None = None,
) -> dict[str, float]:
    """Score one tag per word.

    Where ``entity_scheme`` finds a scheme, entities are read as the CoNLL script does, whatever the
    scheme: an entity begins where its type changes or a tag says so, and a tag that continues
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
    flat = [
        (one, other)
        for some, others in zip(predicted, gold, strict=True)
        for one, other in zip(some, others, strict=True)
    ]
    left, right = ([pair[side] for pair in flat] for side in (0, 1))
    accuracy = float(np.mean([one == other for one, other in flat])) if flat else math.nan
    scheme = entity_scheme(right, left if tags is None else tags)
    if scheme is not None:
        from seqeval.metrics import f1_score, precision_score, recall_score

        gold, predicted = (
            [[_to_seqeval(tag, scheme) for tag in row] for row in rows]
            for rows in (gold, predicted)
        )
        scores = {
            "f1": f1_score(gold, predicted, zero_division=0),
            "precision": precision_score(gold, predicted, zero_division=0),
            "recall": recall_score(gold, predicted, zero_division=0),
        }
    else:
        from sklearn.metrics import f1_score as label_f1

        scores = {"f1_macro": label_f1(right, left, average="macro", zero_division=0)}
    return _percent({**scores, "accuracy": accuracy})


def entity_counts(
    predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], scheme: str
) -> tuple[list[int], list[int], list[int]]:
    """Count the right, the predicted and the gold entities of each sentence."""
    from seqeval.metrics.sequence_labeling import get_entities

    found, wanted = (
        [set(get_entities([_to_seqeval(tag, scheme) for tag in row])) for row in rows]
        for rows in (predicted, gold)
    )
    right = [len(some & others) for some, others in zip(found, wanted, strict=True)]
    return right, [len(row) for row in found], [len(row) for row in wanted]


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
    """What a language model thinks of each token: all that scoring needs of its logits.

    For ``Trainer(preprocess_logits_for_metrics=…)``, so that an evaluation holds two numbers a
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


def perplexity_scores(
    losses: npt.ArrayLike, top: npt.ArrayLike, labels: npt.ArrayLike
) -> dict[str, float]:
    r"""How well a language model predicts.

    ``perplexity = exp(-1/n sum log p(token))`` over the n tokens of all rows that have a label, so
    that each token counts alike, however the rows are batched.

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
    number = int(counts.sum())
    loss = float(losses[counts].sum(dtype=np.float64)) / number if number else math.nan
    right = float((top == labels)[counts].mean()) if number else math.nan
    # Over 709 exp overflows.
    perplexity = math.inf if loss > 709 else math.exp(loss)
    return {"perplexity": perplexity, "loss_per_token": loss, "accuracy": 100 * right}


def rouge_scores(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE of summaries (Lin 2004): the mean F-measures ``rouge1``, ``rouge2`` and ``rougeL``.

    Words of a to z and digits as in ``rouge-score`` with stemming, if most of the references are
    such words. That library drops all other letters and vowel signs; here they stay part of
    their word. In scripts without spaces each letter is a word, with its marks.
    """
    return _percent(
        {kind: np.mean(each) for kind, each in rouge_of_each(written, references).items()}
    )


def rouge_of_each(written: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Return the F-measures of ``rouge_scores`` text by text, between 0 and 1."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    words = [word for text in references for word in _words(text)]
    ascii_letters = sum(len(word) for word in words if _ASCII.fullmatch(word))
    stems = 2 * ascii_letters >= sum(map(len, words))
    scorer = RougeScorer(kinds, tokenizer=_UnicodeWords(stems))
    each = [scorer.score(gold, one) for one, gold in zip(written, references, strict=True)]
    return {kind: [one[kind].fmeasure for one in each] for kind in kinds}


def translation_scores(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``bleu`` and ``chrf`` of a corpus as sacrebleu computes them, with one reference a text."""
    import sacrebleu

    return {
        "bleu": float(sacrebleu.corpus_bleu(list(written), [list(references)]).score),
        "chrf": float(sacrebleu.corpus_chrf(list(written), [list(references)]).score),
    }


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


def _correlation(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return math.nan
    return float(np.corrcoef(left, right)[0, 1])


def _percent(scores: dict[str, Any]) -> dict[str, float]:
    return {name: 100 * float(value) for name, value in scores.items()}
