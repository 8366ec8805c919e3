"""The words that stand for labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LabelWords = Mapping[str, Sequence[str]]
"""The words of each label; a label's place is its number."""


def read_label_words(items: Sequence[str]) -> dict[str, list[str]]:
    """Read ``label=word,word`` or ``label``, which is then its own word.

    Raises:
        ValueError: an item has another form, or names a label for the second time.
    """
    found: dict[str, list[str]] = {}
    for item in items:
        label, given, words = item.partition("=")
        label = label.strip()
        if label in found:
            raise ValueError(
                f"label_words: the label {label!r} is given twice; write all its words after one "
                f"`{label}=`, with commas between."
            )
        found[label] = [word.strip() for word in words.split(",")] if given else [label]
    return found


def check_label_words(label_words: LabelWords) -> dict[str, list[str]]:
    """Check the words of labels, before a tokenizer sees them.

    Raises:
        ValueError: there are fewer than two labels, a label or a word is empty, or a word is given
            twice; names it.
    """
    if len(label_words) < 2:
        raise ValueError(
            f"label_words has {len(label_words)} labels ({', '.join(label_words) or 'none'}); name "
            "at least two, such as positive=good,great negative=bad."
        )
    owner: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for label, words in label_words.items():
        if isinstance(words, str):
            raise ValueError(f"label_words[{label!r}] is the text {words!r}; pass a list of words.")
        if not label.strip():
            raise ValueError("label_words has a label without a name; write label=word.")
        if not words:
            raise ValueError(f"label_words: the label {label!r} has no words; name at least one.")
        for word in words:
            if not word.strip():
                raise ValueError(
                    f"label_words: a word of the label {label!r} is empty; remove the comma too "
                    "many, or write the word."
                )
            if word != word.strip():
                raise ValueError(
                    f"label_words: the word {word!r} of the label {label!r} begins or ends with a "
                    "space; leave it out: the space before a word is added where it belongs."
                )
            if word in owner:
                raise ValueError(
                    f"label_words: the word {word!r} is given for {owner[word]!r} and for "
                    f"{label!r}; each word stands for one label, once."
                )
            owner[word] = label
        found[label] = list(words)
    return found
