"""``check_pair``: what it says of good pairs, and that every bad one is refused with a remedy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bert_config, tokenizer
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    ImageProcessingMixin,
    RobertaConfig,
    RobertaForSequenceClassification,
    Wav2Vec2FeatureExtractor,
)
from zoo import zoo_model

from hf_distill import check_pair
from hf_distill.pairing import longest_input

NAMES = ("no", "maybe", "yes")


def named(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def trained(model: nn.Module) -> nn.Module:
    """As if it were: no bias is zero any more."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def classifier(*names: str, cls: Any = BertForSequenceClassification, **options: Any) -> nn.Module:
    return trained(cls(bert_config(**named(*(names or NAMES)), **options)))


def question_answering(**options: Any) -> nn.Module:
    return trained(BertForQuestionAnswering(bert_config(**options)))


def saved(model: nn.Module, path: Path, *, words: Any = None) -> str:
    model.save_pretrained(path)
    if words is not None:
        words.save_pretrained(path)
    return str(path)


def status(report: Any) -> dict[str, str]:
    return {finding.about: finding.status for finding in report.findings}


def message(report: Any, about: str) -> str:
    return next(f.message for f in report.findings if f.about == about)


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


# ---- doubtful pairs ------------------------------------------------------------------------------

Pair = Callable[[Path], tuple[Any, Any, dict[str, Any]]]


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


# ---- bad pairs -----------------------------------------------------------------------------------


def always(label: int) -> nn.Module:
    """A teacher that gives one label, whatever the input."""
    model = classifier()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.eye(3)[label])
    return model


def labelled(labels: list[int]) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.full((len(labels), 6), 7), "labels": torch.tensor(labels)}]


def itself(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    model = classifier()
    return model, model, {}


def tied_embeddings(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    teacher, student = classifier(), classifier()
    student.bert.embeddings = teacher.bert.embeddings
    return teacher, student, {}


def with_tokenizers(theirs: Any, ours: Any, **teacher: Any) -> Pair:
    def pair(path: Path) -> tuple[Any, Any, dict[str, Any]]:
        model = saved(question_answering(**teacher), path / "teacher", words=theirs())
        return model, question_answering(), {"processing_class": ours()}

    return pair


def swapped() -> Any:
    words = tokenizer()
    words.pad_token, words.mask_token = words.mask_token, words.pad_token
    return words


def with_a_new_token() -> Any:
    words = tokenizer()
    words.add_tokens(["<new>"])
    return words


def other_words() -> Any:
    return tokenizer(tuple(f"other{i}" for i in range(10)))


def truncated(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    folder = Path(saved(classifier(), path / "teacher"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return str(folder), classifier(), {}


def a_folder_without_config(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    (path / "empty").mkdir()
    return str(path / "empty"), classifier(), {}


def a_file(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    (path / "file").write_text("{}")
    return str(path / "file"), classifier(), {}


def config_is_no_json(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    folder = Path(saved(classifier(), path / "teacher"))
    (folder / "config.json").write_text('{"model_type": ')
    return str(folder), classifier(), {}


BAD_PAIRS: dict[str, tuple[str, Pair, str]] = {
    "a model that teaches itself": (
        "weights",
        itself,
        "share 41 weights.*Give the student weights of its own",
    ),
    "shared embeddings": ("weights", tied_embeddings, "share 5 weights.*copy.deepcopy"),
    "another task": (
        "task",
        lambda path: (question_answering(), classifier(), {}),
        "BertForQuestionAnswering and model a BertForSequenceClassification.*same task",
    ),
    "tags instead of labels": (
        "task",
        lambda path: (classifier(cls=BertForTokenClassification), classifier(), {}),
        "BertForTokenClassification and model a BertForSequenceClassification",
    ),
    "a teacher without head": (
        "task",
        lambda path: (BertModel(bert_config()), classifier(), {}),
        "a BertModel and model a BertForSequenceClassification",
    ),
    "a student without head": (
        "models",
        lambda path: (classifier(), BertModel(bert_config()), {}),
        "the student, a BertModel, is for cannot be told",
    ),
    "an encoder as the teacher": (
        "models",
        lambda path: (saved(BertModel(bert_config()), path / "t"), classifier(), {}),
        "not fine-tuned for text-classification: its weights lack classifier.bias",
    ),
    "a masked language model as the teacher": (
        "models",
        lambda path: (saved(BertForMaskedLM(bert_config()), path / "t"), classifier(), {}),
        "not fine-tuned for text-classification.*choose another teacher",
    ),
    "another task by name": (
        "models",
        lambda path: (
            saved(question_answering(), path / "t"),
            saved(classifier(), path / "s"),
            {"task": "text-classification"},
        ),
        "not fine-tuned for text-classification",
    ),
    "an unknown task": (
        "models",
        lambda path: (classifier(), classifier(), {"task": "juggling"}),
        "no task 'juggling'; the tasks are: question-answering",
    ),
    "a teacher that is not there": (
        "models",
        lambda path: (str(path / "nowhere"), classifier(), {}),
        "teacher_model='.*nowhere' cannot be loaded",
    ),
    "a student that is not there": (
        "models",
        lambda path: (classifier(), str(path / "nowhere"), {}),
        "student='.*nowhere' cannot be loaded",
    ),
    "a folder without a model": ("models", a_folder_without_config, "empty' cannot be loaded"),
    "a file instead of a folder": ("models", a_file, "file' cannot be loaded"),
    "a configuration that is cut off": ("models", config_is_no_json, "teacher' cannot be loaded"),
    "weights that are cut off": ("models", truncated, "cannot be loaded.*cut off or damaged"),
    "fewer labels": (
        "labels",
        lambda path: (classifier(), classifier("no", "yes"), {}),
        "teacher has 3 labels and the student 2.*num_labels=3",
    ),
    "labels of another kind": (
        "labels",
        lambda path: (classifier("sad", "neutral", "happy"), classifier(), {}),
        "the student's are no, maybe, yes and the teacher's sad, neutral, happy.*id2label",
    ),
    "a label twice": (
        "labels",
        lambda path: (classifier("maybe", "no", "maybe"), classifier("no", "maybe", "maybe"), {}),
        "The labels differ",
    ),
    "several labels against one": (
        "problem type",
        lambda path: (classifier(problem_type="multi_label_classification"), classifier(), {}),
        "'single_label_classification' and the teacher's 'multi_label_classification'; load the",
    ),
    "another vocabulary": (
        "tokenizer",
        with_tokenizers(tokenizer, other_words),
        "97 and 97 tokens, and 'other0' .* only in one of them.*choose a teacher and a student",
    ),
    "other special tokens": (
        "tokenizer",
        with_tokenizers(swapped, tokenizer),
        "pad_token_id is 4 for the teacher and 0 for the student",
    ),
    "another casing": (
        "tokenizer",
        with_tokenizers(lambda: tokenizer(lowercase=False), tokenizer),
        "the same vocabulary, but encode the text 'The quick.*differently",
    ),
    "an added token that the teacher has no room for": (
        "tokenizer",
        with_tokenizers(tokenizer, with_a_new_token),
        "added token '<new>' .id 97., for which the teacher, with 97 entries, has no embedding",
    ),
    "a tokenizer that is too large": (
        "tokenizer",
        lambda path: (
            question_answering(vocab_size=50),
            question_answering(),
            {"processing_class": tokenizer()},
        ),
        "has 97 tokens and the teacher knows only 50",
    ),
    "a student that is too small for its tokenizer": (
        "tokenizer",
        lambda path: (
            question_answering(),
            question_answering(vocab_size=50),
            {"processing_class": tokenizer()},
        ),
        "has 97 tokens and the student knows only 50",
    ),
    "a teacher that is worse than none": (
        "quality",
        lambda path: (always(0), classifier(), {"batches": labelled([1] * 90 + [0] * 10)}),
        "of 100 labels the teacher gets 10.0% right, and the most frequent label alone would get "
        "90.0%.*compare id2label with the data",
    ),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs_are_refused_with_what_to_change(name: str, tmp_path: Path) -> None:
    about, pair, expected = BAD_PAIRS[name]
    teacher, student, options = pair(tmp_path)
    report = check_pair(teacher, student, **options)
    assert not report.ok
    assert status(report)[about] == "refused"
    assert_says(message(report, about), expected)
    assert f"refused  {about}: " in str(report)


def assert_says(text: str, expected: str) -> None:
    import re

    assert re.search(expected, text, re.DOTALL), text


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
    assert status(report)["processor"] == "refused"
    assert_says(message(report, "processor"), expected)
