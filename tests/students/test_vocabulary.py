"""A trimmed vocabulary: fewer tokens, the same answers for what is made of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertModel,
    PreTrainedTokenizerFast,
)
from vocabularies import KINDS, SENTENCES, wrapped
from vocabularies import SPECIAL as FRONT
from zoo import zoo_config, zoo_model

from hf_distill.compatibility.vocabulary_map import VocabularyMap
from hf_distill.students import create_student, tokenizer_of, trim_vocabulary

CORPUS = [SENTENCES[0], SENTENCES[2], "hello <mask> shells, unhelpful Größe"]
PADDING = 7
"""Rows of the embeddings that no token has, as many models have them."""
SPECIAL = {
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


def model(task: str, architecture: str, kind: str, **options: Any) -> Any:
    size = len(tokenizer(kind)) + PADDING
    ids: dict[str, Any] = {"max_position_embeddings": 130, "pad_token_id": 1}
    if task == "summarization":
        ids |= SPECIAL
    return zoo_model(task, architecture, seed=0, vocab_size=size, **{**ids, **options}).eval()


@cache
def trimmed(kind: str) -> tuple[Any, PreTrainedTokenizerFast]:
    return trim_vocabulary(model("fill-mask", "bert", kind), tokenizer(kind), CORPUS)


def ids_of(kind: str) -> list[int]:
    found = VocabularyMap.of(trimmed(kind)[1])
    assert found is not None
    return found.ids.tolist()


def logits(model: Any, tokenizer: Any, texts: list[str], **options: Any) -> torch.Tensor:
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**batch, **options).logits


@pytest.mark.parametrize("kind", KINDS)
def test_kept_tokens_are_those_of_the_corpus_and_keep_their_order(kind: str) -> None:
    whole, part = tokenizer(kind), trimmed(kind)[1]
    ids = ids_of(kind)
    used = {i for text in CORPUS for i in whole(text)["input_ids"]}
    assert used < set(ids) < set(range(len(whole)))
    assert ids == sorted(ids)
    vocabulary = whole.get_vocab()
    assert {t: ids[i] for t, i in part.get_vocab().items()} == {
        t: i for t, i in vocabulary.items() if i in ids
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_characters", [True, False])
def test_the_corpus_has_the_same_logits(kind: str, keep_characters: bool) -> None:
    whole, teacher = tokenizer(kind), model("fill-mask", "bert", kind)
    small, part = trim_vocabulary(teacher, whole, CORPUS, keep_characters=keep_characters)
    ids = VocabularyMap.of(part).ids.tolist()  # type: ignore[union-attr]
    found, wanted = (logits(one, of, CORPUS) for one, of in ((small, part), (teacher, whole)))
    assert torch.equal(found, wanted[..., ids])
    assert len(part) == small.config.vocab_size < len(whole)
    characters = {t for t in whole.get_vocab() if len(t) == 1}
    kept = characters <= part.get_vocab().keys()
    assert kept == (keep_characters or (kind == "byte_level" and len(characters) <= 256))


def words_of(kind: str) -> list[str]:
    """Words of the sentences whose tokens were all kept."""
    ids = {*ids_of(kind)}
    words = {word for text in SENTENCES for word in text.split()}
    return sorted(w for w in words if {*tokenizer(kind)(w)["input_ids"]} <= ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_text_of_kept_tokens_is_encoded_as_before(kind: str, data: Any) -> None:
    words = [*words_of(kind), "<mask>", "<unk>", "</s>", "<s>"]
    text = data.draw(st.lists(st.sampled_from(words)).map(" ".join) | st.text())
    whole, part, ids = tokenizer(kind), trimmed(kind)[1], ids_of(kind)
    wanted = whole(text)["input_ids"]
    if {*wanted} <= {*ids}:
        assert [ids[i] for i in part(text)["input_ids"]] == wanted


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_of_kept_tokens_in_any_order(kind: str, data: Any) -> None:
    whole, part, ids = tokenizer(kind), trimmed(kind)[1], ids_of(kind)
    text = whole.decode(data.draw(st.lists(st.sampled_from(ids))))
    wanted = whole(text)["input_ids"]
    if {*wanted} <= {*ids}:
        assert [ids[i] for i in part(text)["input_ids"]] == wanted


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@given(text=st.text())
def test_every_text_can_still_be_written(kind: str, text: str) -> None:
    part = trimmed(kind)[1]
    assert part.unk_token_id not in part(text, add_special_tokens=False)["input_ids"] or (
        "<unk>" in text
    )


def test_merges_on_the_way_to_a_kept_token_stay_and_others_go() -> None:
    whole = tokenizer("byte_level")
    _, part = trim_vocabulary(model("fill-mask", "bert", "byte_level"), whole, ["helpful"])
    before, after = (json.loads(t.backend_tokenizer.to_str())["model"] for t in (whole, part))
    left = [m for m in before["merges"] if m in after["merges"]]
    assert after["merges"] == left
    assert len(left) < len(before["merges"])
    reached = {*part.get_vocab()} & {"".join(m) for m in before["merges"]}
    assert {"".join(m) for m in left} == reached
    assert part.tokenize("helpful") == whole.tokenize("helpful")


CASES = [
    ("fill-mask", "roberta", "byte_level", {}),
    ("fill-mask", "electra", "word_piece", {}),
    ("fill-mask", "distilbert", "word_piece", {}),
    ("fill-mask", "mpnet", "word_piece", {}),
    ("fill-mask", "deberta-v2", "unigram", {}),
    ("fill-mask", "xlm-roberta", "unigram", {}),
    ("fill-mask", "albert", "unigram", {}),
    ("fill-mask", "modernbert", "byte_level", {}),
    ("fill-mask", "bert", "word_piece", {"tie_word_embeddings": False}),
    ("text-generation", "gpt2", "byte_level", {}),
    ("text-generation", "llama", "byte_fallback", {"tie_word_embeddings": False}),
    ("text-generation", "llama", "byte_level", {"tie_word_embeddings": True}),
    ("summarization", "t5", "unigram", {}),
    ("summarization", "t5", "unigram", {"tie_word_embeddings": False}),
    ("summarization", "bart", "byte_level", {}),
]
AUTO = {
    "fill-mask": AutoModelForMaskedLM,
    "text-generation": AutoModelForCausalLM,
    "summarization": AutoModelForSeq2SeqLM,
}


@pytest.mark.parametrize("task, architecture, kind, options", CASES)
def test_models_from_their_folder_give_the_same_logits(
    task: str, architecture: str, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    whole, teacher = tokenizer(kind), model(task, architecture, kind, **options)
    if architecture == "bart":
        teacher.final_logits_bias.normal_()
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    small, part = trim_vocabulary(teacher, whole, CORPUS)
    small.save_pretrained(tmp_path)
    part.save_pretrained(tmp_path)
    loaded, info = AUTO[task].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    read = AutoTokenizer.from_pretrained(tmp_path)
    ids = VocabularyMap.of(read).ids  # type: ignore[union-attr]
    numbers = {old: new for new, old in enumerate(ids.tolist())}
    inputs = [{}, {}]
    if task == "summarization":
        target = torch.tensor([whole(CORPUS[0])["input_ids"]] * len(CORPUS))
        inputs = [{"decoder_input_ids": target.apply_(numbers.get)}, {"decoder_input_ids": target}]
        inputs[1] = {"decoder_input_ids": ids[inputs[0]["decoder_input_ids"]]}
    found = logits(loaded.eval(), read, CORPUS, **inputs[0])
    wanted = logits(teacher, whole, CORPUS, **inputs[1])
    # A narrower matrix product may round the last bit otherwise.
    largest = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted[..., ids], rtol=0, atol=1e-6 * largest)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])
    ties = [shared_weights(one) for one in (teacher, small)]
    assert ties[0] == ties[1]


def shared_weights(model: Any) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for name, weight in model.state_dict().items():
        groups.setdefault(weight.data_ptr(), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def test_special_ids_of_model_and_generation_are_renumbered() -> None:
    whole, teacher = tokenizer("unigram"), model("summarization", "bart", "unigram")
    extra = whole.convert_tokens_to_ids(["<extra_0>", "<extra_1>"])
    dropped = unused()
    config = teacher.config
    config.forced_eos_token_id, config.decoder_start_token_id = extra
    config.task_specific_params = {"summarization": {"forced_bos_token_id": extra[1], "top_k": 3}}
    generation = teacher.generation_config
    generation.eos_token_id = [2, extra[0]]
    generation.decoder_start_token_id = extra[1]
    generation.pad_token_id = -1
    generation.suppress_tokens = [extra[0], dropped]
    generation.bad_words_ids = [[2, extra[1]], [dropped, 2]]
    small, part = trim_vocabulary(teacher, whole, ["hello"])
    new = part.convert_tokens_to_ids(["<extra_0>", "<extra_1>"])
    assert new != extra and new == sorted(new)
    assert [small.config.forced_eos_token_id, small.config.decoder_start_token_id] == new
    parameters = small.config.task_specific_params["summarization"]
    assert parameters == {"forced_bos_token_id": new[1], "top_k": 3}
    found = small.generation_config
    assert found.eos_token_id == [2, new[0]]
    assert found.decoder_start_token_id == new[1]
    assert found.pad_token_id == -1
    assert found.suppress_tokens == [new[0]]
    assert found.bad_words_ids == [[2, new[1]]]
    assert generation.suppress_tokens == [extra[0], dropped]
    generation.sequence_bias = {(dropped,): 1.0}
    with pytest.raises(ValueError, match="sequence_bias"):
        trim_vocabulary(teacher, whole, ["hello"])


def test_what_the_configuration_names_is_kept() -> None:
    whole, teacher = tokenizer("unigram"), model("summarization", "bart", "unigram")
    named = unused()
    teacher.config.forced_bos_token_id = named
    small, part = trim_vocabulary(teacher, whole, ["hello"])
    kept = part.convert_ids_to_tokens(small.config.forced_bos_token_id)
    assert kept == whole.convert_ids_to_tokens(named)


def unused() -> int:
    """A piece of the Unigram vocabulary that "hello" does not need."""
    vocabulary = tokenizer("unigram").get_vocab()
    return min(i for piece, i in vocabulary.items() if len(piece) == 3 and piece.isalpha())


def test_texts_in_words_and_pairs_and_settings() -> None:
    whole, teacher = tokenizer("byte_level"), model("fill-mask", "bert", "byte_level")
    whole.model_max_length = 77
    words = ["Paris", "hello"]
    _, part = trim_vocabulary(teacher, whole, [words])
    ids = VocabularyMap.of(part).ids.tolist()  # type: ignore[union-attr]
    for inputs, options in (
        (([words],), {"is_split_into_words": True}),
        (("Paris", "hello"), {}),
    ):
        wanted = whole(*inputs, **options)["input_ids"]
        found = part(*inputs, **options)["input_ids"]
        assert torch.equal(torch.tensor(ids)[torch.tensor(found)], torch.tensor(wanted))
    assert part.model_max_length == 77


def test_dtype_mode_and_random_numbers_stay() -> None:
    teacher = model("fill-mask", "bert", "word_piece").half().train()
    state = torch.get_rng_state()
    small, _ = trim_vocabulary(teacher, tokenizer("word_piece"), CORPUS)
    assert torch.equal(state, torch.get_rng_state())
    assert small.dtype == torch.float16 and small.training
    assert all(p.requires_grad for p in small.parameters())
    assert small.bert.embeddings.word_embeddings.padding_idx == small.config.pad_token_id


def test_written_files_name_no_folder(tmp_path: Path) -> None:
    whole = tokenizer("word_piece")
    whole.save_pretrained(tmp_path / "secret")
    teacher = model("fill-mask", "bert", "word_piece")
    teacher.save_pretrained(tmp_path / "secret")
    small, part = trim_vocabulary(
        AutoModelForMaskedLM.from_pretrained(tmp_path / "secret"),
        AutoTokenizer.from_pretrained(tmp_path / "secret"),
        CORPUS,
    )
    part.save_pretrained(tmp_path / "out")
    small.save_pretrained(tmp_path / "out")
    for file in (tmp_path / "out").glob("*.json"):
        assert "secret" not in file.read_text() and "/tmp" not in file.read_text(), file


def test_unknown_characters_cost_what_they_did() -> None:
    """The penalty is counted from the lowest score, whose piece must not be dropped."""
    from tokenizers import Tokenizer, models

    pieces = [*((one, 0.0) for one in FRONT), ("ab", -30.0), ("cd", -30.0), ("bcd", -1.0)]
    whole = wrapped(Tokenizer(models.Unigram([*pieces, ("zzz", -50.0)], unk_id=3)))
    assert whole.tokenize("abcd") == ["ab", "cd"]
    teacher = zoo_model("fill-mask", "bert", seed=0, vocab_size=len(whole), pad_token_id=1)
    _, part = trim_vocabulary(teacher, whole, ["abcd", "bcd"])
    assert part.tokenize("abcd") == ["ab", "cd"]


def test_refusals() -> None:
    whole, teacher = tokenizer("word_piece"), model("fill-mask", "bert", "word_piece")

    def refused(pattern: str, *arguments: Any) -> None:
        with pytest.raises(ValueError, match=pattern):
            trim_vocabulary(*arguments)

    refused("texts is empty", teacher, whole, [])
    refused("texts is one string", teacher, whole, "hello")
    refused("ByT5Tokenizer", teacher, byt5(), ["a"])
    refused("WordLevel", teacher, word_level(), ["a"])
    refused("Linear", torch.nn.Linear(2, 2), whole, ["a"])
    vit = zoo_model("image-classification", "vit", seed=0)
    refused("ViTForImageClassification", vit, whole, ["a"])
    small = zoo_model("fill-mask", "bert", seed=0, vocab_size=20)
    refused(rf"{len(whole)} tokens .* only 20", small, whole, ["a"])


def byt5() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def word_level() -> Any:
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))


def test_a_weight_that_cannot_be_cut_is_named() -> None:
    config = zoo_config("bert", 1, vocab_size=len(tokenizer("word_piece")), pad_token_id=1)

    class Adaptive(type(model("fill-mask", "bert", "word_piece"))):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.tail = torch.nn.Linear(config.vocab_size // 2, 3)

    with pytest.raises(ValueError, match=r"Adaptive.*tail\.weight"):
        trim_vocabulary(Adaptive(config), tokenizer("word_piece"), CORPUS)


def test_a_text_that_would_be_encoded_otherwise_is_named() -> None:
    """A word that was unknown, and is not any more: its longest first piece is not kept."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [*FRONT, "a", "ab", "##bc"]
    fast = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = wrapped(fast)
    assert whole.tokenize("abc") == ["<unk>"]
    teacher = zoo_model("fill-mask", "bert", seed=0, vocab_size=len(pieces), pad_token_id=1)
    _, part = trim_vocabulary(teacher, whole, ["abc", "a"])
    assert part.tokenize("abc") == ["<unk>"]
    # Kept by another word, the continuation would now be found.
    pieces.append("x")
    fast = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    teacher = zoo_model("fill-mask", "bert", seed=0, vocab_size=len(pieces), pad_token_id=1)
    with pytest.raises(ValueError, match="'abc'"):
        trim_vocabulary(teacher, wrapped(fast), ["xbc", "abc"])


@pytest.mark.parametrize("pooler", [True, False])
def test_an_encoder_without_head_keeps_its_parts(pooler: bool) -> None:
    size = len(tokenizer("word_piece"))
    config = zoo_config("bert", 1, vocab_size=size, pad_token_id=1)
    teacher = BertModel(config, add_pooling_layer=pooler).eval()
    small, part = trim_vocabulary(teacher, tokenizer("word_piece"), CORPUS)
    inputs = [t(CORPUS[2], return_tensors="pt") for t in (part, tokenizer("word_piece"))]
    with torch.no_grad():
        states = [m(**x).last_hidden_state for m, x in zip((small, teacher), inputs, strict=True)]
    assert torch.equal(*states)
    assert (small.pooler is None) == (not pooler)


@pytest.mark.parametrize("options", [{"num_hidden_layers": 1}, {"hidden_size": 8}])
def test_a_created_student_is_trimmed(options: dict[str, Any]) -> None:
    teacher = model("fill-mask", "bert", "word_piece", layers=2)
    whole = tokenizer("word_piece")
    if "hidden_size" in options:
        options = {**options, "calibration_data": SENTENCES * 40, "calibration_tokens": 2000}
    made = {"processing_class": whole, **options}
    wide = create_student(teacher, **made)
    small = create_student(teacher, vocabulary_from=CORPUS, **made)
    part = tokenizer_of(small)
    ids = VocabularyMap.of(part).ids  # type: ignore[union-attr]
    assert torch.equal(logits(small, part, CORPUS), logits(wide, whole, CORPUS)[..., ids])
    with pytest.raises(ValueError, match="processing_class"):
        create_student(teacher, vocabulary_from=CORPUS, num_hidden_layers=1)
