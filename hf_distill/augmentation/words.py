"""Words of a text as places in it: which may be replaced, and by what.

Nothing here needs a model, and nothing changes the text between two words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from nltk.tokenize import NLTKWordTokenizer


class Span(NamedTuple):
    """A piece ``text[start:end]`` of a text, in characters."""

    start: int
    end: int


SplitWords = Callable[[str], Sequence[tuple[int, int]]]

_TOKENIZER = NLTKWordTokenizer()
# Between two letters or digits, these make one thing of both: e-mail addresses, URLs, versions,
# abbreviations, times, compounds.
_JOINERS = frozenset(".:@/\\&+=#_~^%*-'’‐‑")
_INNER = frozenset("-'’‐‑")
# Scripts that write words without a space between them.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x20000, 0x3FFFF),  # Han, supplementary
)
_ARTICLE = re.compile(r"(?<![\w'’-])(an?)\s+$", re.IGNORECASE)
_VOWELS = frozenset("aeiou")
_CONSONANT_SOUNDS = ("uni", "use", "usu", "uti", "uto", "ubi", "ura", "eu", "ewe", "one", "once")
_VOWEL_SOUNDS = ("hour", "honest", "honor", "honour", "heir", "unin", "unim", "unid")
_ENDINGS = ("ing", "ed", "ly", "est", "s")


def word_spans(text: str) -> list[Span]:
    """The words of a text that could be replaced without hurting what is around them.

    A word is two or more letters, possibly with hyphens or apostrophes inside, as NLTK's
    ``NLTKWordTokenizer`` finds it (no data download), without the punctuation around it. Left out
    are parts of something longer: contractions (`ca|n't`), abbreviations with inner full stops,
    URLs, e-mail addresses, file names, numbers with units; and scripts without spaces between
    words (Han, Kana, Thai, Lao, Khmer, Myanmar), for which a splitter of your own can be passed
    wherever this function is the default.

    Args:
        text: any text.

    Returns:
        The places of the words, in order, not overlapping.
    """
    spans = []
    for start, end in _tokens(text):
        while start < end and not _is_letter(text[start]):
            start += 1
        while start < end and not _is_letter(text[end - 1]):
            end -= 1
        if end - start >= 2 and _is_word(text[start:end]) and _stands_alone(text, start, end):
            spans.append(Span(start, end))
    return spans


def _tokens(text: str) -> Iterator[tuple[int, int]]:
    try:
        yield from list(_TOKENIZER.span_tokenize(text))
    except (ValueError, IndexError, StopIteration, RuntimeError):
        # It rewrites quotation marks and cannot always find them again.
        start = 0
        for piece in text.split():
            start = text.index(piece, start)
            yield start, start + len(piece)
            start += len(piece)


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def _is_letter_or_digit(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _is_word(word: str) -> bool:
    for index, character in enumerate(word):
        if character in _INNER:
            if word[index + 1] in _INNER:
                return False
        elif not _is_letter(character) or _is_unspaced(character):
            return False
    return True


def _is_unspaced(character: str) -> bool:
    code = ord(character)
    return code >= 0x0E00 and any(first <= code <= last for first, last in _UNSPACED)


def _stands_alone(text: str, start: int, end: int) -> bool:
    before = text[max(start - 2, 0) : start][::-1]
    # A possessive is no part of the noun before it.
    after = text[end : end + 2]
    if text[end : end + 1] in ("'", "’") and text[end + 1 : end + 2] in ("s", "S"):
        after = text[end + 2 : end + 4]
    return not _continues(before) and not _continues(after)


def _continues(beside: str) -> bool:
    """Whether a word goes on in the one or two characters beside it, the nearest first."""
    if not beside:
        return False
    if _is_letter_or_digit(beside[0]) or beside[0] in "_@#\\":
        return True
    if beside[0] not in _JOINERS or len(beside) == 1:
        return False
    return beside[1] in "/\\" or _is_letter_or_digit(beside[1])


def case_pattern(word: str) -> str:
    """How a word is written: ``lower``, ``upper``, ``title``, ``none`` (no case) or ``mixed``."""
    if word.islower():
        return "lower"
    if word.isupper():
        return "upper"
    if word[:1].title() == word[:1] and word[1:].islower():
        return "title"
    return "none" if word.upper() == word.lower() else "mixed"


def fit_case(candidate: str, pattern: str) -> str | None:
    """Write a candidate as the word was written that it is to replace.

    Args:
        candidate: the new word, as a model or a list of vectors spells it.
        pattern: that of the old word, from ``case_pattern``.

    Returns:
        The new word; ``None`` where it cannot stand, such as a name in capitals for a lower-case
        word.
    """
    if pattern == "lower":
        return candidate if candidate == candidate.lower() else None
    if pattern == "title":
        return candidate[0].title() + candidate[1:]
    if pattern == "upper":
        return candidate.upper()
    return candidate


def is_plain_word(word: str) -> bool:
    """Whether a candidate is a word to put into a text: two or more letters and nothing else."""
    return len(word) > 1 and _is_letter(word[0]) and all(map(_is_letter, word))


def article_before(text: str, start: int) -> str | None:
    """The English article ``a`` or ``an`` right before a place, in lower case, if there is one."""
    found = _ARTICLE.search(text[max(start - 8, 0) : start])
    return found and found[1].lower()


def sounds_like_a_vowel(word: str) -> bool:
    """Whether an English word begins with a vowel sound, so that it takes ``an``."""
    word = unicodedata.normalize("NFD", word.lower())
    if word.startswith(_VOWEL_SOUNDS):
        return True
    return word[:1] in _VOWELS and not word.startswith(_CONSONANT_SOUNDS)


def ending(word: str) -> str:
    """The English inflection that a word seems to have: ``ing``, ``ed``, ``ly``, ``est``, ``s``."""
    word = word.lower()
    if len(word) < 4 or word.endswith("ss"):
        return ""
    return next((e for e in _ENDINGS if word.endswith(e)), "")


class Fit(NamedTuple):
    """What a word to be replaced asks of its replacements."""

    word: str
    pattern: str
    article: str | None
    stop_words: Collection[str]

    @classmethod
    def of(cls, text: str, span: tuple[int, int], stop_words: Collection[str]) -> Fit:
        """That of the word at a place of a text."""
        start, end = span
        word = text[start:end]
        article = article_before(text, start)
        if article is not None and (article == "an") != sounds_like_a_vowel(word):
            # Not an English article, or not used as this module thinks: no ground to judge on.
            article = None
        return cls(word, case_pattern(word), article, stop_words)

    def __call__(self, candidate: str) -> str | None:
        """The candidate as it may stand in the text, or ``None``.

        It must be a word of letters, not the word itself, no stop word, agree with ``a`` or
        ``an`` before it, and take the word's case.
        """
        folded = candidate.casefold()
        if (
            not is_plain_word(candidate)
            or folded in self.stop_words
            or folded == self.word.casefold()
            or (self.article and (self.article == "an") != sounds_like_a_vowel(candidate))
        ):
            return None
        fitted = fit_case(candidate, self.pattern)
        return None if fitted is None or fitted == self.word else fitted


def is_replaceable(word: str, stop_words: Collection[str]) -> bool:
    """Whether a word may be replaced: no stop word, and no mixture of cases such as `iPhone`."""
    return case_pattern(word) != "mixed" and word.casefold().replace("’", "'") not in stop_words
