"""What heads make of a batch, written out by hand: rows that count, classes by label, targets."""

from __future__ import annotations

import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_distill.heads import (
    CausalLMHead,
    MaskedLMHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    Seq2SeqLMHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
    head_of_task,
)
from hf_distill.heads.base import HIDING, attention_mask, main_input, not_padding, output

IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
MASK = (IDS > 0).long()
LABELS = torch.tensor([[-100, 6, 7, -100], [-100, 6, -100, -100]])
MULTI = "multi_label_classification"


def classifier(problem_type: str | None, num_labels: int = 3) -> SequenceClassificationHead:
    config = SimpleNamespace(problem_type=problem_type, num_labels=num_labels)
    return SequenceClassificationHead(config)


def as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


@pytest.mark.parametrize(
    ("head", "labels", "gold"),
    [
        (classifier(None), [2, -100], [2, -100]),
        (classifier(None), [[2], [0]], [2, 0]),
        (classifier(None), [[2, 0], [1, 1]], None),  # targets of a loss of one's own
        (classifier(None), [2.0, 1.0], None),
        (classifier(None, num_labels=1), [0.3, 2.0], None),
        (classifier("regression"), [2, 1], None),
        (classifier(MULTI), [[1.0, 0.0, 0.5]], [[0, 1, 0]]),
        (MultipleChoiceHead(), [[1], [0]], [1, 0]),
        (TokenClassificationHead(), LABELS.tolist(), LABELS.tolist()),
        (CausalLMHead(), LABELS.tolist(), [[6, 7, -100], [6, -100, -100]]),
    ],
)
def test_classes_of_rows(head: TaskHead, labels: Any, gold: Any) -> None:
    batch = {"input_ids": IDS, "labels": torch.tensor(labels)}
    found = head.gold(batch)
    assert as_list(found) == gold
    assert head.gold({"input_ids": IDS}) is None
    assert head.count_labelled({"input_ids": IDS}) == 0
    if found is not None:
        assert not found.is_floating_point()
        assert int(head.count_labelled(batch)) == (
            len(labels) if head.config and head.problem_type == MULTI  # type: ignore[attr-defined]
            else sum(one != -100 for one in found.flatten().tolist())
        )  # fmt: skip


@pytest.mark.parametrize(
    ("head", "labels", "wrong"),
    [
        (classifier(None), [2, 0], None),
        (classifier(None), [[2], [0], [1]], None),
        (classifier(None), [[1, 0]], "vectors of whole numbers"),
        (classifier(None), [2.0, 0.0], "floating-point numbers"),
        (classifier(MULTI), [[1.0, 0.0, 1.0]], None),
        (classifier(MULTI, num_labels=2), [[1.0, 0.0]], None),
        (classifier(MULTI), [1.0, 0.0, 1.0], "vectors of 3 floating-point"),
        (classifier(MULTI), [[1.0], [0.0]], "vectors of 3 floating-point"),
        (classifier(MULTI), [[1, 0, 1]], "vectors of 3 floating-point"),
        (classifier(MULTI, num_labels=1), [[1.0], [0.0]], None),
        (classifier(MULTI, num_labels=2), [[1.0], [0.0]], "vectors of 2 floating-point"),
        (classifier("regression"), [[1, 0], [2, 3]], None),
    ],
)
def test_labels_of_another_kind_are_refused(
    head: SequenceClassificationHead, labels: Any, wrong: str | None
) -> None:
    with nullcontext() if wrong is None else pytest.raises(ValueError, match=wrong):
        head.check_labels({"labels": torch.tensor(labels)})


def test_answers_outside_the_window_do_not_count() -> None:
    head = QuestionAnsweringHead()
    batch = {
        "input_ids": IDS,
        "start_positions": torch.tensor([3, 4]),
        "end_positions": torch.tensor([[4], [2]]),
    }
    assert as_list(head.gold(batch)) == [[3, -100], [-100, 2]]
    assert float(head.count_labelled(batch)) == 1.0
    for name in ("start_positions", "end_positions"):
        missing = {key: value for key, value in batch.items() if key != name}
        assert head.gold(missing) is None and head.count_labelled(missing) == 0


def test_answers_below_0_are_at_0_as_in_the_models_own_loss() -> None:
    head = QuestionAnsweringHead()
    batch = {"input_ids": IDS, "start_positions": torch.tensor([-100, 4]),
             "end_positions": torch.tensor([-1, 2])}  # fmt: skip
    assert as_list(head.gold(batch)) == [[0, 0], [-100, 2]]
    assert float(head.count_labelled(batch)) == 1.5


ALL = [[True] * 4] * 2
TOKENS = [[True] * 4, [True, True, False, False]]
PROMPTED = torch.ones(2, 6, dtype=torch.long)
"""A mask that also covers a prompt of two tokens."""


@pytest.mark.parametrize(
    ("more", "positions", "tokens"),
    [
        ({}, ALL, ALL),
        ({"attention_mask": MASK}, TOKENS, TOKENS),
        ({"attention_mask": MASK, "labels": LABELS}, (LABELS != -100).tolist(), TOKENS),
        ({"labels": LABELS}, (LABELS != -100).tolist(), ALL),
    ],
)
def test_tokens_that_count(more: dict[str, Any], positions: Any, tokens: Any) -> None:
    batch = {"input_ids": IDS, **more}
    head = TokenClassificationHead()
    assert head.compared_positions(batch).tolist() == positions
    assert int(head.count_rows(batch)) == sum(map(sum, positions))
    found = not_padding(batch)
    assert found.tolist() == tokens and found.dtype == torch.bool
    answers = QuestionAnsweringHead()
    assert answers.compared_positions(batch).tolist() == tokens
    classes = answers.class_mask(batch)
    assert as_list(classes) == ([[row] for row in tokens] if "attention_mask" in more else None)


def test_embeddings_have_the_padding_of_their_tokens() -> None:
    batch = {"inputs_embeds": torch.zeros(2, 4, 3), "attention_mask": MASK}
    assert not_padding(batch).tolist() == TOKENS


def test_a_mask_of_another_length_is_not_that_of_the_tokens() -> None:
    assert not_padding({"input_ids": IDS, "attention_mask": PROMPTED}).tolist() == ALL


def test_padding_in_a_mask_of_pairs_is_what_no_token_sees() -> None:
    visible = torch.ones(2, 1, 4, 4).tril().bool()
    visible[1, :, :, 2:] = False
    added = torch.zeros(2, 1, 4, 4).masked_fill(~visible, torch.finfo(torch.float32).min)
    hidden = torch.zeros(2, 1, 4, 4).masked_fill(~visible, HIDING)
    for mask in (visible, added, hidden):
        found = attention_mask({"input_ids": IDS, "attention_mask": mask})
        assert found is not None and found.tolist() == TOKENS
    weights = MASK.float()  # of two dimensions: 1.0 is visible, and 0.0 is not
    assert as_list(attention_mask({"attention_mask": weights})) == TOKENS
    two_heads = torch.stack((visible[:, 0], visible[:, 0].roll(1, 2)), dim=1)
    assert as_list(attention_mask({"attention_mask": two_heads})) == [
        [True] * 4, [True, True, True, False],
    ]  # fmt: skip


def test_entries_that_are_missing_are_named_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"compares logits, .* only: loss, hidden_states\. Use"):
        output({"loss": torch.zeros(()), "hidden_states": torch.zeros(1)}, "logits")
    with pytest.raises(ValueError, match=r"returned only: tuple\. Use"):
        output((torch.zeros(1),), "logits")  # type: ignore[arg-type]
    assert main_input({"attention_mask": MASK, "labels": LABELS}) is MASK
    with pytest.raises(ValueError, match=r"none of input_ids, .*, only: text, label\. Check"):
        main_input({"text": ["a"], "label": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"decoder_input_ids, only: input_ids, length\. A"):
        Seq2SeqLMHead().count_rows({"input_ids": IDS, "length": 4})


@pytest.mark.parametrize(
    ("more", "rows"),
    [
        ({}, [[True] * 3] * 2),
        ({"attention_mask": MASK}, [[True] * 3, [True, False, False]]),
        ({"attention_mask": MASK.flip(1)}, [[True] * 3, [False, False, True]]),
        ({"attention_mask": MASK, "labels": LABELS}, [[True, True, False], [True, False, False]]),
        ({"labels": LABELS}, [[True, True, False], [True, False, False]]),
    ],
)
def test_a_token_counts_where_the_next_one_does(more: dict[str, Any], rows: Any) -> None:
    batch, head = {"input_ids": IDS, **more}, CausalLMHead()
    assert head.row_mask(batch).tolist() == rows
    assert head.compared_positions(batch).tolist() == [[*row, False] for row in rows]
    assert int(head.count_rows(batch)) == sum(map(sum, rows))


def test_a_row_that_begins_with_padding_predicts_no_first_token() -> None:
    labels = torch.tensor([[5, 6, 7, 8], [-100, -100, 5, 6]])
    batch = {"input_ids": IDS, "attention_mask": MASK.flip(1), "labels": labels}
    assert CausalLMHead().row_mask(batch)[1].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("head", "shape", "raw"),
    [
        (classifier(None), (2, 3), {"logits": (2, 3)}),
        (classifier(MULTI), (2, 3, 2), {"logits": (2, 3)}),
        (QuestionAnsweringHead(), (2, 2, 4), {"start_logits": (2, 4), "end_logits": (2, 4)}),
        (TokenClassificationHead(), (2, 4, 3), {"logits": (2, 4, 3)}),
        (MaskedLMHead(), (2, 4, 9), {"logits": (2, 4, 9)}),
        (CausalLMHead(), (2, 3, 9), {"logits": (2, 4, 9)}),
    ],
)
def test_logits_of_a_model_and_back(
    head: TaskHead, shape: tuple[int, ...], raw: dict[str, tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    outputs = {name: torch.randn(size) for name, size in raw.items()}
    batch = {"input_ids": IDS}
    logits = head.logits(outputs, batch)
    assert logits.shape == shape
    back = head.outputs(logits)
    assert {name: tuple(value.shape) for name, value in back.items()} == raw
    again = head.logits(back, batch)
    assert torch.equal(again, logits)
    if isinstance(head, QuestionAnsweringHead):
        assert all(torch.equal(back[name], outputs[name]) for name in raw)


def test_log_odds_of_stored_probabilities() -> None:
    logits = torch.tensor([[[2.0, 0.5], [-1.0, 3.0]]])
    assert classifier(MULTI).outputs(logits)["logits"].tolist() == [[1.5, -4.0]]


def test_logits_for_some_tokens_only_are_refused() -> None:
    head, batch = MaskedLMHead(), {"input_ids": IDS}
    with pytest.raises(ValueError, match=re.escape("(3, 9)")) as refused:
        head.logits({"logits": torch.zeros(3, 9)}, batch)
    assert "sparse_prediction=False" in str(refused.value)
    with pytest.raises(ValueError, match="6 positions and its input has 4") as refused:
        head.logits({"logits": torch.zeros(2, 6, 9)}, batch)
    assert "max_length=6" in str(refused.value)


TARGET = torch.tensor([[0, 6, 7, 2], [0, 6, 2, 0]])


@pytest.mark.parametrize(
    ("batch", "pad", "counts"),
    [
        ({"labels": LABELS, "decoder_input_ids": TARGET}, 0, (LABELS != -100).tolist()),
        ({"decoder_input_ids": TARGET}, 0, [[True] * 4, [True, True, True, False]]),
        ({"decoder_input_ids": TARGET}, None, ALL),
        ({"decoder_input_ids": TARGET, "decoder_attention_mask": MASK}, 0, TOKENS),
    ],
)
def test_tokens_of_a_target_that_count(batch: dict[str, Any], pad: int | None, counts: Any) -> None:
    head = Seq2SeqLMHead(SimpleNamespace(pad_token_id=pad, decoder_start_token_id=0))
    found = head.compared_positions(batch)
    assert found.tolist() == counts and found.dtype == torch.bool
    assert int(head.count_rows(batch)) == sum(map(sum, counts))


@pytest.mark.parametrize(
    ("batch", "target"),
    [
        ({"labels": LABELS}, [[-1, 9, 6, 7], [-1, 9, 6, 9]]),
        ({"labels": LABELS, "decoder_attention_mask": MASK}, [[-1, 9, 6, 7], [-1, 9, -2, -2]]),
        ({"decoder_input_ids": TARGET}, [[-1, 6, 7, 2], [-1, 6, 2, 0]]),
        ({"decoder_input_ids": TARGET + 1}, [[1, 7, 8, 3], [1, 7, 3, 1]]),
        ({"input_ids": IDS}, None),
    ],
)
def test_what_a_decoder_reads(batch: dict[str, Any], target: Any) -> None:
    head = Seq2SeqLMHead(SimpleNamespace(pad_token_id=9, decoder_start_token_id=0))
    before = {name: value.clone() for name, value in batch.items()}
    assert as_list(head.target(batch)) == target
    assert all(torch.equal(batch[name], value) for name, value in before.items())


def test_a_target_without_a_padding_token() -> None:
    head = Seq2SeqLMHead(SimpleNamespace(pad_token_id=None, decoder_start_token_id=0))
    assert as_list(head.target({"labels": LABELS})) == [[-1, -100, 6, 7], [-1, -100, 6, -100]]
    assert head.target_inputs({"decoder_input_ids": TARGET}, nn.Linear(1, 1)) == {}


def test_the_start_token_becomes_the_teachers_own() -> None:
    head = Seq2SeqLMHead(SimpleNamespace(pad_token_id=9, decoder_start_token_id=0))
    inputs = {"decoder_input_ids": TARGET}
    assert head.target_inputs(inputs, _model(0)) == {}
    assert head.target_inputs(inputs, _model(None)) == {}
    found = head.target_inputs(inputs, _model(4))["decoder_input_ids"]
    assert found.tolist() == [[4, 6, 7, 2], [4, 6, 2, 0]]
    shifted = head.target_inputs({"labels": LABELS}, _model(4))["decoder_input_ids"]
    assert shifted.tolist() == [[4, 9, 6, 7], [4, 9, 6, 9]]
    rotating = _model(4)
    rotating.prepare_decoder_input_ids_from_labels = lambda labels: labels.fill_(3)
    own = head.target_inputs({"labels": LABELS}, rotating)["decoder_input_ids"]
    assert own.tolist() == [[3] * 4] * 2 and LABELS[0, 0] == -100
    assert head.target_inputs({"labels": LABELS, "decoder_inputs_embeds": 1}, _model(4)) == {}
    assert head.target_inputs({"input_ids": IDS}, _model(4)) == {}


def _model(start: int | None) -> Any:
    return SimpleNamespace(config=SimpleNamespace(decoder_start_token_id=start, pad_token_id=9))


def test_heads_by_task() -> None:
    assert type(head_of_task("translation", None)) is Seq2SeqLMHead
    with pytest.raises(ValueError, match=r"no task 'answering'.*question-answering, token-class"):
        head_of_task("answering", None)
