"""Plain text for language models, causal and masked: blocks of tokens, masks and batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from hf_distill.heads.base import IGNORED
from hf_distill.tasks.base import Measures, Scorer, Task
from hf_distill.tasks.columns import TEXTS, checked_texts, find_column, is_text
from hf_distill.tasks.encoding import Encoded, encode_rows, input_length
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.forward import Rows, forward_predictor
from hf_distill.tasks.metrics import perplexity_scores, token_scores
from hf_distill.tasks.resampling import resample_perplexity
from hf_distill.tasks.tables import load_table

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


_MEASURES = Measures(
    {"perplexity": "perplexity", "accuracy": "accuracy (most likely token)"},
    {"identical": "same most likely token as the teacher"},
    frozenset({"perplexity"}),
)
# Of the masks that scores are computed with; any number, but always the same.
_MASK_SEED = 0
_GENERATED = 32


class _LanguageModelingTask(Task):
    """What both kinds have in common."""

    masked: bool
    limit = "--block_size"

    def load_data(
        self,
        source: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Load texts; the lines of a text file are put together to passages."""
        table = load_table(source, split=split, config_name=config_name, revision=revision)
        return text_rows(table, text_column=self.options.text_column, join=self.options.join_texts)

    def features(
        self,
        examples: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        training: bool,
        num_proc: int | None,
    ) -> Encoded:
        """One row a block; masks are drawn here for scores, by the collator in training."""
        return encode_blocks(
            examples,
            tokenizer,
            model,
            block_size=self.options.block_size,
            join=self.options.join_texts,
            masked=self.masked,
            mask_seed=None if training else _MASK_SEED,
            mlm_probability=self.options.mlm_probability,
            num_proc=num_proc,
        )

    def data_collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
    ) -> Callable[..., Any]:
        """Pads, and masks in training."""
        probability = self.options.mlm_probability if self.masked else None
        return BlockCollator(tokenizer, mlm_probability=probability)

    def scorer(
        self,
        examples: Dataset,
        features: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
    ) -> LanguageModelingScorer:
        """Perplexity."""
        return LanguageModelingScorer(shifted=not self.masked)

    def _length(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
        return input_length(
            self.options.block_size,
            tokenizer,
            model,
            option="block_size",
            default=DEFAULT_BLOCK,
        )


class MaskedLanguageModelingTask(_LanguageModelingTask):
    """Blocks of text with masks in, the hidden tokens out."""

    name = "fill-mask"
    auto_model = "AutoModelForMaskedLM"
    timed = "text to the most likely token in each place"
    masked = True

    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """Texts in, the most likely token in each place out."""
        length = self._length(tokenizer, model)

        def tokenize(rows: Rows) -> Mapping[str, Any]:
            return tokenizer([row["text"] for row in rows], truncation=True, max_length=length)

        return forward_predictor(model, tokenizer, batch_size, tokenize)


class CausalLanguageModelingTask(_LanguageModelingTask):
    """Blocks of text in, the next token of each place out."""

    name = "text-generation"
    auto_model = "AutoModelForCausalLM"
    timed = f"{_GENERATED} tokens written after the beginning of a text"
    masked = False

    def predictor(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        """The beginnings of texts in, their continuation by ``_GENERATED`` tokens out."""
        room = self._length(tokenizer, model) - _GENERATED
        length = max(1, min(_GENERATED, room))
        new = min(_GENERATED, self._length(tokenizer, model) - length)
        pad = tokenizer.pad_token_id or 0
        generator: Any = model

        def predict(examples: Rows) -> object:
            written = []
            for begin in range(0, len(examples), batch_size):
                rows = [
                    tokenizer(row["text"], truncation=True, max_length=length)["input_ids"] or [pad]
                    for row in examples[begin : begin + batch_size]
                ]
                width = max(map(len, rows))
                # On the left: a text goes on where it ends.
                ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
                lengths = torch.tensor([[len(row)] for row in rows])
                mask = (torch.arange(width) >= width - lengths).long()
                with torch.inference_mode():
                    # As many tokens for all models, so that their times can be compared.
                    written += generator.generate(
                        input_ids=ids.to(model.device),
                        attention_mask=mask.to(model.device),
                        do_sample=False,
                        num_beams=1,
                        min_new_tokens=new,
                        max_new_tokens=new,
                        pad_token_id=pad,
                    ).tolist()
            return written

        return predict


class LanguageModelingScorer(Scorer):
    """Scores the likelihood of each token, and keeps the most likely ones.

    Args:
        shifted: the logits of a token are about the next one, as in causal models.
    """

    measures = _MEASURES

    def __init__(self, *, shifted: bool) -> None:
        self.shifted = shifted
        self._loss = math.nan

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Two numbers a token instead of a whole vocabulary."""
        return token_scores(logits, labels, shifted=self.shifted)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Score what ``preprocess_logits`` kept."""
        kept: Any = eval_prediction.predictions
        losses, top = kept
        labels: Any = eval_prediction.label_ids
        labels = labels[:, 1:] if self.shifted else labels
        counts = labels != IGNORED
        self.predictions = top[counts]
        self.rows = len(labels)
        self.resampler = resample_perplexity(
            losses.sum(1), ((top == labels) & counts).sum(1), counts.sum(1)
        )
        scores = perplexity_scores(losses, top, labels)
        self._loss = scores.pop("loss_per_token")
        return scores

    def finish(self, trainer: Trainer) -> dict[str, float]:
        """The loss as the mean over tokens; ``Trainer`` takes the mean over batches."""
        return {"loss": self._loss}

    def agreement(self, teacher: LanguageModelingScorer) -> dict[str, float]:
        """The share of tokens for which both find the same token most likely."""
        sides = [np.asarray(scorer.predictions) for scorer in (self, teacher)]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"The models cut the same text into {len(sides[0])} and {len(sides[1])} tokens, so "
                "they have different tokenizers or lengths; pass --block_size, and compare models "
                "with the same tokenizer."
            )
        return {"identical": float(np.mean(sides[0] == sides[1]))}
