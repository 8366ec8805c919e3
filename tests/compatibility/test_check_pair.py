"""``check_pair``: what it says of good pairs, and that every bad one is refused with a remedy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import (
    Pair,
    always,
    assert_says,
    classifier,
    labelled,
    message,
    question_answering,
    saved,
    status,
)
from tiny import bert_config, tokenizer
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    ImageProcessingMixin,
    RobertaConfig,
    RobertaForSequenceClassification,
    Wav2Vec2FeatureExtractor,
)
from zoo import zoo_model

from hf_distill import check_pair, create_student
from hf_distill.compatibility import longest_input
from hf_distill.students import save_student

# ---- good pairs ----------------------------------------------------------------------------------


def test_a_good_pair(tmp_path: Path) -> None:
    teacher = saved(classifier(num_hidden_layers=3), tmp_path / "teacher", words=tokenizer())
    student = saved(BertModel(bert_config()), tmp_path / "student", words=tokenizer())
    report = check_pair(teacher, student)
    assert report.ok
    assert report.task == "text-classification"
    assert set(status(report).values()) == {"ok"}
    assert "97 tokens" in message(report, "tokenizer")
    assert "The same 3 labels" in message(report, "labels")  # the student was given the teacher's


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_student_has_the_labels_of_the_teacher_that_it_is_made_of(
    is_saved: bool, tmp_path: Path
) -> None:
    unnamed = classifier("LABEL_0", "LABEL_1", "LABEL_2", num_hidden_layers=3)
    teacher = saved(unnamed, tmp_path / "teacher", words=tokenizer())
    student = create_student(teacher, num_hidden_layers=1)
    made: Any = student
    if is_saved:
        save_student(student, tmp_path / "student", tokenizer())
        made = str(tmp_path / "student")
    report = check_pair(teacher, made)
    assert status(report)["labels"] == "ok" and "made of" in message(report, "labels")
    other = saved(copy.deepcopy(unnamed), tmp_path / "other", words=tokenizer())
    assert status(check_pair(other, made))["labels"] == "warning"
    student.config.id2label = {0: "0", 1: "1", 2: "2"}
    if not is_saved:
        assert status(check_pair(teacher, made))["labels"] == "warning"


def test_shared_running_statistics_are_refused() -> None:
    teacher, student = classifier(), classifier()
    for model in (teacher, student):
        model.norm = nn.BatchNorm1d(4)
    assert status(check_pair(teacher, student))["weights"] == "ok"
    student.norm.running_mean = teacher.norm.running_mean
    report = check_pair(teacher, student)
    assert not report.ok and "share 1 weights" in message(report, "weights")


def test_the_models_are_left_as_they_were() -> None:
    teacher, student = classifier().train(), classifier()
    before = copy.deepcopy(teacher.state_dict())
    batch = {"input_ids": torch.full((4, 6), 7), "labels": torch.tensor([0, 1, 2, 0])}
    check_pair(teacher, student, batches=[batch])
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_labels_in_another_order_are_realigned() -> None:
    report = check_pair(classifier("yes", "no", "maybe"), classifier())
    assert report.ok
    assert "in another order (yes, no, maybe instead of no, maybe, yes)" in message(
        report, "labels"
    )


@pytest.mark.parametrize(
    ("teacher", "student", "order"),
    [
        (("a", "A", "b"), ("A", "a", "b"), "a, A, b instead of A, a, b"),
        (("b", "A", "a"), ("A", "a", "b"), "b, A, a instead of A, a, b"),
        (("B", "no", "Yes"), ("yes", "b", "NO"), "B, no, Yes instead of yes, b, NO"),
    ],
)
def test_case_counts_where_labels_differ_in_nothing_else(
    teacher: tuple[str, ...], student: tuple[str, ...], order: str
) -> None:
    report = check_pair(classifier(*teacher), classifier(*student))
    assert report.ok and order in message(report, "labels")
    assert "same order" in message(check_pair(classifier("a", "A"), classifier("a", "A")), "labels")


def test_labels_are_read_by_number_also_where_json_made_text_of_it() -> None:
    teacher, student = classifier("yes", "no", "maybe"), classifier()
    for model in (teacher, student):
        model.config.id2label = {str(i): name for i, name in model.config.id2label.items()}
    report = check_pair(teacher, student)
    assert report.ok
    assert "reordered by name" in message(report, "labels")


def test_a_teacher_that_does_not_say_how_many_labels_an_input_has() -> None:
    several = "multi_label_classification"
    report = check_pair(classifier(), classifier(problem_type=several))
    assert report.ok and status(report)["problem type"] == "warning"
    assert "the teacher's configuration has none" in message(report, "problem type")
    for teacher in (several, None):
        report = check_pair(classifier(problem_type=teacher), classifier(problem_type=teacher))
        assert "problem type" not in status(report)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_decoders_whose_padding_is_the_datas(architecture: str) -> None:
    models = [
        zoo_model("text-classification", architecture, seed=seed, pad_token_id=2) for seed in (0, 1)
    ]
    assert check_pair(*models).ok
    encoders = [
        zoo_model("text-classification", "bert", seed=0, pad_token_id=pad) for pad in (2, 3)
    ]
    assert check_pair(*encoders).ok  # they read no padding


def test_a_student_of_another_family_with_the_same_ids(tmp_path: Path) -> None:
    teacher = saved(question_answering(), tmp_path / "t", words=tokenizer())
    student = saved(zoo_model("question-answering", "electra", seed=0), tmp_path / "s")
    tokenizer().save_pretrained(tmp_path / "s")
    assert check_pair(teacher, student).ok


def test_padded_vocabularies_are_compared_in_the_range_they_share() -> None:
    report = check_pair(
        BertForMaskedLM(bert_config(vocab_size=128)), BertForMaskedLM(bert_config(vocab_size=97))
    )
    assert report.ok
    assert "the first 97 are compared" in message(report, "vocabulary")


def test_a_causal_student_may_pad_with_its_own_token(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=97, n_embd=8, n_head=2, n_layer=1, n_positions=32)
    words = tokenizer()
    other = tokenizer()
    other.pad_token, other.eos_token = other.mask_token, other.sep_token
    teacher = saved(GPT2LMHeadModel(config), tmp_path / "t", words=words)
    student = saved(GPT2LMHeadModel(config), tmp_path / "s", words=other)
    assert check_pair(teacher, student).ok


def test_weights_that_only_lie_beside_each_other_are_not_shared() -> None:
    """As in one file, memory-mapped; and models without memory share none."""
    models = [classifier(), classifier()]
    weights = [p for model in models for p in model.parameters()]
    memory = torch.cat([p.detach().flatten() for p in weights])
    for weight, part in zip(weights, memory.split([p.numel() for p in weights]), strict=True):
        weight.data = part.view_as(weight)
    assert check_pair(*models).ok
    with torch.device("meta"):
        teacher, student = classifier(), classifier()
    assert "share" not in message(check_pair(teacher, student), "weights")


# ---- doubtful pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "pair", "expected"),
    [
        (
            "labels",
            lambda path: (classifier("LABEL_0", "LABEL_1", "LABEL_2"), classifier(), {}),
            "labels of the teacher have no names.*Set id2label and label2id",
        ),
        (
            "labels",
            lambda path: (classifier(), classifier("LABEL_0", "LABEL_1", "LABEL_2"), {}),
            "labels of the student have no names",
        ),
        (
            "labels",
            lambda path: (classifier(), classifier("0", "1", "2"), {}),
            "labels of the student have no names",
        ),
        (
            "labels",
            lambda path: (classifier("0", "1", "2"), classifier("LABEL_0", "LABEL_1", "2"), {}),
            "labels of the teacher and student have no names",
        ),
        (
            "training",
            lambda path: (BertForQuestionAnswering(bert_config()), question_answering(), {}),
            r"last layer \(qa_outputs\) is all zeros.*Pass a fine-tuned teacher",
        ),
        (
            "length",
            lambda path: (
                question_answering(max_position_embeddings=32),
                question_answering(),
                {},
            ),
            "at most 32 tokens, fewer than the student.*max_length",
        ),
        (
            "tokenizer",
            lambda path: (
                question_answering(vocab_size=128),
                question_answering(),
                {"processing_class": tokenizer()},
            ),
            "vocabulary has 128 entries and the student's 97.*pass teacher_model as a directory",
        ),
        (
            "target",
            lambda path: (
                zoo_model("summarization", "bart", seed=1, decoder_start_token_id=5),
                zoo_model("summarization", "bart", seed=0),
                {},
            ),
            "start with token 2 and the teacher's with 5.*decoder_start_token_id",
        ),
        (
            "quality",
            lambda path: (always(1), classifier(), {"batches": labelled([1, 1, 1, 0])}),
            "teacher gets 75.0% right.*no better than that has little to teach",
        ),
    ],
)
def test_what_only_the_user_can_know_is_a_warning(
    about: str, pair: Pair, expected: str, tmp_path: Path
) -> None:
    teacher, student, options = pair(tmp_path)
    report = check_pair(teacher, student, **options)
    assert report.ok
    assert status(report)[about] == "warning"
    assert_says(message(report, about), expected)


# ---- lengths -------------------------------------------------------------------------------------


def roberta(positions: int) -> nn.Module:
    config = RobertaConfig(
        vocab_size=97,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
    )
    return RobertaForSequenceClassification(config).eval()


@pytest.mark.parametrize(
    ("model", "longest"),
    [
        (lambda: classifier(max_position_embeddings=40), 40),
        (lambda: roberta(42), 40),
        (lambda: zoo_model("text-classification", "mpnet", seed=0), 62),
        (lambda: zoo_model("text-classification", "distilbert", seed=0), 64),
        (lambda: zoo_model("text-generation", "gpt2", seed=0), 64),
        (lambda: zoo_model("summarization", "bart", seed=0), 64),
    ],
)
def test_the_longest_input_works_and_one_more_token_does_not(model: Any, longest: int) -> None:
    model = model().eval()
    assert longest_input(model) == longest
    model(input_ids=torch.full((1, longest), 9))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 9))


@pytest.mark.parametrize("architecture", ["llama", "modernbert", "t5"])
def test_relative_positions_have_no_limit(architecture: str) -> None:
    assert longest_input(zoo_model("text-classification", architecture, seed=0)) is None


# ---- images and sounds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "architecture", "theirs", "ours", "expected"),
    [
        (
            "image-classification",
            "vit",
            ImageProcessingMixin(image_mean=[0.5, 0.5, 0.5]),
            ImageProcessingMixin(image_mean=[0.485, 0.456, 0.406]),
            r"image_mean=\[0.485, 0.456, 0.406\] and the teacher was trained with \[0.5, 0.5",
        ),
        (
            "audio-classification",
            "wav2vec2",
            Wav2Vec2FeatureExtractor(sampling_rate=16000),
            Wav2Vec2FeatureExtractor(sampling_rate=8000),
            "sampling_rate=8000 and the teacher was trained with 16000",
        ),
    ],
)
def test_inputs_that_the_teacher_would_misread(
    task: str, architecture: str, theirs: Any, ours: Any, expected: str, tmp_path: Path
) -> None:
    teacher = saved(zoo_model(task, architecture, seed=1), tmp_path, words=theirs)
    student = zoo_model(task, architecture, seed=0)
    assert check_pair(teacher, student, processing_class=theirs).ok
    assert check_pair(teacher, student).ok  # nothing to compare with
    report = check_pair(teacher, student, processing_class=ours)
    assert status(report)["processor"] == "error"
    assert_says(message(report, "processor"), expected)
