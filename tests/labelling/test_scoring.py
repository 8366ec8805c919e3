from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from language_models import language_model, log_probability
from tiny import bert_config
from transformers import BertForMaskedLM, BertLMHeadModel

from hf_distill.labelling.prompts import EncodedRow
from hf_distill.labelling.scoring import WordScorer, calibrated, label_probabilities

ROWS = [
    EncodedRow((3, 7, 9), ((11,), (12, 13), (12, 14, 15), (12, 13, 16)), False),
    EncodedRow((5,), ((11,), (21,), (22, 11), ()), False),
    EncodedRow((6, 2), ((), (31, 32, 33, 34), (41, 42, 43), (51, 52, 53, 54)), False),
    EncodedRow((8, 1, 2, 4, 6, 30, 31), ((40,), (41,), (42,), (43,)), False),
]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_scores_are_log_probabilities_of_whole_words(kind: str) -> None:
    model = language_model(kind)
    found = WordScorer(model, 8).scores(ROWS)
    for row, scores in zip(ROWS, found.tolist(), strict=True):
        for ending, score in zip(row.endings, scores, strict=True):
            ids = [*row.prefix, *ending]
            assert score == pytest.approx(log_probability(model, ids, len(row.prefix)), abs=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_a_batch_gives_what_its_rows_give_alone(kind: str) -> None:
    scorer = WordScorer(language_model(kind), 8)
    alone = torch.cat([scorer.scores([row]) for row in ROWS])
    assert torch.allclose(scorer.scores(ROWS), alone, atol=1e-5)


def test_few_sequences_are_computed() -> None:
    model = language_model()
    shapes: list[Any] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    scorer = WordScorer(model, 8)
    scorer.scores(ROWS[3:])
    assert shapes == [(1, 7)]  # words of one token: the prompt alone
    scorer.scores(ROWS[:1])
    assert shapes[1:] == [(2, 5)]  # (12, 13) and (12, 14): all others are on the way


def test_an_encoder_is_refused_however_little_it_looks_ahead() -> None:
    torch.manual_seed(0)
    for model in (BertForMaskedLM(bert_config()), BertLMHeadModel(bert_config())):
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(ValueError, match="teacher_model is a Bert"):
                WordScorer(model.eval().to(dtype), 4).check(ROWS)
        for layer in model.bert.encoder.layer:
            torch.nn.init.normal_(layer.attention.output.dense.weight, std=2e-3)
        with pytest.raises(ValueError, match="depends on later tokens"):
            WordScorer(model, 4).check(ROWS)
    WordScorer(BertLMHeadModel(bert_config(is_decoder=True)).eval(), 4).check(ROWS)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_does_not_make_a_model_look_ahead(kind: str, dtype: torch.dtype) -> None:
    model = language_model(kind).to(dtype)
    forward = model.forward

    def rounded(**inputs: Any) -> Any:
        outputs = forward(**inputs)
        noise = torch.arange(len(outputs.logits)).view(-1, 1, 1) * 2**-12
        outputs.logits = outputs.logits.float() * (1 + noise)
        return outputs

    rounded.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = rounded
    WordScorer(model, 1).check(ROWS)


def test_a_model_that_minds_padding_is_refused() -> None:
    model = language_model("gpt2")
    forward = model.forward

    def without_mask(input_ids: Any = None, attention_mask: Any = None) -> Any:
        return forward(input_ids)

    model.forward = without_mask
    with pytest.raises(ValueError, match="batch_size=1"):
        WordScorer(model, 8).check(ROWS)
    WordScorer(model, 1).check(ROWS)


def test_rounding_of_padded_rows_is_that_of_the_number_format() -> None:
    def rounded(**inputs: Any) -> Any:
        outputs = forward(**inputs)
        padded = not bool(inputs["attention_mask"].all())
        outputs.logits = outputs.logits.float() * (1 + padded * 2**-6)
        return outputs

    model = language_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(100)
    forward = model.forward
    rounded.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = rounded
    with pytest.raises(ValueError, match="batch_size=1"):
        WordScorer(model, 8).check(ROWS)
    WordScorer(model.to(torch.bfloat16), 8).check(ROWS)


def test_nan_is_refused() -> None:
    model = language_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="teacher_dtype"):
        WordScorer(model, 8).check(ROWS)


def test_probabilities_are_a_softmax_of_sums_over_words() -> None:
    scores = torch.tensor([[-1.0, -2.0, -0.5], [-9.0, -700.0, -1.5]], dtype=torch.float64)
    found = label_probabilities(scores, [range(2), range(2, 3)]).tolist()
    for row, (a, b, c) in zip(found, scores.tolist(), strict=True):
        first, second = math.exp(a) + math.exp(b), math.exp(c)
        wanted = [first / (first + second), second / (first + second)]
        assert row == pytest.approx(wanted, rel=1e-12)


def test_calibration() -> None:
    free = torch.tensor([0.8, 0.2], dtype=torch.float64)
    found = calibrated(torch.tensor([[0.8, 0.2], [0.6, 0.4]], dtype=torch.float64), free)
    assert found[0].tolist() == pytest.approx([0.5, 0.5])
    assert found[1].tolist() == pytest.approx([0.75 / 2.75, 2 / 2.75])
