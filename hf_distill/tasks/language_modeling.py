"""Plain text for language models, causal and masked: blocks of tokens, masks and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_distill.heads.base import IGNORED
from hf_distill.tasks.columns import TEXTS, checked_texts, find_column, is_text
from hf_distill.tasks.encoding import Encoded, encode_rows, input_length
from hf_distill.tasks.errors import TaskDataError

DEFAULT_BLOCK = 512
# Lines of a text file that belong together, in characters: an example to time or to sample.
PASSAGE = 2_000


def text_rows(table: Dataset, *, text_column: str | None = None, join: bool = True) -> Dataset:
    """Pick the column of the texts.

    Args:
        table: any table.
        text_column: where the text is; guessed by default.
        join: make passages of some 2,000 characters of the lines of a text file, which end with
            their line break.

    Returns:
        The column ``text``. Texts that end with a line break go on in the next row.

    Raises:
        TaskDataError: the column cannot be found or does not hold texts, or all are empty.
    """
    texts = [name for name, feature in table.features.items() if is_text(feature)]
    usual = tuple(texts) if len(texts) == 1 else TEXTS
    column = find_column(table, "text_column", text_column, usual, "the text")
    checked_texts(table, column, "text_column")
    rows = table.select_columns([column])
    if column != "text":
        rows = rows.rename_column(column, "text")
    if not join:
        return rows.filter(lambda row: bool(row["text"].strip()))
    passages = [""]
    for text in rows["text"]:
        if passages[-1] and not (passages[-1].endswith("\n") and len(passages[-1]) < PASSAGE):
            passages.append("")
        passages[-1] += text
    return Dataset.from_dict({"text": passages})


def encode_blocks(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    block_size: int | None = None,
    join: bool = True,
    masked: bool = False,
    mask_seed: int | None = None,
    mlm_probability: float = 0.15,
    num_proc: int | None = None,
) -> Encoded:
    """Turn texts into blocks of tokens.

    Args:
        rows: as from ``text_rows``.
        tokenizer: of the model.
        model: says how long inputs may be.
        block_size: tokens of a block, special tokens included. By default 512, or fewer if the
            model takes fewer.
        join: write texts (1,000 at a time) one after the other and cut that into blocks, so that
            no token is lost; a text that does not end with a line break ends with the tokenizer's
            end-of-sequence token, if it has one. Otherwise a row is a block, and cut where it is
            longer.
        masked: for a masked language model: special tokens on both ends of a block.
        mask_seed: draw the masks here, the same ones for the same seed, so that all models are
            scored on the same tokens. By default they are left to the data collator.
        mlm_probability: share of the tokens that are to be predicted.
        num_proc: processes that do it.

    Returns:
        ``input_ids``, and ``labels``: for a causal model the same, for a masked one the tokens
        behind the masks and -100 elsewhere, and none if ``mask_seed`` is not given. Not
        padded: some blocks are shorter.

    Raises:
        TaskDataError: the text is too short to predict anything.
        ValueError: ``block_size`` does not fit the model, or the tokenizer has no mask token.
    """
    if masked and tokenizer.mask_token_id is None:
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has no mask token, so the model is no "
            "masked language model; choose another model or --task text-generation."
        )
    if not 0 < mlm_probability < 1:
        raise ValueError(f"--mlm_probability {mlm_probability} must be between 0 and 1.")
    begin, end = _frame(tokenizer)
    if not masked:
        end = []
    length = input_length(block_size, tokenizer, model, option="block_size", default=DEFAULT_BLOCK)
    size = length - len(begin) - len(end)
    if size < 2:
        raise ValueError(
            f"--block_size {block_size} leaves no room for text beside the special tokens."
        )
    stop = tokenizer.eos_token_id

    def encode(batch: dict[str, list[Any]], places: list[int]) -> dict[str, list[Any]]:
        # Quietly: blocks are cut here, however long a text is.
        encoding = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        texts = [
            ids if stop is None or text.endswith("\n") else [*ids, stop]
            for text, ids in zip(batch["text"], encoding, strict=True)
        ]
        pieces, truncated = _cut(texts, size, join)
        blocks = [begin + piece + end for piece in pieces]
        if not masked:
            # The first token of a block is predicted by none.
            kept = [place for place, block in enumerate(blocks) if len(block) > 1]
            blocks = [blocks[place] for place in kept]
            truncated = [truncated[place] for place in kept]
        columns: dict[str, list[Any]] = {"input_ids": blocks, "truncated": truncated}
        if not masked:
            columns["labels"] = blocks
        elif mask_seed is not None:
            drawn = [
                draw_masks(block, tokenizer, mlm_probability, (mask_seed, places[0], number))
                for number, block in enumerate(blocks)
            ]
            columns["input_ids"], columns["labels"] = ([p[side] for p in drawn] for side in (0, 1))
        return columns

    encoded = encode_rows(rows, encode, num_proc, "Tokenising", with_indices=True)
    if len(encoded.features) == 0:
        raise TaskDataError(
            "The data is too short: there is not one token of text to predict; add text, or choose "
            "another text_column."
        )
    return encoded


def draw_masks(
    block: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    probability: float,
    seed: tuple[int, ...],
) -> tuple[list[int], list[int]]:
    """Hide tokens as BERT's training does (Devlin et al. 2019, section 3.1), but at least one.

    Of the tokens to predict 80 % become the mask token, 10 % another token, 10 % stay.

    Args:
        block: token ids.
        tokenizer: knows the mask token, the special ones and the size of the vocabulary.
        probability: of each token that is not special to be predicted.
        seed: the same seed draws the same masks.

    Returns:
        The ids with masks, and the labels: the hidden ids, -100 elsewhere.
    """
    random = np.random.default_rng(seed)
    ids = np.array(block)
    special = np.isin(ids, np.array(tokenizer.all_special_ids))
    chosen = (random.random(len(ids)) < probability) & ~special
    places = np.flatnonzero(~special)
    if not chosen.any() and len(places):
        chosen[random.choice(places)] = True
    labels = np.where(chosen, ids, IGNORED)
    what = random.random(len(ids))
    others = random.integers(len(tokenizer), size=len(ids))
    ids = np.where(chosen & (what < 0.8), tokenizer.mask_token_id, ids)
    ids = np.where(chosen & (what >= 0.8) & (what < 0.9), others, ids)
    return ids.tolist(), labels.tolist()


class BlockCollator:
    """A data collator for blocks: pads them, and draws masks for those without labels.

    Args:
        tokenizer: of the model. It need not have a padding token: what is padded is masked out.
        mlm_probability: for a masked language model the share of the tokens to be predicted, drawn
            anew for each batch (``DataCollatorForLanguageModeling``); ``None`` for a causal one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, mlm_probability: float | None = None
    ) -> None:
        self._padding = {"input_ids": tokenizer.pad_token_id or 0, "labels": IGNORED}
        self._masking = None
        if mlm_probability is not None:
            self._masking = DataCollatorForLanguageModeling(
                tokenizer, mlm=True, mlm_probability=mlm_probability
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch: ``input_ids``, ``attention_mask`` and ``labels``, ``(rows, length)``."""
        width = max(len(row["input_ids"]) for row in rows)
        batch = {
            name: torch.tensor([[*row[name], *[fill] * (width - len(row[name]))] for row in rows])
            for name, fill in self._padding.items()
            if name in rows[0]
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        if self._masking is not None and "labels" not in batch:
            ids, labels = self._masking.torch_mask_tokens(batch["input_ids"])
            batch["input_ids"], batch["labels"] = ids, labels
        return batch


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    probe = "a"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full = tokenizer(probe)["input_ids"]
    for place in range(len(full) - len(bare) + 1):
        if full[place : place + len(bare)] == bare:
            return full[:place], full[place + len(bare) :]
    return [], []


def _cut(texts: Sequence[list[int]], size: int, join: bool) -> tuple[list[list[int]], list[bool]]:
    """Cut texts, joined or each for itself; the pieces, and whether the rest of one was dropped."""
    if join:
        stream = [token for text in texts for token in text]
        pieces = [stream[place : place + size] for place in range(0, len(stream), size)]
        return pieces, [False] * len(pieces)
    texts = [text for text in texts if text]
    return [text[:size] for text in texts], [len(text) > size for text in texts]
