"""Every bad pair is refused, with what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
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
from refusals import row, rows_of
from tiny import VOCABULARY, bert_config, tokenizer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertForTokenClassification,
    BertModel,
)
from zoo import zoo_model

from hf_distill import check_pair


def itself(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    model = classifier()
    return model, model, {}


def tied_embeddings(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    teacher, student = classifier(), classifier()
    student.bert.embeddings = teacher.bert.embeddings
    return teacher, student, {}


def summarizer() -> BartForConditionalGeneration:
    sizes = {"d_model": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
    sides = {f"{s}_{n}": 2 for s in ("encoder", "decoder") for n in ("layers", "attention_heads")}
    return BartForConditionalGeneration(BartConfig(**sizes, **sides, pad_token_id=0))


def with_tokenizers(theirs: Any, ours: Any) -> Pair:
    """Of a task whose predictions cannot be aligned."""

    def pair(path: Path) -> tuple[Any, Any, dict[str, Any]]:
        model = saved(summarizer(), path / "teacher", words=theirs())
        return model, summarizer(), {"processing_class": ours()}

    return pair


def decoder(pad: int) -> Any:
    return zoo_model("text-classification", "gpt2", seed=0, pad_token_id=pad)


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


def shared_storage(how: str) -> Pair:
    """A student that was filled from its teacher without copying."""

    def make(path: Path) -> tuple[Any, Any, dict[str, Any]]:
        teacher, student = classifier(), classifier()
        if how == "assigned":
            student.load_state_dict(teacher.state_dict(), assign=True)
        elif how == "data":
            for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                ours.data = theirs.data
        elif how == "sliced":  # of a wide teacher, as in pruning
            student = classifier(intermediate_size=8)
            for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                if ours.shape != theirs.shape:
                    ours.data = theirs.data[tuple(slice(n) for n in ours.shape)]
        elif how == "sharded":
            with fake_process_group():
                mesh = init_device_mesh("cpu", (1,))
                local = teacher.classifier.weight.data
                for model in (teacher, student):
                    model.classifier.weight = nn.Parameter(DTensor.from_local(local, mesh))
        return teacher, student, {}

    return make


@contextmanager
def fake_process_group() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def numbered_from_1(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    teacher = classifier()
    teacher.config.id2label = {1: "no", 2: "maybe", 3: "yes"}
    return teacher, classifier(), {}


BAD_PAIRS: dict[str, tuple[str, Pair, str]] = {
    "a model that teaches itself": (
        "weights",
        itself,
        "share 41 weights.*Give the student its own weights",
    ),
    "all storage, by assignment": ("weights", shared_storage("assigned"), "share 41 weights"),
    "all storage, by .data": ("weights", shared_storage("data"), "share 41 weights.*copy.deepcopy"),
    "slices": ("weights", shared_storage("sliced"), "share 6 weights .*intermediate.dense.weight"),
    "shards": ("weights", shared_storage("sharded"), "share 1 weights .*'classifier.weight'"),
    "shared embeddings": ("weights", tied_embeddings, "share 5 weights.*copy.deepcopy"),
    "labels numbered from 1": (
        "labels",
        numbered_from_1,
        "teacher's id2label={1: 'no', 2: 'maybe', 3: 'yes'} does not name the labels 0 to 2",
    ),
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
        "student's class \\(BertModel\\)",
    ),
    "an encoder as the teacher": (
        "models",
        lambda path: (saved(BertModel(bert_config()), path / "t"), classifier(), {}),
        "not fine-tuned for text-classification: its weights lack classifier.bias",
    ),
    "a masked language model as the teacher": (
        "models",
        lambda path: (saved(BertForMaskedLM(bert_config()), path / "t"), classifier(), {}),
        "not fine-tuned for text-classification.*choose another model",
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
    "labels that differ in case, of other models": (
        "labels",
        lambda path: (classifier("a", "A", "b"), classifier("a", "a ", "b"), {}),
        "the student's are a, a , b and the teacher's a, A, b",
    ),
    "another padding token, where a text's label is at its last token": (
        "tokenizer",
        lambda path: (decoder(3), decoder(0), {"processing_class": tokenizer()}),
        "config.pad_token_id=3, and the data is padded with token 0.*Set config.pad_token_id=0",
    ),
    "another padding token than the student's, without a tokenizer": (
        "tokenizer",
        lambda path: (decoder(3), decoder(2), {}),
        "config.pad_token_id=3, and the data is padded with token 2",
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
    "a student that is too small for the tokenizer of both": (
        "tokenizer",
        lambda path: (
            saved(question_answering(), path / "t", words=tokenizer()),
            saved(question_answering(vocab_size=95), path / "s", words=tokenizer()),
            {},
        ),
        "has 97 tokens and the student knows only 95.*resize_token_embeddings.97",
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
    "a student that is too small for a tokenizer of its own": (
        "tokenizer",
        lambda path: (
            saved(question_answering(), path / "t", words=other_words()),
            saved(question_answering(vocab_size=95), path / "s", words=tokenizer()),
            {},
        ),
        "has 97 tokens and the student knows only 95.*resize_token_embeddings.97",
    ),
    "a teacher that is worse than none": (
        "quality",
        lambda path: (always(0), classifier(), {"batches": labelled([1] * 90 + [0] * 10)}),
        "of 100 labels the teacher gets 10.0% right, and the most frequent label alone would get "
        "90.0%.*compare id2label with the data",
    ),
}


TITLE = "Pairs of models"


def refusal(name: str, tmp_path: Path) -> str:
    """Check a bad pair, and return the message."""
    about, pair, expected = BAD_PAIRS[name]
    teacher, student, options = pair(tmp_path)
    report = check_pair(teacher, student, **options)
    assert not report.ok
    assert status(report)[about] == "error"
    assert_says(message(report, about), expected)
    assert f"error   {about}: " in str(report)
    return message(report, about)


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs_are_refused_with_what_to_change(name: str, tmp_path: Path) -> None:
    found = row(name, refusal(name, tmp_path))
    assert found == rows_of(TITLE)[name], "run python tests/refusals.py"


def test_the_page_has_no_other_pairs() -> None:
    assert [*rows_of(TITLE)] == [*BAD_PAIRS]
