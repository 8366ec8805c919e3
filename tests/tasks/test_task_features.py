"""What rows become before a model sees them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_task import any_task, classification_rows, tagged_rows
from datasets import ClassLabel, Dataset, Features, Value
from tiny import bert_config, tokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    BertForTokenClassification,
    GenerationConfig,
)

from hf_distill.alignment.words import first_tokens
from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.language_modeling import BlockCollator, draw_masks
from hf_distill.tasks.options import TaskArguments
from hf_distill.tasks.sequence_to_sequence import SummarizationTask

SHARED = Path(__file__).resolve().parents[3] / "shared"


def encode(name: str, rows: Dataset, model: Any, *, training: bool = True, **options: Any) -> Any:
    return any_task(name, **options).features(rows, tokenizer(), model, training=training)


def model(kind: type = BertForSequenceClassification, **options: Any) -> Any:
    return kind(bert_config(1, **options))


# ---- texts with labels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text", "label"], ("text", None)),
        (["id", "sentence", "label"], ("sentence", None)),
        (["premise", "hypothesis", "label"], ("premise", "hypothesis")),
        (["idx", "question", "sentence", "label"], ("question", "sentence")),
        (["comment", "label"], ("comment", None)),
    ],
)
def test_usual_columns_are_found(names: list[str], expected: tuple[str, str | None]) -> None:
    table = Dataset.from_dict(
        {name: [0, 1] if name in ("id", "idx", "label") else [f"{name} 0", f"{name} 1"]
         for name in names}
    )  # fmt: skip
    rows = classification_rows(table)
    assert rows["text"][:] == [f"{expected[0]} 0", f"{expected[0]} 1"]
    assert ("text_pair" in rows.column_names) == (expected[1] is not None)
    if expected[1]:
        assert rows["text_pair"][1] == f"{expected[1]} 1"


def test_columns_can_be_chosen_and_swapped() -> None:
    table = Dataset.from_dict({"label": ["a text", "b"], "text": ["y", "n"], "z": ["p", "q"]})
    rows = classification_rows(
        table, text_column="label", label_column="text", text_pair_column="z"
    )
    assert rows.to_dict() == {
        "text": ["a text", "b"], "label": ["y", "n"], "text_pair": ["p", "q"], "row": [0, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        (["b", "a"], {"id2label": {0: "a", 1: "b"}}, [1, 0]),
        ([1, 0], {"num_labels": 2}, [1, 0]),
        ([1, 3], {"num_labels": 1}, [1.0, 3.0]),
        ([0.5, 1.5], {"num_labels": 1}, [0.5, 1.5]),
        ([["b"], []], {"id2label": {0: "a", 1: "b"}}, [[0.0, 1.0], [0.0, 0.0]]),
        ([[0, 2], [1]], {"num_labels": 3}, [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
    ],
)
def test_targets(labels: list[Any], options: dict[str, Any], expected: list[Any]) -> None:
    rows = classification_rows(Dataset.from_dict({"text": ["x", "y"], "label": labels}))
    features, truncated = encode("text-classification", rows, model(**options))
    assert features["labels"][:] == expected
    assert truncated == 0
    assert set(features.column_names) == {
        "input_ids", "token_type_ids", "attention_mask", "labels",
    }  # fmt: skip
    batch = {n: torch.tensor(features[n][:]) for n in features.column_names}
    assert torch.isfinite(model(**options)(**batch).loss)


def test_pairs_and_truncation() -> None:
    table = Dataset.from_dict(
        {"sentence1": ["abc", "a" * 30], "sentence2": ["de", "b"], "label": [0, 1]}
    )
    tokens = tokenizer()
    features, truncated = encode(
        "text-classification", classification_rows(table), model(), max_length=20
    )
    assert tokens.decode(features[0]["input_ids"]) == "[CLS] a ##b ##c [SEP] d ##e [SEP]"
    assert features[0]["token_type_ids"] == [0] * 5 + [1] * 3
    assert truncated == 1 and len(features[1]["input_ids"]) == 20


def test_length_is_that_of_the_model_by_default() -> None:
    rows = classification_rows(Dataset.from_dict({"text": ["a " * 500, "b"], "label": [0, 1]}))
    features, truncated = encode("text-classification", rows, model())
    assert len(features[0]["input_ids"]) == 64 and truncated == 1
    with pytest.raises(ValueError, match="--max_length 65 .* at most the 64 tokens"):
        encode("text-classification", rows, model(), max_length=65)


# ---- words with tags ---------------------------------------------------------------------------


def test_first_token_of_a_word_has_its_tag() -> None:
    table = Dataset.from_dict(
        {"tokens": [["ab", "c", "def"], ["\x01", "a"]], "tags": [["X", "Y", "X"], ["X", "Y"]]}
    )
    tagger = model(BertForTokenClassification, id2label={0: "Y", 1: "X"})
    features, truncated = encode("token-classification", tagged_rows(table), tagger)
    # [CLS] a ##b c d ##e ##f [SEP]
    assert features[0]["labels"] == [-100, 1, -100, 0, 1, -100, -100, -100]
    assert features["words"][:] == [[0, 1, 2], [1]]
    assert features[1]["labels"] == [-100, 0, -100]
    assert truncated == 0
    cut, truncated = encode("token-classification", tagged_rows(table), tagger, max_length=5)
    assert truncated == 1 and cut["words"][:] == [[0, 1], [1]]


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([(0, 0), (0, 2), (3, 4), (0, 0)], {0: 1, 1: 2}),
        ([(0, 2), (2, 4)], {0: 0, 1: 1}),  # SentencePiece: the space belongs to the token
        ([(0, 2), (2, 3), (3, 4)], {0: 0, 1: 2}),  # … or is one of its own
        ([(0, 1), (1, 2)], {0: 0}),  # the second word is cut off
    ],
)
def test_tokens_find_their_words(offsets: list[tuple[int, int]], expected: dict[int, int]) -> None:
    assert first_tokens(["ab", "c"], offsets) == expected


def test_tags_may_be_numbers_of_class_labels() -> None:
    table = Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[1]], "pos_tags": [[0]]})
    rows = tagged_rows(table)
    assert rows["tags"][:] == [[1]]
    assert tagged_rows(table, label_column="pos_tags")["tags"][:] == [[0]]


# ---- plain text --------------------------------------------------------------------------------


def lines(*texts: str) -> Dataset:
    return any_task("fill-mask").rows(Dataset.from_dict({"text": list(texts)}))


def test_lines_become_passages_and_nothing_is_lost() -> None:
    texts = [f"line {n} {'x' * 300}\n" for n in range(20)]
    rows = lines(*texts)
    assert "".join(rows["text"]) == "".join(texts)
    assert len(rows) == 3 and all(len(text) > 1_800 for text in rows["text"])
    documents = lines("one", "two\n", "three\n", "four")
    assert documents["text"][:] == ["one", "two\nthree\nfour"]


@pytest.mark.parametrize("masked", [False, True])
def test_blocks_hold_all_tokens(masked: bool) -> None:
    tokens = tokenizer()
    rows = lines("abcdefgh\n", "ijk\n", "lmnop\n")
    name = "fill-mask" if masked else "text-generation"
    features, _ = encode(name, rows, model(), block_size=7)
    blocks = features["input_ids"][:]
    bare = [block[1:-1] if masked else block[1:] for block in blocks]
    whole = tokens("".join(rows["text"]), add_special_tokens=False)["input_ids"]
    assert [token for block in bare for token in block] == whole
    assert all(block[0] == tokens.cls_token_id for block in blocks)
    assert [len(block) for block in blocks[:-1]] == [7] * (len(blocks) - 1)
    if masked:
        assert features.column_names == ["input_ids"]
    else:
        assert features["labels"][:] == blocks


def test_documents_end_and_rows_can_stay_apart() -> None:
    tokens = tokenizer()
    tokens.eos_token = "[SEP]"
    task = any_task("text-generation", block_size=4, join_texts=False)
    rows = task.rows(Dataset.from_dict({"text": ["ab", " ", "cdef"]}))
    features, truncated = task.features(rows, tokens, model(), training=True)
    assert [tokens.decode(ids) for ids in features["input_ids"]] == [
        "[CLS] a ##b [SEP]", "[CLS] c ##d ##e",
    ]  # fmt: skip
    assert truncated == 1


def test_masks_of_an_evaluation_are_always_the_same() -> None:
    tokens = tokenizer()
    rows = lines(*(f"line {n} of many\n" for n in range(200)))
    one, other = (
        encode("fill-mask", rows, model(), training=False, block_size=32)[0] for _ in range(2)
    )
    assert one.to_dict() == other.to_dict()
    plain, _ = encode("fill-mask", rows, model(), block_size=32)
    hidden = kept = total = 0
    for block, ids, labels in zip(plain["input_ids"], one["input_ids"], one["labels"], strict=True):
        for true, seen, label in zip(block, ids, labels, strict=True):
            assert label in (true, -100)
            if label == -100:
                assert seen == true
            else:
                assert true not in tokens.all_special_ids
                hidden += seen == tokens.mask_token_id
                kept += 1
            total += true not in tokens.all_special_ids
    assert 0.12 < kept / total < 0.18
    assert 0.7 < hidden / kept < 0.9
    drawn = [draw_masks(plain[0]["input_ids"], tokens, 0.15, (seed, 0, 0)) for seed in (0, 1)]
    assert drawn[0] == (one[0]["input_ids"], one[0]["labels"]) != drawn[1]


def test_something_is_always_masked() -> None:
    tokens = tokenizer()
    for seed in range(20):
        ids, labels = draw_masks([2, 7, 8, 3], tokens, 1e-9, (seed,))
        assert sum(label != -100 for label in labels) == 1
        assert labels[0] == labels[-1] == -100 and len(ids) == 4


def test_collator_masks_only_what_has_no_labels() -> None:
    tokens = tokenizer()
    collator = BlockCollator(tokens, mlm_probability=0.5)
    ids = [[2, *range(5, 40), 3], [2, 7, 3]]
    torch.manual_seed(0)
    batch = collator([{"input_ids": row} for row in ids])
    assert batch["attention_mask"].sum(dim=1).tolist() == [37, 3]
    chosen = batch["labels"] != -100
    assert 8 < int(chosen[0].sum()) < 28
    padded = torch.tensor([ids[0], ids[1] + [0] * 34])
    assert batch["labels"][chosen].equal(padded[chosen])
    assert batch["input_ids"][~chosen].equal(padded[~chosen])
    assert not chosen[:, 0].any() and not chosen[1, 3:].any()
    given = collator([{"input_ids": [2, 4, 3], "labels": [-100, 9, -100]}])
    assert given["input_ids"].tolist() == [[2, 4, 3]]
    assert given["labels"].tolist() == [[-100, 9, -100]]


# ---- texts with a target -----------------------------------------------------------------------


def test_translations_as_on_the_hub() -> None:
    table = Dataset.from_dict({"translation": [{"de": "ja", "en": "yes"}]})
    rows = any_task("translation", source_lang="en_XX", target_lang="de").rows(table)
    assert rows.to_dict() == {"text": ["yes"], "target": ["ja"]}
    with pytest.raises(TaskDataError, match=r"target_lang='en' is the language.*de, en"):
        any_task("translation", source_lang="en", target_lang="en").rows(table)
    with pytest.raises(TaskDataError, match="texts in de, en: choose.* with target_lang"):
        any_task("translation", source_lang="en").rows(table)
    flat = Dataset.from_dict({"de": ["ja"], "en": ["yes"]})
    rows = any_task("translation", source_lang="en", target_lang="de").rows(flat)
    assert rows.to_dict() == {"target": ["ja"], "text": ["yes"]}


def test_prefix_and_lengths() -> None:
    table = Dataset.from_dict({"document": ["ab", "a" * 40], "summary": ["c", "d" * 40]})
    tokens = tokenizer()
    task = any_task("summarization", source_prefix="so: ", max_length=20, max_target_length=10)
    features, truncated = task.features(task.rows(table), tokens, model(), training=True)
    assert tokens.decode(features[0]["input_ids"]) == "[CLS] s ##o [UNK] a ##b [SEP]"
    assert tokens.decode(features[0]["labels"]) == "[CLS] c [SEP]"
    assert len(features[1]["input_ids"]) == 20 and len(features[1]["labels"]) == 10
    assert truncated == 1


def write(model: Any, tokens: Any, rows: Any, batch_size: int = 16, **options: Any) -> list[str]:
    return SummarizationTask(TaskArguments(**options)).write(model, tokens, rows, batch_size)


def test_generation_is_batched_and_in_order() -> None:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=97, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, init_std=0.5,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    writer, tokens = BartForConditionalGeneration(config).eval(), tokenizer()
    rows = [tokens(text) for text in ("one two", "a", "three four five", "b c")]
    alone = [write(writer, tokens, [row], max_target_length=8)[0] for row in rows]
    assert write(writer, tokens, rows, batch_size=3, max_target_length=8) == alone
    beams = write(writer, tokens, rows, num_beams=3, max_target_length=8)
    assert len(beams) == 4


def test_generation_follows_the_model_unless_told_otherwise() -> None:
    seen: list[dict[str, Any]] = []

    class Writer:
        device = torch.device("cpu")
        generation_config = GenerationConfig(do_sample=True)

        def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            seen.append({k: v for k, v in options.items() if k != "attention_mask"})
            return input_ids

    writer: Any = Writer()
    rows = [tokenizer()("a")]
    write(writer, tokenizer(), rows)
    writer.generation_config = GenerationConfig(max_length=60, num_beams=4)
    write(writer, tokenizer(), rows)
    write(writer, tokenizer(), rows, num_beams=1, max_target_length=7)
    assert seen == [
        {"do_sample": False, "max_new_tokens": 128},
        {"do_sample": False},
        {"do_sample": False, "num_beams": 1, "max_new_tokens": 7},
    ]


# ---- real data ---------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data in ../shared is not there")
def test_real_data_is_read_without_loss() -> None:
    from hf_distill.tasks.tables import load_table

    phrases = load_table(SHARED / "data" / "sst2" / "dev.tsv.gz")
    assert len(classification_rows(phrases)) == 872
    sentences = tagged_rows(load_table(SHARED / "data" / "wnut17" / "dev.conll.gz"))
    assert len(sentences) == 1009
    assert {tag for tags in sentences["tags"] for tag in tags} >= {"O", "B-person", "I-person"}
    text = load_table(SHARED / "data" / "text" / "tinyshakespeare.txt.gz", keep_line_breaks=True)
    passages = any_task("fill-mask").rows(text)
    assert "".join(passages["text"]) == "".join(text["text"])
    assert re.match(r"First Citizen:\n", passages[0]["text"])
    assert np.mean([len(passage) for passage in passages["text"]]) > 1_900


def test_table_of_class_labels_is_refused_without_labels() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    table = Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    with pytest.raises(TaskDataError, match="label -1"):
        encode("text-classification", classification_rows(table), model())
