"""The answerer, against one forward pass a window and the formula of its docstring."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from qa_tokenizers import TEXT, TOKENIZERS
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    PreTrainedModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
)
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from hf_distill import QuestionAnswerer
from hf_distill.tasks.question_answering import Answer
from hf_distill.tasks.question_answering.features import WindowCutter

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 80,
    "initializer_range": 0.7,
}
LONG = " ".join(TEXT)
SIZES: dict[str, int] = {"max_length": 64, "doc_stride": 16}


def model_for(kind: str) -> PreTrainedModel:
    torch.manual_seed(1)
    size = {"vocab_size": len(TOKENIZERS[kind])}
    if kind in ("bert", "left_padding"):
        return BertForQuestionAnswering(BertConfig(**TINY, **size))
    config = RobertaConfig(**TINY, **size, pad_token_id=1, type_vocab_size=1)
    return RobertaForQuestionAnswering(config)


def answerer_for(kind: str = "bert", **options: Any) -> QuestionAnswerer:
    return QuestionAnswerer(model_for(kind), TOKENIZERS[kind], device="cpu", **options)


def by_hand(
    answerer: QuestionAnswerer, question: str, context: str, threshold: float | None, top: int = 20
) -> list[tuple[str, int, int, float]]:
    """Every span of every window, one unbatched forward pass each."""
    cutter = WindowCutter(answerer.tokenizer, 64, 16, for_evaluation=True)
    windows = cutter({"id": ["0"], "question": [question], "context": [context]})
    spans: dict[tuple[int, int], float] = {}
    nulls = []
    for row, offsets in enumerate(windows["offset_mapping"]):
        names = [name for name in answerer.tokenizer.model_input_names if name in windows]
        inputs = {name: torch.tensor([windows[name][row]]) for name in names}
        with torch.no_grad():
            output = answerer.model(**inputs)
        start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        null = windows["no_answer_position"][row]
        nulls.append(start[null] + end[null])
        for i, first in enumerate(offsets):
            for j in range(i, min(i + 30, len(offsets))):
                if first is None or offsets[j] is None:
                    continue
                begin, stop = first[0], offsets[j][1]
                begin += len(context[begin:stop]) - len(context[begin:stop].lstrip())
                stop = begin + len(context[begin:stop].rstrip())
                spans[begin, stop] = max(start[i] + end[j], spans.get((begin, stop), -math.inf))
    best = sorted(spans.items(), key=lambda item: -item[1])[:top]
    if threshold is not None:
        best.append(((0, 0), min(nulls) - threshold))
    best.sort(key=lambda item: -item[1])
    total = sum(math.exp(score) for _, score in best)
    return [(context[b:e], b, e, math.exp(score) / total) for (b, e), score in best]


def flat(answers: list[Answer]) -> list[Any]:
    return [value for one in answers for value in (one.text, one.start, one.end, one.score)]


@pytest.mark.parametrize("kind", ["bert", "roberta", "sentencepiece", "left_padding"])
@pytest.mark.parametrize("threshold", [None, 0.0, -6.0, 6.0])
def test_answers_are_those_found_by_hand(kind: str, threshold: float | None) -> None:
    answerer = answerer_for(kind)
    context = LONG[:300]
    answers = answerer(
        question="Who wrote it?", context=context, top_k=8, no_answer_threshold=threshold, **SIZES
    )
    wanted = by_hand(answerer, "Who wrote it?", context, threshold)[:8]
    assert flat(answers) == pytest.approx([value for one in wanted for value in one], abs=1e-4)
    assert all(answer.text == context[answer.start : answer.end] for answer in answers)


def test_probabilities_of_all_candidates_sum_to_1_and_fall() -> None:
    answers = answerer_for()(question="Who?", context=LONG, top_k=40, **SIZES)
    scores = [answer.score for answer in answers]
    assert sum(scores) > 0.99  # 40 spans and "no answer", of which 40 are returned
    assert scores == sorted(scores, reverse=True)
    assert len({(answer.start, answer.end) for answer in answers}) == 40
    everything = answerer_for()(question="Who?", context=LONG[:14], top_k=40, **SIZES)
    assert sum(answer.score for answer in everything) == pytest.approx(1.0)
    assert sum(answer.text == "" for answer in everything) == 1


@pytest.mark.parametrize("kind", ["bert", "roberta", "left_padding"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_many_questions_at_once_are_answered_like_one_at_a_time(kind: str, batch_size: int) -> None:
    answerer = answerer_for(kind)
    rows = [
        {"question": question, "context": context}
        for question in ("Who?", "Which river does Paris lie on?", "x " * 30)
        for context in (TEXT[0], LONG, "Paris")
    ]
    together = answerer(rows, top_k=3, batch_size=batch_size, **SIZES)
    for row, answers in zip(rows, together, strict=True):
        alone = answerer(**row, top_k=3, **SIZES)
        assert flat(answers) == pytest.approx(flat(alone), abs=1e-4)


def test_more_questions_than_are_held_in_memory_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("hf_distill.tasks.question_answering.answering._GROUP", 2)
    answerer = answerer_for()
    contexts = [TEXT[0], TEXT[1], LONG, TEXT[2], TEXT[3]]
    together = answerer(question=["Who?"] * 5, context=contexts, **SIZES)
    for context, answers in zip(contexts, together, strict=True):
        assert flat(answers) == pytest.approx(
            flat(answerer(question="Who?", context=context, **SIZES)), abs=1e-4
        )


def test_no_answer_comes_first_exactly_above_the_threshold() -> None:
    answerer = answerer_for()
    candidates = by_hand(answerer, "Who?", TEXT[0], 0.0)
    none = next(p for text, _, _, p in candidates if not text)
    best = next(p for text, _, _, p in candidates if text)
    margin = math.log(none / best)
    for shift, answered in ((-0.01, False), (0.01, True)):
        [first] = answerer(
            question="Who?", context=TEXT[0], no_answer_threshold=margin + shift, **SIZES
        )
        assert bool(first.text) == answered
    [first] = answerer(question="Who?", context=TEXT[0], no_answer_threshold=margin - 9, **SIZES)
    assert (first.text, first.start, first.end) == ("", 0, 0)


def test_the_shape_of_the_result_follows_the_input() -> None:
    answerer = answerer_for()
    [one] = answerer(question="Who?", context=TEXT[0], **SIZES)
    assert isinstance(one, Answer)
    assert answerer(question=["Who?"], context=TEXT[0], **SIZES) == [[one]]
    assert answerer(question=["Who?"] * 2, context=TEXT[0], **SIZES)[1] == [one]
    assert answerer([{"question": "Who?", "context": TEXT[0]}], **SIZES) == [[one]]
    assert answerer([], **SIZES) == answerer(question=[], context="x", **SIZES) == []


def test_a_context_without_tokens_has_no_answer() -> None:
    # BERT drops the zero-width joiner and the control character
    for threshold in (0.0, None, -50.0):
        [answer] = answerer_for()(
            question="Who?", context="\u200d\x01", no_answer_threshold=threshold, **SIZES
        )
        assert answer == Answer("", 0, 0, 1.0)


class Strict(DistilBertForQuestionAnswering):
    """Takes what it needs and nothing else."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> QuestionAnsweringModelOutput:
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


def test_a_model_without_token_types_does_not_get_them() -> None:
    config = DistilBertConfig(
        vocab_size=len(TOKENIZERS["bert"]), dim=16, n_layers=1, n_heads=2, hidden_dim=16
    )
    torch.manual_seed(0)
    answerer = QuestionAnswerer(Strict(config), TOKENIZERS["bert"], device="cpu")
    assert len(answerer(question="Who?", context=TEXT[0], **SIZES)) == 1


def test_a_model_that_masks_everything_has_no_answer() -> None:
    answerer = answerer_for()
    answerer.model.qa_outputs.bias.data.fill_(-math.inf)
    [answer] = answerer(question="Who?", context=LONG, **SIZES)
    assert answer == Answer("", 0, 0, 1.0)


def test_dropout_is_off() -> None:
    model = model_for("bert").train()
    answerer = QuestionAnswerer(model, TOKENIZERS["bert"], device="cpu")
    first, second = (answerer(question="Who?", context=LONG, **SIZES) for _ in range(2))
    assert first == second


def test_from_pretrained(tmp_path: Path) -> None:
    answerer = answerer_for()
    plain = answerer(question="Who?", context=LONG, top_k=5, **SIZES)
    answerer.model.half().save_pretrained(tmp_path)
    answerer.tokenizer.save_pretrained(tmp_path)
    loaded = QuestionAnswerer.from_pretrained(tmp_path, device="cpu")
    assert loaded.model.dtype == torch.float32  # although saved in float16
    answers = loaded(question="Who?", context=LONG, top_k=5, **SIZES)
    assert [a.score for a in answers] == pytest.approx([a.score for a in plain], abs=0.05)
    for dtype in ("bfloat16", torch.bfloat16):
        loaded = QuestionAnswerer.from_pretrained(tmp_path, device="cpu", dtype=dtype)
        assert loaded.model.dtype == torch.bfloat16
        assert loaded(question="Who?", context=LONG, **SIZES)
    with pytest.raises(ValueError, match="dtype='int8'.*'bfloat16'"):
        QuestionAnswerer.from_pretrained(tmp_path, dtype="int8")


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**TINY, vocab_size=len(TOKENIZERS["bert"]))).save_pretrained(
        tmp_path
    )
    TOKENIZERS["bert"].save_pretrained(tmp_path)
    lacking = r"is not fine-tuned.*qa_outputs\.bias, qa_outputs\.weight"
    with pytest.raises(ValueError, match=lacking):
        QuestionAnswerer.from_pretrained(tmp_path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        QuestionAnswerer.from_pretrained(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"question": " ", "context": "x"}, ValueError, "question 0 is ' '"),
        ({"question": "Who?", "context": ""}, ValueError, "context 0 is ''"),
        ({"question": ["Who?", "\n"], "context": "x"}, ValueError, r"question 1 is '\\n'"),
        ({"question": ["a", "b"], "context": ["x"]}, ValueError, "2 questions and 1 contexts"),
        ({"question": "a", "context": ["x", "y"]}, ValueError, "1 questions and 2 contexts"),
        ({"question": "a"}, TypeError, "either inputs, or both question and context"),
        ({}, TypeError, "either inputs, or both question and context"),
        ({"inputs": [], "question": "a"}, TypeError, "either inputs, or both"),
        ({"inputs": [{"question": "a"}]}, TypeError, r"inputs\[0\] must be an object"),
        ({"inputs": ["a"]}, TypeError, r"inputs\[0\] must be an object.*not 'a'"),
        ({"question": "a", "context": "x", "top_k": 0}, ValueError, "top_k=0"),
        ({"question": "a", "context": "x", "batch_size": 0}, ValueError, "batch_size=0"),
        (
            {"question": "a", "context": "x", "no_answer_threshold": math.inf},
            ValueError,
            "no_answer_threshold=inf",
        ),
        (
            {"question": "a", "context": "x", "max_length": 81},
            ValueError,
            "max_length=81 is more than the 80 tokens",
        ),
        (
            {"question": "a", "context": "x", "max_answer_length": 0},
            ValueError,
            "max_answer_length=0",
        ),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        answerer_for()(**{**SIZES, **arguments})


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TypeError, match="Slow is not a fast tokenizer"):
        QuestionAnswerer(model_for("bert"), Slow())


def test_nan_logits_name_the_question() -> None:
    answerer = answerer_for()
    answerer.model.qa_outputs.bias.data.fill_(math.nan)
    with pytest.raises(ValueError, match="is nan: the model gave no usable logits"):
        answerer(question="Who?", context=LONG, **SIZES)


def test_progress_is_shown_only_on_request(capsys) -> None:
    answerer = answerer_for()
    answerer(question="Who?", context=LONG, **SIZES)
    assert "Answering" not in capsys.readouterr().err
    answerer(question="Who?", context=LONG, progress=True, **SIZES)
    assert "Answering" in capsys.readouterr().err
