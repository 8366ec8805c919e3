"""One tiny fast tokenizer of each kind that the features must cope with, made here."""

from __future__ import annotations

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXT = [
    "Paris has been the capital of France since 987. It lies on the Seine.",
    "Die Größe beträgt 1,5 km²; am 3. Oktober 1990 trat die DDR der Bundesrepublik bei.",
    "Which river does Paris lie on? How many people live there?",
    "Who wrote it, and when? The price was 12.50 € (about $13).",
] * 3


def bert(*, lowercase: bool = True) -> PreTrainedTokenizerFast:
    """[CLS] question [SEP] context [SEP], with token_type_ids, lower-casing."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def roberta() -> PreTrainedTokenizerFast:
    """<s> question </s></s> context </s>, bytes, without token_type_ids."""
    tokenizer = _byte_level(trim_offsets=True)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def untrimmed() -> PreTrainedTokenizerFast:
    """question <sep> context, bytes; no classification token; tokens own the space before."""
    tokenizer = _byte_level(trim_offsets=False)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="$A", pair="$A </s> $B", special_tokens=[("</s>", 2)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def sentencepiece() -> PreTrainedTokenizerFast:
    """<s> question </s></s> context </s>, pieces that begin with ▁."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_unigram("<s> $A </s> </s> $B </s>"),
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def left_padding() -> PreTrainedTokenizerFast:
    """context <sep> question <sep> <cls>, padded on the left, as XLNet does."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_unigram("$A </s> $B </s> <s>"),
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _byte_level(*, trim_offsets: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, trim_offsets=trim_offsets
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _unigram(pair: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    make.__name__: make() for make in (bert, roberta, untrimmed, sentencepiece, left_padding)
}
