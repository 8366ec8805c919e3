"""One tokenizer of each kind whose vocabulary can be trimmed, trained here on a few sentences."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Paris has been the capital of France since 987. It lies on the river Seine.",
    "Die Größe beträgt 1,5 km²; am 3. Oktober 1990 trat die DDR der Bundesrepublik bei.",
    "Which river does Paris lie on? How many people live there? Many thousands of people.",
    "Who wrote it, and when? The price was 12.50 € (about $13). Łódź liegt nicht am Meer.",
    "人口は二百万人です。 Москва столица России, and the capital of the country.",
    "hello hellos helloes hell shell shells unhelpful helpful helpfully help",
]
LOWEST = -60.0
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def words_of(tokenizer: Tokenizer) -> list[str]:
    """The words that a tokenizer divides the sentences into; trainers give them no fixed order."""
    texts = SENTENCES
    if tokenizer.normalizer is not None:
        texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    found = [tokenizer.pre_tokenizer.pre_tokenize_str(text) for text in texts]
    return sorted({word for words in found for word, _ in words})


def word_piece() -> PreTrainedTokenizerFast:
    """``##`` continues a word; special tokens in front, as BERT has them."""
    tokenizer = Tokenizer(models.WordPiece({}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = words_of(tokenizer)
    letters = sorted({letter for word in words for letter in word})
    starts = sorted({word[:size] for word in words for size in (2, 3, 5) if len(word) > 1})
    ends = sorted({f"##{word[size:]}" for word in words for size in (2, 3, 5)} - {"##"})
    pieces = dict.fromkeys([*SPECIAL, *letters, *(f"##{c}" for c in letters), *starts, *ends])
    numbers = {piece: i for i, piece in enumerate(pieces)}
    tokenizer.model = models.WordPiece(numbers, unk_token="<unk>")
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    return wrapped(tokenizer)


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes and merges, special tokens by a RoBERTa post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
        ]
    )
    return wrapped(tokenizer)


def characters() -> PreTrainedTokenizerFast:
    """Merges of characters, where the last one of a word is marked; unknown ones are ``<unk>``."""
    return of_merges(end_of_word_suffix="</w>")


def continued() -> PreTrainedTokenizerFast:
    """Merges of characters, where all but the first one of a word are marked."""
    return of_merges(continuing_subword_prefix="##")


def of_merges(**marks: str) -> PreTrainedTokenizerFast:
    """Words of the sentences, from left to right; what several begin with is merged first."""
    prefix, suffix = marks.get("continuing_subword_prefix", ""), marks.get("end_of_word_suffix", "")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    letters, merges = set(), {}
    for word in words_of(tokenizer):
        symbols = [word[0], *(prefix + letter for letter in word[1:])]
        symbols[-1] += suffix
        letters |= {*symbols}
        left = symbols[0]
        for right in symbols[1:]:
            merges[left, right] = left + right.removeprefix(prefix)
            left = merges[left, right]
    pieces = dict.fromkeys([*SPECIAL, *sorted(letters), *merges.values()])
    numbers = {piece: i for i, piece in enumerate(pieces)}
    tokenizer.model = models.BPE(numbers, [*merges], unk_token="<unk>", **marks)
    tokenizer.post_processor = templates()
    return wrapped(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Merges as SentencePiece has them: every split of a piece, ranked; bytes for the rest."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({c for text in SENTENCES[:4] for c in text.replace(" ", "▁")})
    words = ["▁h", "he", "▁he", "ll", "ell", "hell", "▁hell", "llo", "ello", "hello", "▁hello"]
    words += ["▁t", "th", "▁th", "▁the", "the", "er", "ri", "▁r", "▁ri", "iv", "ver", "▁river"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *letters, *words])}
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if {word[:cut], word[cut:]} <= vocabulary.keys()
    ]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = templates()
    return wrapped(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """Pieces with scores, unknown letters, further tokens after the pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    words = words_of(tokenizer)
    letters = sorted({letter for word in words for letter in word} - {"z"})
    parts = sorted({w[i : i + n] for w in words for n in (2, 3, 5) for i in (0, 2, 5)} - {""})
    scored = [*((piece, -8.0) for piece in letters), ("▁zzz", LOWEST)]
    scored += [(piece, -9.0) for piece in parts if len(piece) > 1]
    # No two alike, so that the best segmentation is one.
    pieces = [(piece, score - i / 1024) for i, (piece, score) in enumerate(scored)]
    tokenizer.model = models.Unigram([*((one, 0.0) for one in SPECIAL), *pieces], unk_id=3)
    tokenizer.add_tokens([AddedToken("<extra_0>", special=True), AddedToken("<extra_1>")])
    tokenizer.post_processor = templates()
    return wrapped(tokenizer)


def templates() -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    make.__name__: make
    for make in (word_piece, byte_level, characters, continued, byte_fallback, unigram)
}
