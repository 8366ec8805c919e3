"""Which students go with which teachers."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertTokenizerFast,
    DebertaV2Config,
    PretrainedConfig,
)

from hf_distill.recipes import Family, Student, families, family_of, list_recipes, load_recipe

EACH = pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
STUDENTS = [(family, student) for family in families().values() for student in family.students]
# What is not four times the width.
INTERMEDIATE = {
    "huawei-noah/TinyBERT_General_4L_312D": 1200,
    "answerdotai/ModernBERT-base": 1152,
    "jhu-clsp/ettin-encoder-68m": 768,
    "jhu-clsp/ettin-encoder-32m": 576,
    "jhu-clsp/ettin-encoder-17m": 384,
}


class Vocabulary:
    """As much of a tokenizer as is looked at."""

    def __init__(self, size: int, ids: dict[str, int]) -> None:
        self.size = size
        self.ids = ids

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return self.ids


def test_the_families_that_were_asked_for_are_there() -> None:
    asked = {"bert-uncased", "bert-cased", "roberta", "xlm-roberta", "electra", "deberta-v3"}
    assert asked | {"modernbert"} <= set(families())


@EACH
def test_a_family_is_whole(family: Family) -> None:
    sizes = [student.millions for student in family.students]
    assert sizes == sorted(sizes, reverse=True)
    for name in (*family.teachers, *(student.id for student in family.students)):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    assert all(name in families() for name in family.shares_with)
    assert all(other.name in families()[name].shares_with
               for other in families().values() for name in other.shares_with)  # fmt: skip
    assert all(i < max(family.vocab_sizes) for i in family.token_ids.values())


def test_every_model_is_in_one_family() -> None:
    students = [student.id for _, student in STUDENTS]
    assert len(students) == len(set(students))


def config_of(family: Family, student: Student) -> PretrainedConfig:
    """The configuration that the table describes."""
    width, layers = student.width, student.layers
    size = {"vocab_size": max(family.vocab_sizes), "num_hidden_layers": layers}
    if "mobilebert" in student.id:
        return AutoConfig.for_model("mobilebert", **size)
    if "/distilbert" in student.id:
        return AutoConfig.for_model("distilbert", vocab_size=size["vocab_size"])
    model_type = family.model_types[0]
    options = {
        **size,
        "hidden_size": width,
        "num_attention_heads": 12 if width % 12 == 0 else width // 64,
        "intermediate_size": INTERMEDIATE.get(student.id, 4 * width),
    }
    if model_type == "deberta-v2":
        return DebertaV2Config(
            **options, max_relative_positions=-1, norm_rel_ebd="layer_norm", share_att_key=True,
            pos_att_type=["p2c", "c2p"], position_biased_input=False, position_buckets=256,
            relative_attention=True, type_vocab_size=0,
        )  # fmt: skip
    if model_type.endswith("roberta"):
        options |= {"max_position_embeddings": 514, "type_vocab_size": 1}
    if model_type == "electra":
        options["embedding_size"] = 128 if "small" in student.id else width
    return AutoConfig.for_model(model_type, **options)


@pytest.mark.parametrize(
    ("family", "student"), STUDENTS, ids=[student.id for _, student in STUDENTS]
)
def test_sizes_are_what_the_layers_make(family: Family, student: Student) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(config_of(family, student))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert student.millions == pytest.approx(millions, abs=0.1)


@EACH
def test_a_family_is_found_by_its_tokenizer(family: Family) -> None:
    known = Vocabulary(family.vocab_sizes[0], dict(family.token_ids))
    for model_type in family.model_types:
        assert family_of(known, model_type) is family
    assert family_of(known, "t5") is None
    for token in family.token_ids:
        other = Vocabulary(len(known), {**family.token_ids, token: 7})
        assert family_of(other, family.model_types[0]) is None
    assert family_of(Vocabulary(len(known) + 1, known.ids)) is None


@pytest.mark.parametrize(
    ("size", "model_type", "name"),
    [
        (30522, None, "bert-uncased"),
        (30522, "distilbert", "bert-uncased"),
        (30522, "electra", "electra"),
        (30522, "mpnet", None),
        (30527, "mpnet", None),
        (28996, "bert", "bert-cased"),
        (50265, "roberta", "roberta"),
        (250002, "xlm-roberta", "xlm-roberta"),
        (128100, "deberta-v2", "deberta-v3"),
        (251000, "deberta-v2", None),
        (50368, "modernbert", "modernbert"),
        (31102, "electra", "german"),
    ],
)
def test_a_family_is_found_by_its_size(size: int, model_type: str | None, name: str | None) -> None:
    family = family_of(size, model_type)
    assert (family and family.name) == name


def test_a_real_tokenizer_is_recognised(tmp_path) -> None:
    family = families()["bert-uncased"]
    places = {i: token for token, i in family.token_ids.items()}
    words = [places.get(i, f"word{i}") for i in range(30522)]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert family_of(tokenizer) is family
    tokenizer.add_tokens(["hogwash"])
    assert family_of(tokenizer) is None


def test_families_that_share_a_vocabulary_share_their_students() -> None:
    one, other = families()["bert-uncased"], families()["electra"]
    assert one.all_students() == other.all_students()
    assert set(one.students) | set(other.students) == set(one.all_students())


def test_students_of_the_recipes_are_in_the_table() -> None:
    known = {student.id for _, student in STUDENTS}
    assert {load_recipe(name).student_model for name in list_recipes()} <= known
