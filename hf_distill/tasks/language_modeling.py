"""Language models, masked and causal: blocks of plain text, masks and perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    EvalPrediction,
    Trainer,
)

from hf_distill.alignment import TeacherReader
from hf_distill.alignment.blocks import (
    encode_block_for_teacher,
    frame_of,
    joined,
    report_aligned,
    spans_of_texts,
    specials,
    teacher_columns,
)
from hf_distill.heads import CausalLMHead, MaskedLMHead
from hf_distill.heads.base import IGNORED
from hf_distill.tasks.base import (
    Batch,
    Encoded,
    Measures,
    Model,
    Rows,
    Scorer,
    Task,
    Tokenizer,
    check_usable,
    pipeline_usage,
)
from hf_distill.tasks.columns import checked_texts, find_text, pick_columns
from hf_distill.tasks.metrics import perplexity_metric, token_scores

# Lines of a text file that belong together, in characters: an example to time or to sample.
_PASSAGE = 2_000
_MEASURES = Measures(
    {"perplexity": "perplexity", "accuracy": "accuracy (most likely token)"},
    {"identical": "same most likely token as the teacher"},
    frozenset({"perplexity"}),
)
# Of the masks that scores are computed with; any number, but always the same.
_MASK_SEED = 0
_GENERATED = 32


class LanguageModelingTask(Task):
    """Blocks of text in, the likelihood of their tokens out."""

    masked: ClassVar[bool]
    keep_line_breaks = True
    limit = "--block_size"
    default_length = 512

    def rows(self, table: Dataset, *, labelled: bool = True) -> Dataset:
        """Pick ``text``.

        With ``join_texts`` the lines of a text file, which end with their line break, become
        passages of some 2,000 characters. A text that ends with a line break continues in the next
        row.
        """
        column = find_text(table, self.options.text_column)
        checked_texts(table, column, "text_column")
        rows = pick_columns(table, {"text": column})
        if not self.options.join_texts:
            return rows.filter(lambda row: bool(row["text"].strip()))
        passages = [""]
        for text in rows["text"]:
            if passages[-1] and not (passages[-1].endswith("\n") and len(passages[-1]) < _PASSAGE):
                passages.append("")
            passages[-1] += text
        return Dataset.from_dict({"text": passages})

    def encoder(
        self,
        examples: Dataset,
        tokenizer: Tokenizer,
        model: Model,
        *,
        training: bool,
        labelled: bool,
        teacher: TeacherReader | None = None,
    ) -> Callable[[Batch, list[int]], dict[str, list[Any]]]:
        """Cut texts into blocks of tokens, some of them shorter.

        With ``join_texts``, texts (1,000 at a time) are written one after the other, so that no
        token is lost; a text that does not end with a line break ends with the tokenizer's
        end-of-sequence token, if it has one. Otherwise a row is a block, and cut where it is
        longer. Blocks of masked models have special tokens on both ends.

        The labels of a causal model are the tokens. The masks of a masked model are drawn here for
        scores, so that all models are scored on the same tokens, and in training by the collator.

        Raises:
            ValueError: ``block_size`` does not fit the model, or the tokenizer has no mask token.
        """
        masked, probability = self.masked, self.options.mlm_probability
        if masked and tokenizer.mask_token_id is None:
            raise ValueError(
                f"The tokenizer ({type(tokenizer).__name__}) has no mask token, so the model is "
                "not a masked language model; choose another model or --task text-generation."
            )
        if not 0 < probability < 1:
            raise ValueError(f"--mlm_probability {probability} must be between 0 and 1.")
        begin, end = frame_of(tokenizer)
        if not masked:
            end = []
        size = self.length(tokenizer, model) - len(begin) - len(end)
        if size < 2:
            raise ValueError(
                f"--block_size {self.options.block_size} leaves no room for text next to the "
                "special tokens."
            )
        stop, join = tokenizer.eos_token_id, self.options.join_texts

        def encode(batch: Batch, places: list[int]) -> dict[str, list[Any]]:
            # Quietly: blocks are cut here, however long a text is.
            encoding = tokenizer(batch["text"], add_special_tokens=False, verbose=False)
            texts = [
                one if stop is None or text.endswith("\n") else [*one, stop]
                for text, one in zip(batch["text"], encoding["input_ids"], strict=True)
            ]
            lengths = [len(text) for text in texts]
            cuts = [(number, 0) for number in range(len(texts))]
            if join:
                texts = [[token for text in texts for token in text]]
                cuts = [(0, cut) for cut in range(0, len(texts[0]), size)]
            # The first token of a causal block is predicted by none.
            least = 1 if masked else 2
            parts = [(number, slice(cut, cut + size)) for number, cut in cuts]
            parts = [
                (number, part)
                for number, part in parts
                if texts[number][part] and len(begin) + len(texts[number][part]) >= least
            ]
            blocks = [begin + texts[number][part] + end for number, part in parts]
            cut = [not join and len(texts[number]) > size for number, _ in parts]
            columns: dict[str, list[Any]] = {"input_ids": blocks, "truncated": cut}
            if teacher is not None:
                spans = spans_of_texts(batch["text"], encoding, tokenizer, lengths, join=join)
                whole = ["".join(batch["text"])] if join else batch["text"]
                rows = [
                    encode_block_for_teacher(
                        whole[number],
                        joined(
                            [specials(len(begin)), spans[number].part(part), specials(len(end))]
                        ),
                        teacher,
                        masked=masked,
                    )
                    for number, part in parts
                ]
                names = teacher_columns(teacher)
                columns |= {name: [row[name] for row in rows] for name in names}
            if not masked:
                columns["labels"] = blocks
            elif not training:
                drawn = [
                    draw_masks(block, tokenizer, probability, (_MASK_SEED, places[0], number))
                    for number, block in enumerate(blocks)
                ]
                columns["input_ids"], columns["labels"] = ([p[i] for p in drawn] for i in (0, 1))
            return columns

        return encode

    def features(self, *args: Any, teacher: TeacherReader | None = None, **options: Any) -> Encoded:
        """As every task's; with a ``teacher``, write how many tokens can be compared with it."""
        encoded = super().features(*args, teacher=teacher, **options)
        if teacher is not None:
            report_aligned(encoded.features, masked=self.masked)
        return encoded

    def data_collator(self, tokenizer: Tokenizer, model: Model) -> Callable[..., Any]:
        probability = self.options.mlm_probability if self.masked else None
        return BlockCollator(tokenizer, mlm_probability=probability)

    def scorer(
        self, examples: Dataset, features: Dataset, tokenizer: Tokenizer, model: Model
    ) -> LanguageModelingScorer:
        return LanguageModelingScorer(shifted=not self.masked)


class MaskedLanguageModelingTask(LanguageModelingTask):
    """Blocks of text with masks in, the hidden tokens out."""

    name = "fill-mask"
    head = MaskedLMHead
    timed = "text to the most likely token in each place"
    usage = (
        "from transformers import AutoModelForMaskedLM, AutoTokenizer\n\n"
        'model = AutoModelForMaskedLM.from_pretrained("{name}")\n'
        'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    )
    masked = True


class CausalLanguageModelingTask(LanguageModelingTask):
    """Blocks of text in, the next token of each place out."""

    name = "text-generation"
    head = CausalLMHead
    timed = f"{_GENERATED} tokens written after the beginning of a text"
    usage = pipeline_usage(name, "Once upon a time")
    masked = False

    def predictor(
        self, model: Model, tokenizer: Tokenizer, batch_size: int
    ) -> Callable[[Rows], object]:
        """Continue the beginnings of texts by ``_GENERATED`` tokens."""
        room = self.length(tokenizer, model)
        length = max(1, min(_GENERATED, room - _GENERATED))
        new = min(_GENERATED, room - length)
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
                # On the left: a text continues where it ends.
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
        """Keep two numbers per token instead of a whole vocabulary."""
        return token_scores(logits, labels, shifted=self.shifted)

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        kept: Any = eval_prediction.predictions
        losses, top = kept
        labels: Any = eval_prediction.label_ids
        labels = labels[:, 1:] if self.shifted else labels
        check_usable(np.isnan(losses) & (labels != IGNORED), "block")
        self.predictions = top[labels != IGNORED]
        self.metric = perplexity_metric(losses, top, labels)
        scores = self.metric.scores()
        self._loss = scores.pop("loss_per_token")
        return scores

    def finish(self, trainer: Trainer) -> dict[str, float]:
        """Return the loss as the mean over tokens; ``Trainer`` takes the mean over batches."""
        return {"loss": self._loss}

    def agreement(self, teacher: LanguageModelingScorer) -> dict[str, float]:
        """Return the share of tokens for which both find the same token most likely."""
        sides = [np.asarray(scorer.predictions) for scorer in (self, teacher)]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"The models cut the same text into {len(sides[0])} and {len(sides[1])} tokens, so "
                "they have different tokenizers or lengths; pass --block_size, and compare models "
                "with the same tokenizer."
            )
        return {"identical": float(np.mean(sides[0] == sides[1]))}


class BlockCollator:
    """A data collator for blocks: pads them, and draws masks for those without labels.

    Args:
        tokenizer: the model's. It need not have a padding token: what is padded is masked out.
        mlm_probability: for a masked language model the share of the tokens to be predicted, drawn
            again for each batch (``DataCollatorForLanguageModeling``); ``None`` for a causal one.
    """

    def __init__(self, tokenizer: Tokenizer, *, mlm_probability: float | None = None) -> None:
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


def draw_masks(
    block: Sequence[int],
    tokenizer: Tokenizer,
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
