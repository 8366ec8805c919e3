"""How a teacher's logits are stored, and what comes back."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from datasets import Dataset, DatasetInfo, Value, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from zoo import zoo_config

from hf_distill.teachers.cached import meta_model
from hf_distill.teachers.columns import (
    SignalDescription,
    describe_model,
    encode,
    encoding,
    to_dense,
)
from hf_distill.teachers.columns.description import LOGITS, REST, TOKEN_IDS
from hf_distill.teachers.columns.encoding import decode


@st.composite
def logits(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Logits of some rows, and how many of them are stored."""
    classes = draw(st.integers(1, 12))
    rows = draw(st.integers(1, 4))
    number = st.floats(-50, 50, width=32)
    values = draw(st.lists(number, min_size=rows * classes, max_size=rows * classes))
    return torch.tensor(values).reshape(rows, classes), draw(st.integers(1, classes))


def restored(values: torch.Tensor, top_k: int, dtype: str = "float32") -> torch.Tensor:
    signal = encode(values, dtype=dtype, top_k=top_k)
    return to_dense(
        decode(signal[LOGITS], dtype),
        torch.from_numpy(signal[TOKEN_IDS].astype(np.int64)),
        decode(signal[REST], dtype),
        values.shape[-1],
    )


@given(logits())
def test_the_largest_are_kept_and_the_rest_shares_its_mass_evenly(
    case: tuple[torch.Tensor, int],
) -> None:
    """By the rule, written out in float64 for each row."""
    values, top_k = case
    found = restored(values, top_k).double()
    for row, back in zip(values.double(), found, strict=True):
        order = sorted(range(len(row)), key=lambda i: -float(row[i]))
        border = float(row[order[top_k - 1]])
        kept = (back - row).abs() < 1e-4
        assert kept[row > border].all()
        p, q = row.softmax(0), back.softmax(0)
        others = [i for i in range(len(row)) if float(row[i]) < border]
        if len(others) == len(row) - top_k and others:
            mass = sum(math.exp(float(row[i] - row.max())) for i in others)
            expected = math.log(mass / len(others)) + float(row.max())
            assert back[others].tolist() == pytest.approx([expected] * len(others), abs=1e-3)
            assert float(q[others].sum()) == pytest.approx(float(p[others].sum()), abs=1e-5)
        assert q[row > border].tolist() == pytest.approx(p[row > border].tolist(), abs=1e-5)


@given(logits())
def test_all_classes_stored_are_all_logits(case: tuple[torch.Tensor, int]) -> None:
    values, _ = case
    assert torch.equal(restored(values, values.shape[-1]), values)


def test_impossible_classes_stay_impossible() -> None:
    values = torch.tensor([[1.0, -torch.inf, 0.5, -torch.inf]])
    assert torch.equal(restored(values, 2).softmax(-1)[0, [1, 3]], torch.zeros(2))
    assert torch.equal(restored(values, 4), values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_numbers_come_back_rounded_to_their_format(dtype: str) -> None:
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 10
    back = decode(encode(values, dtype=dtype, top_k=None)[LOGITS], dtype)
    assert torch.equal(back.float(), values.to(getattr(torch, dtype)).float())


def test_float16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"70000.*dtype='bfloat16'"):
        encode(torch.tensor([[1.0, 70000.0]]), dtype="float16", top_k=None)
    with pytest.raises(ValueError, match="-1e[+]30"):
        encode(torch.tensor([[1.0, -1e30]]), dtype="float16", top_k=None)
    wide = encode(torch.tensor([[1.0, -1e30]]), dtype="bfloat16", top_k=None)
    assert decode(wide[LOGITS], "bfloat16")[0, 1].item() == pytest.approx(-1e30, rel=1e-2)


def description(**options: Any) -> SignalDescription:
    return SignalDescription(
        **{
            "task": "text-classification",
            "architecture": "BertForSequenceClassification",
            "config": {"model_type": "bert"},
            "dtype": "float16",
            "classes": 3,
            "by_position": False,
            "top_k": None,
            "hidden_layers": (),
            "hidden_width": 0,
            "teacher": "teacher",
            "weights": "0" * 64,
            "tokenizer": None,
            **options,
        }
    )


def rows(of: SignalDescription) -> Dataset:
    data = {"teacher_logits": [[1.0, 2.0, 3.0]] * 2, "teacher_checksum": [1, 2]}
    return Dataset.from_dict(data, features=of.features())


def test_the_description_travels_with_the_columns() -> None:
    for options in ({}, {"hidden_layers": (1, 2), "tokenizer": "x" * 64}, {"config": None}):
        made = description(**options)
        empty = {name: [] for name in made.columns}
        assert SignalDescription.of(Dataset.from_dict(empty, features=made.features())) == made
    assert SignalDescription.of(Dataset.from_dict({"input_ids": [[1]]})) is None
    assert SignalDescription.of([1, 2]) is None


def test_the_description_survives_the_card_of_a_data_set_on_the_hub() -> None:
    """``push_to_hub`` writes Parquet, and the features as YAML into README.md."""
    made = description(
        tokenizer="x" * 64, config={"model_type": "bert", "id2label": {"0": "a: 'b'"}}
    )
    card = yaml.safe_load(yaml.safe_dump(rows(made).info._to_yaml_dict(), sort_keys=False))
    read = DatasetInfo._from_yaml_dict(card)
    empty = {name: [] for name in made.columns}
    assert SignalDescription.of(Dataset.from_dict(empty, features=read.features)) == made


def test_columns_that_nobody_can_read_are_refused() -> None:
    stored = rows(description())
    with pytest.raises(ValueError, match="The description of the teacher columns is lost"):
        SignalDescription.of(stored.cast_column("teacher_checksum", Value("int64")))
    with pytest.raises(ValueError, match="teacher_checksum is missing"):
        SignalDescription.of(stored.remove_columns("teacher_checksum"))
    features = stored.features.copy()
    content = {**json.loads(features["teacher_checksum"].id), "format": 99}
    features["teacher_checksum"] = Value("uint32", id=json.dumps(content))
    with pytest.raises(ValueError, match="format 99"):
        SignalDescription.of(stored.cast(features))


def test_rows_of_two_teachers_do_not_go_into_one_data_set() -> None:
    with pytest.raises(ValueError, match="can't be aligned"):
        concatenate_datasets([rows(description()), rows(description(weights="1" * 64))])


def test_classification_takes_two_bytes_a_label_and_a_checksum() -> None:
    assert rows(description()).data.nbytes == 2 * (3 * 2 + 4)


def test_the_meta_model_has_the_teachers_shape_and_no_memory() -> None:
    config = zoo_config("bert", layers=2, problem_type="multi_label_classification")
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    architecture, content = describe_model(model)
    found: Any = meta_model(description(architecture=architecture, config=content))
    assert type(found) is type(model)
    assert found.config.id2label == model.config.id2label
    assert found.config.problem_type == "multi_label_classification"
    assert {n: p.shape for n, p in found.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert all(p.is_meta for p in found.parameters())
    assert not list(meta_model(description(config=None)).parameters())


@st.composite
def scores_with_ties(draw: st.DrawFn) -> tuple[list[list[float]], int]:
    columns = draw(st.integers(1, 40))
    score = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 2.0])
    rows = draw(st.lists(st.lists(score, min_size=columns, max_size=columns), max_size=5))
    return rows, draw(st.integers(1, columns))


@given(scores_with_ties(), st.sampled_from([1, 1 << 24]))
def test_largest_of_equal_scores_are_those_of_a_plain_sort(
    case: tuple[list[list[float]], int], tied_scores: int
) -> None:
    rows, k = case
    scores = torch.tensor(rows).reshape(len(rows), -1 if rows else k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_TIED_SCORES", tied_scores)
        values, columns = encoding.stable_topk(scores, k)
    expected = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in rows]
    assert columns.tolist() == expected
    assert values.tolist() == [
        [row[i] for i in line] for row, line in zip(rows, expected, strict=True)
    ]


def test_stored_classes_of_equal_logits_are_the_first() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0, 3.0], [0.0] * 5])
    stored = encoding.encode(logits, dtype="float32", top_k=3)
    assert stored[TOKEN_IDS] is not None and stored[TOKEN_IDS].tolist() == [[1, 4, 0], [0, 1, 2]]
    assert stored[LOGITS].tolist() == [[3.0, 3.0, 1.0], [0.0] * 3]
