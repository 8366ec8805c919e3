"""The evaluator as Trainer's compute_metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from qa_tokenizers import TEXT, TOKENIZERS
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from hf_distill.tasks.question_answering import (
    QuestionAnsweringDataError,
    QuestionAnsweringEvaluator,
    prepare_eval_features,
)

TOKENIZER = TOKENIZERS["bert"]
WORDS = ["Paris", "capital", "France", "987", "Seine", "Größe", "Oktober", "Bundesrepublik"]


def examples(*, unanswerable: tuple[int, ...] = ()) -> Dataset:
    context = " ".join(TEXT[:2])
    rows = []
    for index, word in enumerate(WORDS):
        answers: dict[str, list[Any]] = {"text": [word], "answer_start": [context.index(word)]}
        if index in unanswerable:
            answers = {"text": [], "answer_start": []}
        rows.append(
            {
                "id": str(index),
                "context": context if index % 2 else TEXT[0] + " " + TEXT[1],
                "question": "Which? " * (index + 1),
                "answers": answers,
            }
        )
    return Dataset.from_list(rows)


def features_of(rows: Dataset) -> Dataset:
    return prepare_eval_features(rows, TOKENIZER, max_length=64, doc_stride=16)


PLAIN, SOME_IMPOSSIBLE = examples(), examples(unanswerable=(1, 4, 6))
FEATURES = {id(rows): features_of(rows) for rows in (PLAIN, SOME_IMPOSSIBLE)}


def evaluator(rows: Dataset, **options: Any) -> QuestionAnsweringEvaluator:
    return QuestionAnsweringEvaluator(rows, FEATURES[id(rows)], **options)


def logits(rows: Dataset, seed: int, padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random logits that lean towards the labels."""
    features = FEATURES[id(rows)]
    width = max(len(ids) for ids in features["input_ids"]) + padding
    random = np.random.default_rng(seed)
    start, end = random.normal(size=(2, len(features), width)).astype(np.float32)
    for row, window in enumerate(features):
        start[row, window["start_positions"]] += random.choice([0, 6])
        end[row, window["end_positions"]] += random.choice([0, 6])
        start[row, len(window["input_ids"]) :] = end[row, len(window["input_ids"]) :] = -100
    return start, end


@pytest.mark.parametrize("rows", [PLAIN, SOME_IMPOSSIBLE], ids=["v1", "v2"])
def test_under_trainer(tmp_path: Path, rows: Dataset) -> None:
    torch.manual_seed(0)
    model = BertForQuestionAnswering(
        BertConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            initializer_range=1.0,
        )
    ).eval()
    features, compute_metrics = FEATURES[id(rows)], evaluator(rows)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path), per_device_eval_batch_size=3, use_cpu=True, report_to="none"
        ),
        eval_dataset=features,
        processing_class=TOKENIZER,
        compute_metrics=compute_metrics,
    )
    reported = trainer.evaluate()
    assert np.isfinite(reported["eval_loss"])

    lengths = [len(ids) for ids in features["input_ids"]]
    assert len(set(lengths)) > 2  # so that Trainer pads logits
    start, end = np.full((2, len(lengths), max(lengths)), 1e9, dtype=np.float32)
    for index, window in enumerate(features):
        inputs = {name: torch.tensor([window[name]]) for name in TOKENIZER.model_input_names}
        with torch.no_grad():
            output = model(**inputs)
        start[index, : lengths[index]] = output.start_logits[0]
        end[index, : lengths[index]] = output.end_logits[0]
    alone = compute_metrics(EvalPrediction((start, end), None))
    assert set(alone) <= {name.removeprefix("eval_") for name in reported}
    for name, value in alone.items():
        assert reported[f"eval_{name}"] == pytest.approx(value, abs=1e-4), name


def test_v1_scores_and_always_answers() -> None:
    start, end = logits(PLAIN, 0)
    start[:, 0] = end[:, 0] = 50.0
    one = evaluator(PLAIN)
    predictions = one.predictions(start, end)
    assert all(prediction.text for prediction in predictions)
    scores = one(EvalPrediction((start, end), None))
    assert set(scores) == {"exact_match", "f1"}
    right = [p.text == word for p, word in zip(predictions, WORDS, strict=True)]
    assert scores["exact_match"] == pytest.approx(100 * np.mean(right))
    assert 0 < scores["exact_match"] < 100


def test_labels_as_logits_score_100() -> None:
    for rows in (PLAIN, SOME_IMPOSSIBLE):
        features = FEATURES[id(rows)]
        width = max(len(ids) for ids in features["input_ids"])
        start = np.eye(width)[features["start_positions"]] * 10
        end = np.eye(width)[features["end_positions"]] * 10
        scores = evaluator(rows)(EvalPrediction((start, end), None))
        assert scores["exact_match"] == scores["f1"] == 100.0


@pytest.mark.parametrize("rows", [PLAIN, SOME_IMPOSSIBLE], ids=["v1", "v2"])
@given(seed=st.integers(0, 10_000), bias=st.sampled_from([-8.0, 0.0, 12.0]))
@settings(max_examples=20)
def test_the_scores_are_the_means_of_the_examples(rows: Dataset, seed: int, bias: float) -> None:
    start, end = logits(rows, seed)
    start[:, 0] += bias
    one = evaluator(rows)
    predictions = one.predictions(start, end)
    scores = one.score(predictions)
    for name, values in one.score_each(predictions).items():
        assert len(values) == len(rows) and 100 * np.mean(values) == pytest.approx(scores[name])


@given(seed=st.integers(0, 10_000), bias=st.sampled_from([-8.0, -2.0, 0.0, 3.0, 12.0]))
@settings(max_examples=25)
def test_the_best_thresholds_are_thresholds_to_use(seed: int, bias: float) -> None:
    start, end = logits(SOME_IMPOSSIBLE, seed)
    start[:, 0] += bias
    scores = evaluator(SOME_IMPOSSIBLE)(EvalPrediction((start, end), None))
    for name, key in (("exact", "exact_match"), ("f1", "f1")):
        threshold = scores[f"best_{name}_thresh"]
        again = evaluator(SOME_IMPOSSIBLE, no_answer_threshold=threshold)
        at_best = again(EvalPrediction((start, end), None))
        assert at_best[key] == pytest.approx(scores[f"best_{name}"])
        # what is scored is what the predictions say
        texts = {p.id: p.text for p in again.predictions(start, end)}
        impossible = [texts[row["id"]] for row in SOME_IMPOSSIBLE if not row["answers"]["text"]]
        assert at_best["NoAns_exact"] == pytest.approx(100 * np.mean([t == "" for t in impossible]))


def test_a_threshold_that_answers_nothing_can_be_the_best() -> None:
    start, end = (np.zeros((len(FEATURES[id(SOME_IMPOSSIBLE)]), 64)) for _ in range(2))
    start[:, 0], end[:, 0] = -9.0, -np.arange(len(start))
    for row, window in enumerate(FEATURES[id(SOME_IMPOSSIBLE)]):  # the answer is a wrong one
        token = [i for i, offset in enumerate(window["offset_mapping"]) if offset is not None][1]
        start[row, token] = end[row, token] = 1.0
    scores = evaluator(SOME_IMPOSSIBLE)(EvalPrediction((start, end), None))
    assert scores["exact_match"] == 0.0
    assert scores["best_exact"] == pytest.approx(100 * 3 / 8)
    margins = [p.no_answer_margin for p in evaluator(SOME_IMPOSSIBLE).predictions(start, end)]
    assert scores["best_exact_thresh"] < min(margins) < 0


def test_the_threshold_moves_the_scores_apart() -> None:
    start, end = logits(SOME_IMPOSSIBLE, 3)
    never, always = (
        evaluator(SOME_IMPOSSIBLE, no_answer_threshold=threshold)(
            EvalPrediction((start, end), None)
        )
        for threshold in (None, -1e6)
    )
    assert never["NoAns_exact"] == 0.0
    assert always["NoAns_exact"] == 100.0 and always["HasAns_exact"] == 0.0
    assert (always["HasAns_total"], always["NoAns_total"], always["total"]) == (5, 3, 8)
    assert always["exact_match"] == pytest.approx(100 * 3 / 8)
    assert never["best_f1"] == always["best_f1"] >= max(never["f1"], always["f1"])


def test_options_reach_the_search() -> None:
    start, end = logits(PLAIN, 1)
    short = evaluator(PLAIN, max_answer_length=1, n_best=3).predictions(start, end)
    assert all(len(p.answers) == 3 for p in short)
    assert all(" " not in answer.text for p in short for answer in p.answers)


def test_v2_rules_on_answerable_data_and_v1_rules_on_unanswerable() -> None:
    scores = evaluator(PLAIN, version_2=True)(EvalPrediction(logits(PLAIN, 0), None))
    assert "HasAns_f1" in scores and "NoAns_f1" not in scores
    with pytest.raises(ValueError, match="version_2=False"):
        evaluator(SOME_IMPOSSIBLE, version_2=False)


def test_more_outputs_are_ignored_and_fewer_refused() -> None:
    start, end = logits(PLAIN, 0, padding=7)
    plain = evaluator(PLAIN)(EvalPrediction((start, end), None))
    more = evaluator(PLAIN)(EvalPrediction((start, end, np.zeros(3)), None))
    assert plain == more
    with pytest.raises(ValueError, match="start logits, end logits"):
        evaluator(PLAIN)(EvalPrediction(start, None))


def test_an_evaluation_in_another_order_is_refused() -> None:
    """As Trainer's is under train_sampling_strategy="group_by_length"."""
    features = FEATURES[id(PLAIN)]
    labels = [np.array(features[name]) for name in ("start_positions", "end_positions")]
    start, end = logits(PLAIN, seed=0)
    scores = evaluator(PLAIN)(EvalPrediction((start, end), tuple(labels)))
    assert scores["f1"] > 0
    order = np.arange(len(features))[::-1]
    shuffled = EvalPrediction((start[order], end[order]), tuple(label[order] for label in labels))
    with pytest.raises(ValueError, match="in another order"):
        evaluator(PLAIN)(shuffled)


def test_null_answers_are_named_before_anything_is_computed() -> None:
    rows = [{**row, "answers": None} if row["id"] == "2" else row for row in PLAIN]
    with pytest.raises(QuestionAnsweringDataError, match=r"examples\[2\].answers is null"):
        QuestionAnsweringEvaluator(Dataset.from_list(rows), FEATURES[id(PLAIN)])
