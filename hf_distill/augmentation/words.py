"""Words of a text as places in it: which may be replaced, and by what.

Nothing here needs a model, and nothing changes the text between two words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
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


def read_stop_words(words: str | Path | Iterable[str]) -> frozenset[str]:
    """Return stop words as they are compared: in folded case, with straight apostrophes.

    Args:
        words: the words, or a text file in UTF-8 with one word per line; empty lines and lines
            that begin with ``#`` do not count.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a text in UTF-8.
    """
    if isinstance(words, str | Path):
        try:
            text = Path(words).expanduser().read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the stop words in {words} are not a text in UTF-8: {error}"
            ) from error
        lines = (line.strip() for line in text.splitlines())
        words = [line for line in lines if line and not line.startswith("#")]
    return frozenset(map(_folded, words))


def _folded(word: str) -> str:
    return word.casefold().replace("’", "'")


ENGLISH_STOP_WORDS = read_stop_words(Path(__file__).with_name("english_stop_words.txt"))


def word_spans(text: str) -> list[Span]:
    """Find the words of a text that could be replaced without hurting what is around them.

    A word is two or more letters, possibly with hyphens or apostrophes inside, as NLTK's
    ``NLTKWordTokenizer`` finds it (no data download), without the punctuation around it. Left out
    are parts of something longer: contractions (`ca|n't`), abbreviations with inner full stops,
    URLs, e-mail addresses, file names, numbers with units; and scripts without spaces between
    words (Han, Kana, Thai, Lao, Khmer, Myanmar), for which your own splitter can be passed
    wherever this function is the default. The places are in order and do not overlap.
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
    # A possessive is not a part of the noun before it.
    after = text[end : end + 2]
    if text[end : end + 1] in ("'", "’") and text[end + 1 : end + 2] in ("s", "S"):
        after = text[end + 2 : end + 4]
    return not _continues(before) and not _continues(after)


def _continues(next_to: str) -> bool:
    """Check whether a word continues in the one or two characters next to it, nearest first."""
    if not next_to:
        return False
    if _is_letter_or_digit(next_to[0]) or next_to[0] in "_@#\\":
        return True
    if next_to[0] not in _JOINERS or len(next_to) == 1:
        return False
    return next_to[1] in "/\\" or _is_letter_or_digit(next_to[1])


def case_pattern(word: str) -> str:
    """Return ``lower``, ``upper``, ``title``, ``none`` (no case) or ``mixed``."""
    if word.islower():
        return "lower"
    if word.isupper():
        return "upper"
    if word[:1].title() == word[:1] and word[1:].islower():
        return "title"
    return "none" if word.upper() == word.lower() else "mixed"


def fit_case(candidate: str, pattern: str) -> str | None:
    """Write a candidate in the case pattern of the word that it is to replace.

    ``None`` where it cannot stand there, such as a name in capitals for a lower-case word.
    """
    if pattern == "lower":
        return candidate if candidate == candidate.lower() else None
    if pattern == "title":
        return candidate[0].title() + candidate[1:]
    if pattern == "upper":
        return candidate.upper()
    return candidate


def is_plain_word(word: str) -> bool:
    """Check that a candidate is two or more letters and nothing else."""
    return len(word) > 1 and _is_letter(word[0]) and all(map(_is_letter, word))


def article_before(text: str, start: int) -> str | None:
    """Return the English article ``a`` or ``an`` right before a place, in lower case."""
    found = _ARTICLE.search(text[max(start - 8, 0) : start])
    return found and found[1].lower()


def sounds_like_a_vowel(word: str) -> bool:
    """Guess whether an English word begins with a vowel sound, so that it takes ``an``."""
    word = unicodedata.normalize("NFD", word.lower())
    if word.startswith(_VOWEL_SOUNDS):
        return True
    return word[:1] in _VOWELS and not word.startswith(_CONSONANT_SOUNDS)


def ending(word: str) -> str:
    """Guess the English inflection of a word: ``ing``, ``ed``, ``ly``, ``est``, ``s`` or none."""
    word = word.lower()
    if len(word) < 4 or word.endswith("ss"):
        return ""
    return next((e for e in _ENDINGS if word.endswith(e)), "")


class Fit(NamedTuple):
    """The conditions that a word sets for its replacements."""

    word: str
    pattern: str
    article: str | None
    stop_words: Collection[str]

    @classmethod
    def of(cls, text: str, span: tuple[int, int], stop_words: Collection[str]) -> Fit:
        """Read the conditions of the word at a place of a text."""
        start, end = span
        word = text[start:end]
        article = article_before(text, start)
        if article is not None and (article == "an") != sounds_like_a_vowel(word):
            # Not an English article, or not used as this module assumes: nothing to judge by.
            article = None
        return cls(word, case_pattern(word), article, stop_words)

    def __call__(self, candidate: str) -> str | None:
        """Return the candidate in the word's case, or ``None`` if it does not fit.

        It must be a word of letters, neither the word itself nor a stop word, and agree with
        ``a`` or ``an`` before it.
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
    """Check that a word is neither a stop word nor a mixture of cases such as `iPhone`."""
    return case_pattern(word) != "mixed" and _folded(word) not in stop_words
