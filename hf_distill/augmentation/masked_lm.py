"""What a masked language model would write in the place of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.alignment.blocks import frame_of
from hf_distill.augmentation.forward import LogitsAtPlaces
from hf_distill.augmentation.masking import MASKINGS, Pass, passes, whole_tokens
from hf_distill.augmentation.vocabulary import WholeWords
from hf_distill.augmentation.words import Span
from hf_distill.compatibility.models import input_limit
from hf_distill.loading import fewest_tokens, load_fine_tuned, load_tokenizer
from hf_distill.teachers.columns.encoding import stable_topk

LONGEST = 512
DTYPES = ("float32", "bfloat16", "float16")


class MaskedWord(NamedTuple):
    """A word that the model knows as one token, and what it would write instead.

    Attributes:
        text: the index of the text.
        span: the word's place in it.
        words: whole words, likeliest first.
    """

    text: int
    span: Span
    words: list[str]


class MaskedLanguageModel:
    """A masked language model that proposes words.

    Args:
        model: any ``AutoModelForMaskedLM``; it is put in evaluation mode.
        tokenizer: its tokenizer, a fast one with a mask token.
        masking: ``grouped`` or ``single``; see ``masking.passes``.
        batch_size: windows that are computed at a time.
        device: where to compute; the model is moved there. By default an accelerator, if there is
            one.
        longest: most tokens of a window, special ones included; by default 512, or fewer if the
            model takes fewer.

    Raises:
        ValueError: the tokenizer is a slow one, has no mask token or is not the model's; an
            option is not one of those above.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        masking: str = "grouped",
        batch_size: int = 16,
        device: str | torch.device | None = None,
        longest: int | None = None,
    ) -> None:
        if masking not in MASKINGS:
            raise ValueError(f"masking={masking!r} must be one of {', '.join(MASKINGS)}.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        embeddings: Any = model.get_input_embeddings()
        _check_tokenizer(tokenizer, int(embeddings.weight.shape[0]))
        self.masking = masking
        self.batch_size = batch_size
        self.device = torch.device(device or _default_device())
        self._tokenizer = tokenizer
        self._prefix, self._suffix = frame_of(tokenizer)
        self._longest = _longest(longest, model, tokenizer) - len(self._prefix + self._suffix)
        pad = tokenizer.pad_token_id
        module: torch.nn.Module = model
        module.to(self.device).eval()
        self._logits = LogitsAtPlaces(
            model,
            self._mask if pad is None else int(pad),
            [*self._prefix, *[self._mask] * 4, *self._suffix],
        )
        self._words = WholeWords.of(tokenizer, self._logits([[self._mask]], [(0, 0)]).shape[-1])
        self._select(self._words.anywhere)
        if not len(self._columns):
            raise ValueError(
                f"no token of tokenizer={tokenizer.name_or_path!r} is a word of two letters or "
                "more; choose a masked language model whose vocabulary has words."
            )

    @classmethod
    def from_pretrained(
        cls, model: str, *, tokenizer: str | None = None, dtype: str = "float32", **options: Any
    ) -> MaskedLanguageModel:
        """Load a model.

        Args:
            model: a folder or a Hub id.
            tokenizer: that of the tokenizer, if it is elsewhere.
            dtype: the number format to compute in: float32, bfloat16 or float16.
            **options: as for the class.

        Raises:
            OSError: the model does not exist.
            ValueError: it is no masked language model, or an option is wrong.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}.")
        loaded = load_fine_tuned(
            "AutoModelForMaskedLM",
            model,
            task="fill-mask",
            dtype=getattr(torch, dtype),
            name=f"model={model!r}",
        )
        return cls(loaded, load_tokenizer(tokenizer or model), **options)

    def forbid(self, words: frozenset[str]) -> None:
        """Never propose these words (in folded case) from now on."""
        allowed = [bool(text) and text.casefold() not in words for text in self._words.texts]
        self._select(self._words.anywhere & torch.tensor(allowed))

    def _select(self, allowed: Tensor) -> None:
        """Propose these tokens only, a bool for each of the vocabulary."""
        columns = allowed.nonzero().flatten()
        self._columns = columns.to(self.device)
        self._not_after_space = ~self._words.after_space[columns].to(self.device)
        self._texts = [self._words.texts[token] for token in columns.tolist()]
        self._own = {token: column for column, token in enumerate(columns.tolist())}

    def propose(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], count: int
    ) -> Iterator[MaskedWord]:
        """Propose replacements for the words that are one token.

        Args:
            texts: the texts.
            spans: the places of the words in each, in order, not overlapping.
            count: how many words to propose for each, at most.

        Yields:
            One item for each word that is one token, in any order. The word itself is not
            proposed; nor are special tokens, pieces of words, numbers and punctuation.
        """
        encoded = [_Encoded.of(text, self._tokenizer) for text in texts]
        unknown = self._tokenizer.unk_token_id
        todo: list[Pass] = []
        spans_at: list[dict[int, Span]] = []
        for index, (one, wanted) in enumerate(zip(encoded, spans, strict=True)):
            tokens = {one.tokens[span]: span for span in wanted if span in one.tokens}
            spans_at.append({t: span for t, span in tokens.items() if one.ids[t] != unknown})
            todo += passes(
                index,
                len(one.ids),
                sorted(spans_at[-1]),
                longest=self._longest,
                masking=self.masking,
            )
        todo.sort(key=lambda a_pass: a_pass.window.end - a_pass.window.start)
        for start in range(0, len(todo), self.batch_size):
            batch = todo[start : start + self.batch_size]
            places = [(a_pass.text, token) for a_pass in batch for token in a_pass.tokens]
            for (text, token), words in zip(
                places, self._predict(batch, encoded, count), strict=True
            ):
                yield MaskedWord(text, spans_at[text][token], words)

    def _predict(self, batch: list[Pass], encoded: list[_Encoded], count: int) -> list[list[str]]:
        rows: list[list[int]] = []
        places: list[tuple[int, int]] = []
        own: list[int | None] = []
        after_space: list[bool] = []
        for row, one in enumerate(batch):
            text = encoded[one.text]
            ids = text.ids[one.window.start : one.window.end]
            for token in one.tokens:
                ids[token - one.window.start] = self._mask
                places.append((row, len(self._prefix) + token - one.window.start))
                own.append(self._own.get(text.ids[token]))
                after_space.append(token in text.after_space)
            rows.append([*self._prefix, *ids, *self._suffix])
        with torch.inference_mode():
            logits = self._logits(rows, places).index_select(1, self._columns).float()
            if bool(self._not_after_space.any()):
                spaced = torch.tensor(after_space, device=self.device)[:, None]
                logits.masked_fill_(spaced & self._not_after_space, -torch.inf)
            # One more, for the word itself may be among them.
            logits.masked_fill_(logits.isnan(), -torch.inf)
            values, columns = stable_topk(logits, min(count + 1, logits.shape[-1]))
        return [
            [
                self._texts[column]
                for value, column in zip(*line, strict=True)
                if value > -torch.inf and column != itself
            ][:count]
            for itself, *line in zip(own, values.tolist(), columns.tolist(), strict=True)
        ]

    @property
    def _mask(self) -> int:
        return int(self._tokenizer.mask_token_id)


class _Encoded(NamedTuple):
    """A text in tokens: their ids, those that are whole words by place, those after a space."""

    ids: list[int]
    tokens: dict[tuple[int, int], int]
    after_space: frozenset[int]

    @classmethod
    def of(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> _Encoded:
        try:
            encoding = tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
        except (TypeError, UnicodeEncodeError):
            # Half a surrogate pair, as JSON can have it, is no text to a tokenizer.
            return cls([], {}, frozenset())
        tokens = whole_tokens(text, encoding["offset_mapping"])
        after_space = frozenset(
            token for (start, _), token in tokens.items() if start and text[start - 1].isspace()
        )
        return cls(encoding["input_ids"], tokens, after_space)


def _default_device() -> str:
    accelerator = torch.accelerator.current_accelerator()
    usable = accelerator is not None and torch.accelerator.is_available()
    return str(accelerator) if usable else "cpu"


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    name = f"tokenizer={tokenizer.name_or_path!r}"
    if not tokenizer.is_fast:
        raise ValueError(
            f"{name} ({type(tokenizer).__name__}) is a slow one, which cannot say where in the "
            "text a token is; choose a model with a fast tokenizer."
        )
    if tokenizer.mask_token_id is None:
        raise ValueError(f"{name} has no mask token; choose that of a masked language model.")
    if max(tokenizer.get_vocab().values()) >= size:
        raise ValueError(
            f"{name} has tokens up to {max(tokenizer.get_vocab().values())}, but the model only "
            f"{size}; choose the tokenizer that it was trained with."
        )


def _longest(wanted: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    most = fewest_tokens(input_limit(model), tokenizer.model_max_length) or LONGEST
    if wanted is None:
        return min(most, LONGEST)
    if not 8 <= wanted <= most:
        raise ValueError(
            f"longest={wanted} must be at least 8 and at most the {most} tokens that the model "
            "takes."
        )
    return wanted
