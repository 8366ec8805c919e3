"""Tokenizers with a few real words, and random masked language models that use them."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as post_processors
from transformers import PreTrainedTokenizerFast
from zoo import zoo_model

_TEXT = """
river city town house garden green blue quick slow happy sad runs walks sees finds boy girl
dog cat apple orange egg music hour unit long short old young stone water light dark road
bridge ship king queen paris rome london berlin vienna cairo france italy england germany
capital country big small lies stands near famous strong weak hand eye morning evening
"""
WORDS = _TEXT.split()
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VECTORS = """\
river 1.0 0.0 0.1
lake 0.9 0.1 0.1
sea 0.8 0.2 0.1
lakes 0.95 0.05 0.1
rivers 0.96 0.04 0.1
, 0.3 0.3 0.3
castle 0.0 1.0 0.0
palace 0.1 0.9 0.0
fortress 0.2 0.9 0.0
1999 0.1 0.95 0.0
the 0.1 0.92 0.0
"""
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!-'()\"[]é"


def wordpiece(*, lowercase: bool = True, words: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """As BERT's: `##` begins a piece that goes on."""
    pieces = [*SPECIAL, *_LETTERS, *(f"##{c}" for c in _LETTERS), *WORDS, "the", "is", "##ing"]
    if not lowercase:
        pieces += [c.upper() for c in _LETTERS if c.isalpha()]
        pieces += [word.title() for word in WORDS]
    pieces += words
    fast = Tokenizer(
        models.WordPiece({p: i for i, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]")
    )
    fast.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = post_processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast.decoder = decoders.WordPiece()
    return _wrapped(fast)


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: `Ġ` is the space before a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {p: i for i, p in enumerate([*SPECIAL, *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in ("ing", *WORDS, "the", "is"):
        left = word[0]
        for letter in word[1:]:
            if (left, letter) not in merges:
                merges.append((left, letter))
            left += letter
            vocabulary.setdefault(left, len(vocabulary))
    for word in (*WORDS, "the", "is"):
        merges.append(("Ġ", word))
        vocabulary.setdefault("Ġ" + word, len(vocabulary))
    fast = Tokenizer(models.BPE(vocabulary, merges, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.post_processor = post_processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast.decoder = decoders.ByteLevel()
    return _wrapped(fast)


def unigram() -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa's (SentencePiece): `▁` is the space before a word."""
    pieces = [(p, 0.0) for p in SPECIAL]
    pieces += [("▁", -8.0), *((c, -9.0) for c in _LETTERS + "ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
    pieces += [("▁" + word, -4.0) for word in (*WORDS, "the", "is")] + [("ing", -5.0)]
    fast = Tokenizer(models.Unigram(pieces, unk_id=1))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.post_processor = post_processors.RobertaProcessing(
        ("[SEP]", 3), ("[CLS]", 2), trim_offsets=False
    )
    fast.decoder = decoders.Metaspace()
    return _wrapped(fast)


def _wrapped(fast: Tokenizer) -> PreTrainedTokenizerFast:
    fast.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


TOKENIZERS = {
    "bert": wordpiece,
    "roberta": byte_level,
    "xlm-roberta": unigram,
    "distilbert": wordpiece,
    "electra": wordpiece,
    "albert": unigram,
    "mpnet": wordpiece,
    "deberta-v2": unigram,
    "modernbert": byte_level,
}


def masked_lm(architecture: str = "bert", tokenizer: Any = None, seed: int = 0) -> tuple[Any, Any]:
    """A random model of two layers for at most 64 tokens (62 for RoBERTa), and its tokenizer."""
    tokenizer = tokenizer or TOKENIZERS[architecture]()
    model = zoo_model(
        "fill-mask",
        architecture,
        seed=seed,
        layers=2,
        vocab_size=len(tokenizer),
        pad_token_id=0,
    )
    return model.eval(), tokenizer
