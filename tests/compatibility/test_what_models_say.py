"""What is read from models, configurations and tokenizers, rule by rule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import model_for, tokenizer
from torch import nn
from zoo import zoo_model

from hf_distill.compatibility.inputs import check_inputs
from hf_distill.compatibility.models import (
    _check_lengths,
    _check_vocabularies,
    input_limit,
    longest_input,
)
from hf_distill.compatibility.precision import rounding_of, rounding_unit
from hf_distill.compatibility.processors import _settings_of
from hf_distill.compatibility.teacher_check import _judge
from hf_distill.compatibility.tokenizers import _compare_vocabularies, check_map
from hf_distill.compatibility.two_tokenizers import check_reader
from hf_distill.compatibility.vocabulary_map import VocabularyMap, special_ids
from hf_distill.heads import QuestionAnsweringHead, Seq2SeqLMHead, find_head


def test_the_limit_of_a_model_without_position_embeddings_is_its_configurations() -> None:
    model = zoo_model("text-classification", "llama", seed=0)
    assert longest_input(model) is None
    model.config.max_position_embeddings = 48
    assert input_limit(model) == 48


def test_how_long_inputs_of_a_teacher_may_be() -> None:
    limited = zoo_model("text-classification", "bert", seed=0)
    unlimited = zoo_model("text-classification", "llama", seed=0)
    messages = {
        (teacher, student): [one.message for one in _check_lengths(teacher, student)]
        for teacher in (limited, unlimited)
        for student in (limited, unlimited)
    }
    assert messages[limited, limited] == ["The teacher takes inputs up to 64 tokens."]
    for student in (limited, unlimited):
        [found] = messages[unlimited, student]
        assert found == "The teacher takes inputs as long as the student likes."
    assert "at most 64 tokens, fewer than the student (no limit)" in messages[limited, unlimited][0]


def test_a_quantised_model_rounds_as_bfloat16() -> None:
    model: Any = nn.Linear(2, 2)
    assert rounding_unit(model) == 2**-10
    model.is_quantized = True
    assert rounding_unit(model) == torch.finfo(torch.bfloat16).eps == 2**-7


def test_special_ids_of_all_forms() -> None:
    config = SimpleNamespace(
        bos_token_id=1, eos_token_id=[2, 3], bad_token_ids=[4], pad_token_id=None, vocab_size=9
    )
    assert special_ids(config) == {1, 2, 3, 4}


def test_of_two_vocabularies_the_difference_with_the_smallest_id_is_named() -> None:
    theirs, ours = ({"a": 0, "m": 1, "d": 2}, {"a": 0, "n": 1, "b": 2})
    tokenizers: Any = [SimpleNamespace(get_vocab=lambda v=v: v) for v in (theirs, ours)]
    found = _compare_vocabularies(*tokenizers, 3)
    assert found.status == "error" and "'m' (id 1)" in found.message


def test_the_vocabulary_of_a_composite_model_is_that_of_its_text() -> None:
    def composite(size: int) -> Any:
        return SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=size))

    [found] = _check_vocabularies(composite(30), composite(20))
    assert "30 tokens and the teacher for 20; the first 20" in found.message
    assert _check_vocabularies(composite(30), composite(30)) == []


@pytest.mark.parametrize("part", ["feature_extractor", "image_processor"])
def test_the_settings_of_a_processor_are_those_of_the_part_that_reads(part: str) -> None:
    processor = SimpleNamespace(**{part: SimpleNamespace(to_dict=lambda: {"size": (1, 2)})})
    assert _settings_of(processor) == {"size": [1, 2]}


def test_the_start_of_a_target_is_renumbered_for_the_teacher_alone() -> None:
    head = Seq2SeqLMHead(SimpleNamespace(decoder_start_token_id=1))
    moved, batch = VocabularyMap([0, 5, 7], 9).inputs_for_teacher(
        head, {"labels": torch.tensor([[2, 1, -100]])}
    )
    assert moved.config.decoder_start_token_id == 5 and head.config.decoder_start_token_id == 1
    assert batch["labels"].tolist() == [[7, 5, -100]]


def test_ids_of_every_model_are_checked_and_the_remedy_is_for_the_one_that_lacks_them() -> None:
    """Also where a teacher reads something else than ids."""
    student = model_for("question-answering", seed=0)
    size = student.config.vocab_size
    blind = SimpleNamespace(model=nn.Linear(1, 1), input_names=frozenset({"input_values"}))
    reader = SimpleNamespace(model=student, input_names=frozenset({"input_ids"}))
    batch = {"input_ids": torch.tensor([[size]])}
    head = QuestionAnsweringHead()
    with pytest.raises(ValueError, match="the student's vocabulary .* Prepare it with the one"):
        check_inputs([blind], student, head, batch, {"input_values": torch.ones(1, 1)})
    with pytest.raises(ValueError, match="the teacher's vocabulary .* trained with another"):
        check_inputs([reader], student, head, batch)


def test_a_batch_may_be_as_long_as_there_are_positions() -> None:
    student = zoo_model("text-classification", "bert", seed=0)
    head = find_head(student)
    longest = longest_input(student)
    assert longest == 64
    check_inputs([], student, head, {"input_ids": torch.zeros(1, longest, dtype=torch.long)})
    with pytest.raises(ValueError, match="rows of 65 tokens, but the student has positions for 64"):
        check_inputs([], student, head, {"input_ids": torch.zeros(1, 65, dtype=torch.long)})


def test_logits_may_differ_by_four_roundings_of_the_largest() -> None:
    logits = [torch.tensor([1.0, -3.0, float("inf")]), torch.tensor([-8.0, float("-inf")])]
    assert rounding_of(logits, 2**-10) == 4 * 8 * 2**-10


class Reader:
    """A tokenizer of whole words."""

    def __init__(self, words: list[str], cls_token_id: int | None) -> None:
        self.ids = {word: place for place, word in enumerate(words)}
        self.cls_token_id = cls_token_id

    def get_vocab(self) -> dict[str, int]:
        return self.ids

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.ids[word] for word in text.split() if word in self.ids]}


@pytest.mark.parametrize(("ours", "is_right"), [(1, True), (0, False), (None, True)])
def test_special_tokens_of_a_trimmed_vocabulary_are_the_teachers(
    ours: int | None, is_right: bool
) -> None:
    kept = VocabularyMap([0, 2], 3)
    teacher: Any = Reader(["a", "b", "c"], cls_token_id=2)
    student: Any = Reader(["a", "c"], cls_token_id=ours)
    if is_right:
        check_map(kept, teacher, student, ["cls_token_id"])
    else:
        with pytest.raises(ValueError, match="cls_token_id is 2 for the teacher and 0 for the stu"):
            check_map(kept, teacher, student, ["cls_token_id"])


@pytest.mark.parametrize(
    ("answers", "status"), [([1, 1, 1, 0], "ok"), ([1, 1, 1, 1], "warning"), ([0] * 4, "error")]
)
def test_a_teacher_is_judged_by_its_quality(answers: list[int], status: str) -> None:
    found = _judge(torch.tensor([1, 1, 1, 0] * 32), torch.tensor(answers * 32), "the first rows")
    assert (found.about, found.status) == ("quality", status)


def test_a_teacher_with_a_tokenizer_of_its_own_knows_its_padding() -> None:
    teacher: Any = zoo_model("text-classification", "gpt2", seed=0)
    words = tokenizer()
    teacher.config.pad_token_id = words.pad_token_id + 1
    found = check_reader(teacher, words, SimpleNamespace(head=find_head(teacher), unit=None))
    assert found.status == "error"
    assert found.message.startswith("The teacher reads the label of a text at the last token")
