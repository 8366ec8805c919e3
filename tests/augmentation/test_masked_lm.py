from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_lms import SPECIAL, TOKENIZERS, WORDS, masked_lm, wordpiece

from hf_distill.augmentation.masked_lm import MaskedLanguageModel
from hf_distill.augmentation.vocabulary import WholeWords
from hf_distill.augmentation.words import Span, word_spans

TEXTS = [
    "paris is the big capital of france",
    "the (river) is near",
    "quick",
    "london and the old bridge, a green garden and the dark stone house near the big town",
]


def proposals(lm: MaskedLanguageModel, texts: list[str], count: int = 5) -> dict[Any, list[str]]:
    spans = [word_spans(text) for text in texts]
    return {(one.text, one.span): one.words for one in lm.propose(texts, spans, count)}


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_whole_words_of_a_vocabulary(architecture: str) -> None:
    tokenizer = TOKENIZERS[architecture]()
    size = len(tokenizer) + 3
    words = WholeWords.of(tokenizer, size)
    after_space = {words.texts[i] for i in words.after_space.nonzero().flatten().tolist()}
    anywhere = {words.texts[i] for i in words.anywhere.nonzero().flatten().tolist()}
    # Nothing special, no pieces of words, no letters, no digits, no punctuation.
    assert set(WORDS) <= after_space and "ing" not in anywhere
    assert not {text for text in anywhere if len(text) < 2 or not text.isalpha()}
    assert not {text for text in anywhere if text.strip("[]").upper() in SPECIAL}
    assert anywhere == after_space
    assert words.after_space.shape == words.anywhere.shape == (size,)
    marks_spaces = not torch.equal(words.after_space, words.anywhere)
    assert marks_spaces is (architecture in ("roberta", "modernbert"))


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_single_masking_is_the_plain_way(architecture: str) -> None:
    model, tokenizer = masked_lm(architecture)
    lm = MaskedLanguageModel(model, tokenizer, masking="single", device="cpu", batch_size=3)
    found = proposals(lm, TEXTS)
    texts = WholeWords.of(tokenizer, len(tokenizer)).texts
    known = 0
    for index, text in enumerate(TEXTS):
        for span in word_spans(text):
            # The plain way: write the mask into the text, and sort the vocabulary.
            encoding = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
            offsets = encoding["offset_mapping"][0].tolist()
            tokens = [i for i, (s, e) in enumerate(offsets) if s < span.end and e > span.start]
            if len(tokens) > 1 or int(encoding["input_ids"][0, tokens[0]]) == 1:
                assert (index, span) not in found
                continue
            known += 1
            (place,) = tokens
            ids = encoding["input_ids"]
            own = ids[0, place].item()
            ids[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, place]
            order = logits.argsort(descending=True).tolist()
            allowed = WholeWords.of(tokenizer, len(tokenizer))
            spaced = span.start and text[span.start - 1].isspace()
            mask = allowed.after_space if spaced else allowed.anywhere
            expected = [texts[i] for i in order if mask[i] and i != own][:5]
            assert found[index, span] == expected
    assert known == len(found) > 8


def test_grouped_masking_hides_the_group() -> None:
    model, tokenizer = masked_lm()
    text = " ".join(WORDS[:20])
    spans = word_spans(text)
    lm = MaskedLanguageModel(model, tokenizer, masking="grouped", device="cpu")
    found = proposals(lm, [text])
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    # 20 tokens, 15 % of them are 3: words 0, 7, 14 are hidden together.
    hidden = ids.clone()
    hidden[0, [1, 8, 15]] = tokenizer.mask_token_id
    words = WholeWords.of(tokenizer, len(tokenizer))
    with torch.no_grad():
        logits = model(input_ids=hidden).logits[0]
    for place in (0, 7, 14):
        line = logits[place + 1].masked_fill(~words.anywhere, -torch.inf)
        line[ids[0, place + 1]] = -torch.inf
        assert found[0, spans[place]] == [words.texts[i] for i in line.topk(5).indices.tolist()]


@pytest.mark.parametrize("masking", ["grouped", "single"])
def test_neighbours_in_the_batch_do_not_matter(masking: str) -> None:
    lm = MaskedLanguageModel(*masked_lm(), masking=masking, device="cpu", batch_size=4)
    together = proposals(lm, TEXTS)
    for index, text in enumerate(TEXTS):
        alone = {(index, span): words for (_, span), words in proposals(lm, [text]).items()}
        assert alone == {key: words for key, words in together.items() if key[0] == index}


def test_every_word_of_a_long_text() -> None:
    model, tokenizer = masked_lm()
    text = " ".join(WORDS * 8)
    lm = MaskedLanguageModel(model, tokenizer, device="cpu")
    assert len(proposals(lm, [text])) == len(WORDS) * 8
    short = MaskedLanguageModel(model, tokenizer, device="cpu", longest=16, masking="single")
    found = proposals(short, [text])
    assert len(found) == len(WORDS) * 8
    # A word in the middle is predicted from the tokens around it: at least a quarter of a window.
    words = text.split()
    spans = word_spans(text)
    cut = " ".join(words[200:214])
    middle = word_spans(cut)
    starts = {found[0, spans[200 + i]] == proposals(short, [cut])[0, middle[i]] for i in range(14)}
    assert starts == {True, False}


@pytest.mark.parametrize("text", ["", " ", "...", "12 34", "\ud800 river", "東京", "😀"])
def test_texts_without_a_word(text: str) -> None:
    lm = MaskedLanguageModel(*masked_lm(), device="cpu")
    assert proposals(lm, [text]) == {}


def test_the_words_are_found_in_text_with_half_a_surrogate_beside_it() -> None:
    lm = MaskedLanguageModel(*masked_lm(), device="cpu")
    assert [key[0] for key in proposals(lm, ["\ud800 river", "big river"])] == [1, 1]


def test_forbidden_words_are_not_proposed() -> None:
    lm = MaskedLanguageModel(*masked_lm(), device="cpu")
    lm.forbid(frozenset(WORDS) - {"river", "town"})
    words = {word for words in proposals(lm, TEXTS, 50).values() for word in words}
    assert words == {"river", "town", "the", "is"}


def test_special_tokens_that_look_like_words_are_not_proposed() -> None:
    tokenizer = wordpiece(words=("marker", "added"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["marker"]})
    tokenizer.add_tokens(["added", "newword"])
    lm = MaskedLanguageModel(*masked_lm(tokenizer=tokenizer), device="cpu")
    words = {word for words in proposals(lm, TEXTS, 500).values() for word in words}
    assert words >= {*WORDS} and not words & {"marker", "newword"}


def test_a_word_is_never_its_own_replacement() -> None:
    lm = MaskedLanguageModel(*masked_lm(), device="cpu")
    for (index, span), words in proposals(lm, TEXTS, 500).items():
        assert TEXTS[index][slice(*span)] not in words and len(words) == len(WORDS) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masking": "double"}, "masking='double'.*grouped, single"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"longest": 65}, "longest=65.*64"),
        ({"longest": 3}, "longest=3.*8"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedLanguageModel(*masked_lm(), device="cpu", **options)


def test_bad_tokenizers(saved_model: str) -> None:
    model, tokenizer = masked_lm()
    with pytest.raises(ValueError, match="has tokens up to"):
        MaskedLanguageModel(model, wordpiece(words=("more", "words")), device="cpu")
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="no mask token"):
        MaskedLanguageModel(model, tokenizer, device="cpu")
    with pytest.raises(ValueError, match="dtype='int8'"):
        MaskedLanguageModel.from_pretrained(saved_model, dtype="int8")


def test_a_model_without_a_head_is_refused(saved_model: str, tmp_path: Any) -> None:
    model, tokenizer = masked_lm()
    model.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not fine-tuned for fill-mask"):
        MaskedLanguageModel.from_pretrained(str(tmp_path))
    assert Span(0, 5) in {
        span for _, span in proposals(MaskedLanguageModel.from_pretrained(saved_model), TEXTS)
    }


def test_half_precision(saved_model: str) -> None:
    lm = MaskedLanguageModel.from_pretrained(saved_model, dtype="bfloat16", device="cpu")
    exact = proposals(MaskedLanguageModel.from_pretrained(saved_model, device="cpu"), TEXTS, 10)
    found = proposals(lm, TEXTS, 10)
    shared = [len({*found[key]} & {*exact[key]}) / 10 for key in exact]
    assert sum(shared) / len(shared) > 0.8
