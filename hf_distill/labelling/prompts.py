"""Prompts: a template, the texts of a row, and one of the words that may follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from string import Formatter, ascii_letters
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

# Takes the place of the function of transformers, which shows the time of each call. A template can
# be given values but no functions.
_STRFTIME = (
    "{% macro strftime_now(format) %}{% set ns = namespace(text=format) %}"
    "{% for code, text in date_codes.items() %}{% set ns.text = ns.text.replace(code, text) %}"
    "{% endfor %}{{ ns.text }}{% endmacro %}\n"
)


class EncodedRow(NamedTuple):
    """A row's prompt with each of the words.

    Attributes:
        prefix: the tokens that the prompt has in common with all words.
        endings: for each word the tokens after them.
        cut: a text was too long, and its end was left out.
    """

    prefix: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]
    cut: bool


def default_prompt(words: Sequence[str], fields: Sequence[str], *, chat: bool) -> str:
    """Return a prompt that shows the texts and lists the words, one for each label."""
    choices = f"{', '.join(words[:-1])} or {words[-1]}"
    texts = "\n".join(
        f"Text{f' {place}' * (len(fields) > 1)}: {{{field}}}"
        for place, field in enumerate(fields, start=1)
    )
    what = "these texts" if len(fields) > 1 else "this text"
    question = f"Which describes {what}: {choices}?"
    return f"{texts}\n\n{question}" if chat else f"{texts}\n\nQuestion: {question}\nAnswer:"


class Prompt:
    """Writes the texts of a row into a template and encodes them, followed by each word.

    A word is encoded together with the prompt, so it gets the tokens that the model knows it by in
    that place. What is scored are the tokens that differ between the words.

    Args:
        template: the prompt, with the fields in braces; ``{{`` and ``}}`` are braces.
        columns: the columns that fields may name, and the names of these in the data.
        words: all words.
        tokenizer: a fast one.
        chat: write the prompt as a user's message, and the word as the answer, by the chat
            template of the tokenizer.
        max_length: the most tokens of a prompt with a word. Longer texts are cut at their end, the
            longest one until it is as long as the next; the template is kept whole.
        date: the one that a chat template may show. The same for all rows, so that a run which is
            resumed later gives the same prompts.

    Raises:
        ValueError: the template has no field, or one that names no column or is not closed; or
            the tokenizer has no chat template.
    """

    def __init__(
        self,
        template: str,
        columns: Mapping[str, str],
        words: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: bool,
        max_length: int,
        date: datetime,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"processing_class is a {type(tokenizer).__name__}; texts are cut by the places of "
                "their tokens, which only a fast tokenizer knows."
            )
        if chat and not tokenizer.chat_template:
            raise ValueError(
                "chat: the tokenizer has no chat template; use no (False), or a model with one."
            )
        self.template = template
        self._pieces = _divided(template, columns)
        self.columns = list(dict.fromkeys(column for _, column in self._pieces if column))
        self._words = words
        self._tokenizer = tokenizer
        self._chat = chat
        self._max_length = max_length
        self._date = None
        self._dated: dict[str, Any] = {}
        if chat and "strftime_now" in (chat_template := tokenizer.get_chat_template()):
            codes = [f"%{flag}{letter}" for flag in ("", "-") for letter in ascii_letters]
            self._date = date
            self._dated = {
                "chat_template": _STRFTIME + chat_template,
                "date_codes": {code: date.strftime(code) for code in codes},
            }
        # What a tokenizer puts in front of a text, such as <s>; what it puts behind it would stand
        # between the prompt and the word.
        probe = tokenizer("a", return_special_tokens_mask=True)
        special = [*probe["special_tokens_mask"], 0].index(0)
        self._begin = [] if chat else probe["input_ids"][:special]

    def encode(self, texts: Mapping[str, str]) -> EncodedRow:
        """Encode the texts of a row, by column.

        Raises:
            ValueError: the prompt is too long even without any text, or there is nothing before
                the words.
        """
        texts = dict(texts)
        cut = False
        while True:
            encoded = self._encode(texts)
            excess = max(map(len, encoded)) - self._max_length
            if excess <= 0:
                break
            cut = True
            self._shorten(texts, excess)
        length = _common_length(encoded)
        if length == 0:
            raise ValueError(
                "prompt: it has no token before the words where a text is empty; write something "
                f"after the field, such as {self.template + ' Answer:'!r}."
            )
        endings = tuple(tuple(ids[length:]) for ids in encoded)
        return EncodedRow(tuple(encoded[0][:length]), endings, cut)

    def written(self, texts: Mapping[str, str], word: str) -> str:
        """Return the prompt with the texts and a word."""
        prompt = "".join(text if column is None else texts[column] for text, column in self._pieces)
        if self._chat:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": word}]
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, continue_final_message=True, **self._dated
                )
            )
        # A space belongs to the word after it (" good" is one token), not to the prompt.
        stripped = prompt.rstrip(" ")
        return stripped + ("" if stripped.endswith("\n") else " ") + word

    @property
    def identity(self) -> dict[str, Any]:
        """Describe the prompt for a manifest, the chat template by what it makes of a word."""
        texts = {column: f"{{{column}}}" for column in self.columns}
        return {
            "template": self.template,
            "chat": self._chat,
            "max_length": self._max_length,
            "date": None if self._date is None else self._date.isoformat(),
            "written": self.written(texts, self._words[0]),
        }

    def _encode(self, texts: Mapping[str, str]) -> list[list[int]]:
        whole = [self.written(texts, word) for word in self._words]
        found = self._tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
        return [[*self._begin, *ids] for ids in found]

    def _shorten(self, texts: dict[str, str], excess: int) -> None:
        """Leave out the last tokens of the longest texts, at least one."""
        places = {
            column: self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )["offset_mapping"]
            for column, text in texts.items()
        }
        # A text that is shown twice takes its place twice.
        lengths = sorted(len(places[column]) for _, column in self._pieces if column)
        if lengths[-1] == 0:
            raise ValueError(
                f"max_length={self._max_length}: the prompt alone has {excess} tokens more; "
                "shorten it, or raise max_length if the model takes more."
            )
        room, most = max(sum(lengths) - excess, 0), 0
        for shorter, length in enumerate(lengths):
            most = room // (len(lengths) - shorter)
            if length > most:
                break
            room -= length
        for column, found in places.items():
            if len(found) > most:
                end = found[most - 1][1] if most else 0
                # Several tokens may be bytes of one character.
                texts[column] = texts[column][: min(end, len(texts[column]) - 1)]


def _divided(template: str, columns: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Divide a template into texts, and fields, each with its column."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"prompt={template!r}: {error}; write {{{{ and }}}} for braces that are no field."
        ) from None
    pieces: list[tuple[str, str | None]] = []
    for text, field, options, conversion in parsed:
        if text:
            pieces.append((text, None))
        if field is None:
            continue
        if field not in columns or options or conversion:
            shown = (
                field
                + (f"!{conversion}" if conversion else "")
                + (f":{options}" if options else "")
            )
            raise ValueError(
                f"prompt: the field {{{shown}}} is not a text column of the data; there are "
                f"{', '.join(columns)}. Write {{{{ and }}}} for braces that are no field."
            )
        pieces.append((f"{{{field}}}", columns[field]))
    if not any(column for _, column in pieces):
        raise ValueError(
            f"prompt={template!r} shows no text of the data; write a field into it, such as "
            f"{{{next(iter(columns))}}}."
        )
    return pieces


def _common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all sequences begin with."""
    for place, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, sequences))
